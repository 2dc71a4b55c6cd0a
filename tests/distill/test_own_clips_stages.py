"""The stages on own clips: what they draw, two steps of each, and bad folders that leave a run as it was."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import distill.clips.training
import distill.latent_cache
from distill.__main__ import main
from distill.clips.config import ClipFolderConfig
from distill.clips.folder import ClipFolder
from distill.clips.training import LatentMix, draws_own, open_folder, stage_vocabulary
from distill.config import CheckpointConfig, ConfigError, PreviewConfig
from distill.families.config import NetworkConfig
from distill.families.tiny import words_of
from distill.latent_cache import CacheConfig, LatentClips
from distill.mixture import Kind, MixtureConfig
from distill.scenes import MOTIONS, SceneConfig, caption_vocabulary
from distill.stages import build_stage
from distill.stages.causal import CausalRun, CausalStage
from distill.stages.self_forcing import SelfForcingStage
from distill.stages.tokenizer import DataConfig as TokenizerData
from distill.stages.tokenizer import TokenizerRun, TokenizerStage
from distill.trainer import Tick, Trainer, make_accelerator
from distill.windows import WindowConfig
from models.context import ChunkPlan
from models.video_tokenizer import VideoTokenizerConfig
from streamgen import load_pipeline
from streamgen.errors import CheckpointError, InputError
from tests.clip_folders import metadata, small, with_reader, write_clip
from tests.processes import forget_processes
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_stages import init_run, self_forcing_run, teacher_run

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIZES = NetworkConfig(
    dim=32, layers=1, heads=2, ffn_dim=32, text_dim=16, text_layers=1, text_length=6, motion_channels=4
)
MODEL = VideoTokenizerConfig(dim=24, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4)
QUIET = PreviewConfig(every_minutes=None, at_start=False, at_end=False)
CAPTIONS = ("a zebra walks", "a zebra runs", "one rare word")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    forget_processes()


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clips, read without a decoder, and one that is broken."""
    folder = tmp_path / "clips"
    rows = [{"video": f"{i}.mp4", "caption": text} for i, text in enumerate((*CAPTIONS, "bad"))]
    metadata(folder, rows)
    for i in range(4):
        (folder / f"{i}.mp4").write_bytes(b"broken" if i == 3 else bytes([i]))
    with_reader(monkeypatch)
    return folder


def causal_run(tmp_path: Path, clips: ClipFolderConfig | None, **changes: Any) -> CausalRun:
    run = CausalRun(
        stage="causal",
        run_dir=str(tmp_path / "run"),
        max_steps=2,
        seed=0,
        trackers=(),
        checkpoint=CheckpointConfig(every_minutes=None),
        preview=QUIET,
        tokenizer=str(write_checkpoint(tmp_path / "source")),
        network=SIZES,
        plan=ChunkPlan(1, 1, 1, 8),
        scenes=SceneConfig(size=32),
        cache=CacheConfig(directory=str(tmp_path / "cache"), clips=4, frames=17, images=4),
        mixture=MixtureConfig(0.1, Kind(0.2, 3), Kind(0.25, 2), Kind(0.3, 2), Kind(0.25, 2)),
        windows=WindowConfig(frames=5, change_frames=2),
        clips=clips,
    )
    return replace(run, **changes)


def tokenizer_run(tmp_path: Path, clips: ClipFolderConfig | None, **changes: Any) -> TokenizerRun:
    data = TokenizerData(
        frames=5, image_batch=2, video_batch=2, pca_clips=4, statistics_clips=4, held_out_clips=2
    )
    run = TokenizerRun("tokenizer", str(tmp_path / "run"), max_steps=2, seed=1, trackers=())
    checkpoint = CheckpointConfig(every_minutes=None)
    run = replace(run, model=MODEL, data=data, checkpoint=checkpoint, preview=QUIET, clips=clips)
    return replace(run, scenes=SceneConfig(size=32), **changes)


@pytest.mark.slow
def test_the_causal_stage_trains_on_a_folder(tmp_path: Path, clips: Path) -> None:
    """From clips that are no squares to a model that streams, knowing the captions' words."""
    config = causal_run(tmp_path, small(clips, tmp_path / "cache"), preview=replace(QUIET, at_end=True))
    config = replace(config, fixed_windows=8)
    stage = CausalStage(config, CPU)
    kinds = {tuple(stage.batch(Tick(step, 0, 0, 1, 0, 0.5)).x0.shape) for step in range(20)}
    assert kinds == {(3, 1, 4, 4, 6), (2, 3, 4, 4, 6), (2, 5, 4, 4, 6)}
    Trainer(config, stage, make_accelerator(config)).run()
    for name in ("captions.png", "captions.mp4"):
        assert (tmp_path / "run" / "previews" / "step-000000002" / name).is_file()
    words = (tmp_path / "run" / "export" / "vocabulary.txt").read_text().split()
    assert words == [*caption_vocabulary(), "zebra"]
    pipeline = load_pipeline(tmp_path / "run" / "export")
    assert next(pipeline.open("a zebra walks")).frames.shape == (1, 32, 48, 3)


def test_the_tokenizer_stage_trains_on_a_folder(tmp_path: Path, clips: Path) -> None:
    config = tokenizer_run(tmp_path, small(clips, tmp_path / "cache"), preview=replace(QUIET, at_end=True))
    config = replace(config, data=replace(config.data, sizes=(32, 48), image_share=0.5))
    stage = TokenizerStage(config, CPU)
    shapes = {tuple(stage.batch(Tick(step, 0, 0, 1, 0, 0.7)).video.shape) for step in range(30)}
    assert shapes == {(2, 1, 3, 32, 48), (2, 5, 3, 32, 48), (1, 1, 3, 48, 64), (1, 5, 3, 48, 64)}
    place = Tick(3, 0, 0, 2, 1, 0.5)
    assert torch.equal(stage.batch(place).video, stage.batch(place).video)
    assert not torch.equal(stage.batch(place).video, stage.batch(replace(place, rank=1)).video)
    outcome = Trainer(config, stage, make_accelerator(config)).run()
    assert outcome.step == 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "psnr_moving" in rows
    assert "psnr_object" not in rows
    assert (tmp_path / "run" / "export" / "tokenizer.safetensors").is_file()


def test_some_clips_are_never_trained_on(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tokenizer stage measures on is held out: another clip, whatever the seed."""

    def check() -> None:
        stage = TokenizerStage(tokenizer_run(tmp_path, small(clips, tmp_path / "cache")), CPU)
        own = stage.own
        assert own is not None

        def marks(held_out: bool) -> set[float]:
            videos = (own.sample(8, 17, seed, held_out=held_out) for seed in range(8))
            return {round(float(clip[10].mean()), 5) for video in videos for clip in video}

        # windows of 17 of 20 frames: four places in each clip
        assert len(marks(True)) == 4
        assert len(marks(False)) == 8
        assert not marks(True) & marks(False)

    def all_alike(pixels: Any) -> None:
        keys = sorted({clip.key for clip in pixels.folder.settle(pixels._shelf)})
        pixels._training = pixels._held_out = [(key, 20) for key in keys]

    assert_needs(check, monkeypatch, distill.clips.pixels.OwnPixels, "open", all_alike)


class FixedSource:
    """A latent source whose latents are all of one value."""

    def __init__(self, value: float) -> None:
        self.value, self.built = value, 0

    def build(self, rank: int, world: int, device: torch.device) -> None:
        self.built += 1

    def load(self, images: bool) -> LatentClips:
        nothing = {name: torch.zeros(1) for name in LatentClips.__dataclass_fields__}
        return LatentClips(**nothing | {"latents": torch.tensor([self.value])})


def test_own_clips_and_the_world_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the share, alike on all processes, and what is not needed is not made."""

    def values(share: float) -> tuple[list[float], int]:
        own, world = FixedSource(1.0), FixedSource(0.0)
        config = None if share == 0 else ClipFolderConfig("x", share=share)
        mix = LatentMix(world, own if config else None, config, CPU)
        drawn = [float(mix.of(step).clips.latents) for step in range(400)]
        assert mix.main.turns == (share == 0)
        return drawn, world.built

    def check() -> None:
        assert values(1.0) == ([1.0] * 400, 0)
        assert values(0.0) == ([0.0] * 400, 1)
        drawn, built = values(0.3)
        assert built == 1
        assert abs(sum(drawn) / 400 - 0.3) < 0.02
        # neither kind of batch gets more than its share: those take turns by the golden ratio
        images = [draw for step, draw in enumerate(drawn) if (step * 0.6180339887) % 1 < 0.2]
        assert abs(sum(images) / len(images) - 0.3) < 0.08

    assert_needs(check, monkeypatch, distill.clips.training, "draws_own", lambda share, step: share > 0)
    assert draws_own(1.0, 5)
    with pytest.raises(ConfigError, match="share < 1"):
        open_folder(ClipFolderConfig(str(tmp_path), height=32, width=48, share=0.5), 64)


def test_both_sources_in_one_run(tmp_path: Path, clips: Path) -> None:
    """Half of the updates see the world at its own size, with changes; words are those of both."""
    config = small(clips, tmp_path / "cache", width=32, share=0.5, points=16, min_count=1)
    config = replace(config, world_words=False)
    stage = CausalStage(
        causal_run(tmp_path, config, cache=CacheConfig(str(tmp_path / "cache"), 12, 41, 8)), CPU
    )
    captions = {word for text in CAPTIONS for word in text.split()}
    assert set(stage.family.vocabulary.words) == {*caption_vocabulary(), *captions, "bad"}
    kinds: dict[str, set[int]] = {}
    for step in range(40):
        batch, own = stage.batch(Tick(step, 0, 0, 1, 0, 0.5)), draws_own(config.share, step)
        (kind,) = {*stage.config.mixture.kinds} & {*batch.counts}
        kinds.setdefault(kind, set()).add(int(own))
        # own clips have no motion that anybody has named
        assert own == (not any(batch.counts.get(name) for name in MOTIONS)) or kind == "images"
    assert kinds == {"images": {0, 1}, "beginnings": {0, 1}, "clips": {0, 1}, "changes": {0}}
    tokens = TokenizerStage(tokenizer_run(tmp_path, config), CPU)
    objects = [bool(tokens.batch(Tick(step, 0, 0, 1, 0, 0.5)).objects.any()) for step in range(20)]
    assert 5 < sum(objects) < 15


@pytest.mark.slow
def test_a_folder_gone_bad_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real clips, the command line: one line, exit 2, every file of the run untouched; mended, it goes on."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", height=32, width=32)
    (folder / "a.txt").write_text("a square moves")
    overrides = ["max_steps=2", "max_minutes=null", "schedule=steps", "trackers=[]", "log_every=1"]
    overrides += ["preview.at_start=false", "preview.at_end=false", "data.frames=5", "data.pca_clips=4"]
    overrides += ["data.image_batch=2", "data.video_batch=2", "data.statistics_clips=4"]
    overrides += ["model.dim=32", "model.heads=2", "model.encoder_spatial=1", "model.decoder_spatial=1"]
    overrides += ["init=null", f"run_dir={tmp_path / 'run'}", f"clips.path={folder}", "clips.frames=17"]
    overrides += [f"clips.directory={tmp_path / 'cache'}", "clips.height=32", "clips.width=32"]
    command = [str(ROOT / "configs" / "distill" / "clips" / "tokenizer.yaml"), *overrides]
    assert main(command) == 0
    forget_processes()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert any(path.name == "state.pt" for path in before)
    shutil.move(folder / "a.mp4", tmp_path / "a.mp4")
    for spoil in (
        lambda: None,
        lambda: (folder / "a.mp4").write_bytes(b"junk"),
        lambda: shutil.rmtree(folder),
    ):
        spoil()
        capsys.readouterr()
        assert main([*command, "max_steps=3"]) == 2
        forget_processes()
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    folder.mkdir()
    shutil.move(tmp_path / "a.mp4", folder / "a.mp4")
    (folder / "a.txt").write_text("a square moves")
    assert main([*command, "max_steps=3"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "step-000000003").is_dir()


@pytest.mark.parametrize(
    "make",
    [
        self_forcing_run,
        pytest.param(teacher_run, marks=pytest.mark.slow),
        pytest.param(init_run, marks=pytest.mark.slow),
    ],
)
def test_the_stages_of_distillation_train_on_a_folder(tmp_path: Path, clips: Path, make: Any) -> None:
    """Two steps of each on clips that are no squares; what they export streams at their size."""
    config = make(tmp_path, clips=small(clips, tmp_path / "cache"))
    config = replace(config, max_steps=2, trackers=())
    stage = build_stage(config, CPU)
    Trainer(config, stage, make_accelerator(config)).run("none")
    pipeline = load_pipeline(Path(config.run_dir) / "export")
    assert next(pipeline.open("a zebra walks")).frames.shape[1:] == (32, 48, 3)


@pytest.mark.slow
def test_self_forcing_needs_prompts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words come from the list, switches from its shots; no clip of the world is made."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '"a red circle moves"\n{"shots": [{"prompt": "sea"}, {"at": 3, "prompt": "zebra sand"}]}\n'
    )
    config = self_forcing_run(tmp_path, prompts=str(prompts))
    config = replace(config, max_steps=3, trackers=())
    monkeypatch.setattr(distill.latent_cache.LatentCache, "build", None)
    stage = build_stage(config, CPU)
    assert "1 words are unknown to the model (zebra)" in capsys.readouterr().err
    Trainer(config, stage, make_accelerator(config)).run("none")
    assert isinstance(stage, SelfForcingStage)
    known = stage.family.vocabulary.encode("a red circle moves", 6).ids
    scripts = [stage.script(2, torch.Generator().manual_seed(seed)) for seed in range(30)]
    pairs = {(tuple(a), tuple(b)) for script in scripts for a, b, _ in script.words.tolist()}
    assert any(before == tuple(known.tolist()) for before, _ in pairs)
    assert {script.switch is None for script in scripts} == {True, False}
    with pytest.raises(InputError, match=r"prompts\.txt: no such file"):
        build_stage(replace(config, prompts=str(tmp_path / "prompts.txt")), CPU)


def test_words_of_the_start_stay_known(tmp_path: Path, clips: Path) -> None:
    """A stage that goes on from a model of own words knows them, with or without the folder."""
    start = write_checkpoint(tmp_path / "start", words=("lion", "zebra", "red"))
    words = words_of(str(start))
    assert words == ("lion", "zebra", "red")
    known = {*caption_vocabulary(), "lion", "zebra"}
    assert set(stage_vocabulary(None, "unused", words).words) == known
    folder = ClipFolder(small(clips, tmp_path / "cache", min_count=1))
    more = stage_vocabulary(folder, str(tmp_path / "run"), words).words
    assert known < set(more)
    assert len(set(more)) == len(more)
    with pytest.raises(CheckpointError):
        words_of(str(tmp_path / "nowhere"))
