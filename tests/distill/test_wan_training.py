"""The stages on Wan-shaped networks: published weights in, a folder that streams out.

Full sizes are counted on the meta device; everything else runs at a few thousand random numbers.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import distill.clips.words
import distill.families.captions
import distill.families.wan
import distill.lora
import streamgen.wan.weights
from distill.__main__ import main
from distill.config import ConfigError, LoraConfig
from distill.dry_run import estimate
from distill.families import DiffusionRun, NetworkSpec
from distill.families.captions import CaptionTable
from distill.families.wan import WanFamily
from distill.flow import FlowMatching
from distill.running import ScriptConfig
from distill.stages import build_stage, load_run, stage_class
from distill.trainer import Tick, Trainer, make_accelerator
from models.causal_dit import CausalDiT
from models.context import BidirectionalContext
from models.motion_encoder import Tracks
from streamgen import load_pipeline
from streamgen.errors import CheckpointError, InputError
from streamgen.wan.config import TextConfig
from streamgen.wan.options import TextOptions
from streamgen.wan.text import HashedPrompts, UMT5Prompts
from streamgen.wan.weights import gather
from tests.command_line import call
from tests.processes import forget_processes
from tests.tiny_models import assert_needs, randomize
from tests.tiny_wan import small_config, tiny_tokenizer, tiny_umt5
from tests.wan_stages import (
    CPU,
    WHOLE,
    causal_run,
    clip_config,
    init_run,
    self_forcing_run,
    teacher_run,
    write_clips,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "distill" / "wan-1.3b"
# the published network, 16 track channels of a patch of four, and the motion encoder
WIDENED = 1_418_996_800 + 16 * 4 * 1536 + 4 * 67 * 32 + 32 * 16
GUIDANCE = 512 * 1536 + 1536 + 1536 * 1536 + 1536
NEW_INPUTS = ("dit.patch_embedding", "dit.guidance_embedding", "motion_encoder")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    forget_processes()


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_clips(tmp_path / "clips", monkeypatch)


def train(config: Any) -> Any:
    stage = build_stage(config, CPU)
    Trainer(config, stage, make_accelerator(config)).run("none")
    return stage


@pytest.mark.parametrize(
    "make",
    [
        self_forcing_run,
        pytest.param(teacher_run, marks=pytest.mark.slow),
        pytest.param(causal_run, marks=pytest.mark.slow),
        pytest.param(init_run, marks=pytest.mark.slow),
    ],
)
def test_two_updates_of_each_stage_on_own_clips(tmp_path: Path, clips: Path, make: Any) -> None:
    """Tracks are learned from the first update on, and what is exported streams."""
    config = make(tmp_path, clips)
    stage = train(config)
    assert stage.network.dit.patch_embedding.weight[:, 16:].abs().sum() > 0
    pipeline = load_pipeline(Path(config.run_dir) / "export", "cpu")
    assert next(pipeline.open("a zebra walks")).frames.shape[1:] == (32, 48, 3)
    assert pipeline.plan == config.plan


@pytest.mark.slow
def test_lora_beside_new_inputs(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Adapters and the new inputs are trained, nothing else; the export has them merged and renders."""
    lora = LoraConfig(rank=2, alpha=2.0, whole=NEW_INPUTS)
    config = self_forcing_run(tmp_path, clips, lora=lora)
    stage = train(config)
    learned = {name for name, p in stage.student.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith(NEW_INPUTS) for name in learned)
    assert {"dit.patch_embedding.weight", "motion_encoder.temporal"} < learned
    assert stage.student.dit.patch_embedding.weight[:, 16:].abs().sum() > 0
    export = Path(config.run_dir) / "export"
    own, start = (
        load_pipeline(export, "cpu").dit.state_dict(),
        gather(small_config(), export.parents[1] / "weights", ("dit",)),
    )
    assert start.dit is not None
    plain = "blocks.1.ffn.2.weight"
    assert set(start.dit) < set(own)
    assert not torch.equal(own[plain], start.dit[plain].bfloat16().float())
    assert torch.equal(own["head.modulation"], start.dit["head.modulation"].bfloat16().float())
    done = call(
        capsys, "render", "a zebra walks", "-o", tmp_path / "a.mp4", "--model", export, "--seconds", "1"
    )
    assert done.code == 0, done.stderr
    with pytest.raises(
        ConfigError, match=r"lora\.whole: no parameter of module student begins with dit\.patches"
    ):
        train(replace(config, lora=replace(lora, whole=("dit.patches",))))


def some_tracks() -> Tracks:
    generator = torch.Generator().manual_seed(5)
    state = torch.ones(2, 3, 21, dtype=torch.int8)
    return Tracks(
        torch.rand(2, 3, 21, 2, generator=generator),
        state,
        torch.zeros(2, 3).bool(),
        torch.arange(6).view(2, 3),
    )


def test_widened_published_weights_compute_what_they_did(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without tracks, and whatever the guidance strengths: at step 0 nothing has changed."""
    config = self_forcing_run(tmp_path, clips)
    family = WanFamily(config, CPU)
    family.captions.add(["a red boat"])
    weights = tmp_path / "weights"
    found = gather(small_config(), weights, ("dit",)).dit
    assert found is not None
    plain = CausalDiT(small_config().dit)
    plain.load_state_dict(found)
    draw = torch.Generator().manual_seed(3)
    x, sigma = torch.randn(2, 6, 16, 4, 6, generator=draw), torch.rand(2, 6, generator=draw)
    text = family.captions(torch.tensor([[[1], [0]]] * 2))
    segment = torch.zeros(2, 6, dtype=torch.long)
    context = BidirectionalContext(plain.rope, 6, plain.token_grid(x), CPU)
    expected = plain(x, sigma * 1000, plain.embed_text(text, segment), context)
    strengths = torch.tensor([3.0, 1.5]).expand(2, 6, 2)

    @torch.no_grad()
    def check() -> None:
        network = family.network(NetworkSpec(FlowMatching, str(weights), guidance=True, plan=WHOLE))
        motion = network.motion(some_tracks(), (4, 6))
        assert motion.abs().max() > 0.1
        told = network.text(torch.tensor([[[1], [0]]] * 2), segment)
        for tracks in (motion, torch.zeros_like(motion)):
            assert torch.allclose(network.velocity(x, sigma, told, tracks, strengths), expected, atol=1e-5)

    def with_copies(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
        weight = tensors["patch_embedding.weight"]
        return tensors | {"patch_embedding.weight": torch.cat([weight, weight], 1)}

    assert_needs(check, monkeypatch, streamgen.wan.weights, "widen_patch_embedding", with_copies)


def test_the_teacher_starts_from_the_published_base(tmp_path: Path, clips: Path) -> None:
    """The config's own overrides find Wan2.1's file, without LongLive's LoRA."""
    config = teacher_run(tmp_path, clips)
    base = randomize(CausalDiT(small_config().dit), 9).state_dict()
    (tmp_path / "weights" / "Wan2.1-T2V-1.3B").mkdir()
    save_file(base, tmp_path / "weights" / "Wan2.1-T2V-1.3B" / "diffusion_pytorch_model.safetensors")
    written = load_run(CONFIGS / "teacher.yaml")
    assert isinstance(written, DiffusionRun)
    assert config.wan is not None
    assert written.wan is not None
    overrides = (*config.wan.overrides, *written.wan.overrides)
    config = replace(config, wan=replace(config.wan, overrides=overrides))
    state = WanFamily(config, CPU).network(NetworkSpec(FlowMatching, config.init)).dit.state_dict()
    assert all(torch.equal(state[name], base[name]) for name in base if name != "patch_embedding.weight")


def test_a_caption_is_what_the_encoder_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any shape of ids, from the cache on disk when the encoder is gone; 0 is no text."""
    folder = tmp_path / "umt5"
    tiny_umt5().save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    sizes = TextConfig(dim=16, length=12)
    encoder = UMT5Prompts(str(folder), sizes)
    texts = ["a red boat", "the sea"]
    known = {text: encoder.embed(text) for text in ("", *texts)}
    prompts = UMT5Prompts(str(folder), sizes, TextOptions(cache=tmp_path / "prompts"))
    table = CaptionTable(prompts)
    table.add(texts)
    assert prompts._model is None
    monkeypatch.setattr(streamgen.wan.text, "_from_pretrained", lambda *_, **__: 1 / 0)
    prompts._cached.clear()

    def check() -> None:
        ids = torch.stack([torch.stack([table.ids(text) for text in texts] + [torch.zeros(1).long()])] * 2)
        out = table(ids)
        assert out.shape == (2, 3, 12, 16)
        for row in out:
            assert torch.equal(row, torch.cat([known[text] for text in (*texts, "")]))
        assert torch.equal(table(ids[:, 1]), out[:, 1])

    check()
    assert known["the sea"].abs().sum() > 0
    assert_needs(check, monkeypatch, CaptionTable, "ids", lambda *_: torch.tensor([1]))


def test_a_run_keeps_the_numbers_of_its_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that go on after a resume refer to them; a new run in the same folder begins anew."""

    def numbers(*captions: str) -> list[int]:
        table = CaptionTable(HashedPrompts(TextConfig(dim=4, length=3)), run_dir=tmp_path)
        table.add(captions)
        return [int(table.ids(caption)) for caption in captions]

    assert numbers("b", "c") == [1, 2]
    assert numbers("a", "b") == [1, 2]

    def check() -> None:
        (tmp_path / "captions.json").write_text('["b", "c"]')
        assert numbers("a", "c") == [3, 2]

    monkeypatch.setattr(distill.clips.words, "list_checkpoints", lambda root: [root])
    assert_needs(check, monkeypatch, distill.families.captions, "run_captions", lambda _: [])
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"captions\.json: expected a list of texts"):
        numbers("a")


@pytest.mark.slow
def test_prompts_alone(tmp_path: Path) -> None:
    """Self Forcing without a clip: whole prompts with their switches."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a red boat"\n{"shots": [{"prompt": "a sea"}, {"at": 3, "prompt": "a storm"}]}\n')
    stage = train(self_forcing_run(tmp_path, None, prompts=str(prompts)))
    assert stage.family.captions.captions == ["", "a red boat", "a sea", "a storm"]
    scripts = [stage.script(2, torch.Generator().manual_seed(seed)) for seed in range(20)]
    rows = {tuple(row.flatten().tolist()) for script in scripts for row in script.words}
    assert {row[2] for row in rows} == {0}
    assert (2, 3, 0) in rows
    stage.preview(tmp_path)
    assert (tmp_path / "captions.png").is_file()


def test_sharded_processes_switch_together(tmp_path: Path) -> None:
    """A recache on one process alone would gather parameters that the others do not offer."""
    (tmp_path / "prompts.txt").write_text("a red boat\na sea\na storm\n")

    def scripts(parallel: str) -> list[list[tuple[int | None, str]]]:
        config = self_forcing_run(tmp_path, None, prompts=str(tmp_path / "prompts.txt"), parallel=parallel)
        rollout = replace(config.rollout, max_frames=30)
        config = replace(config, rollout=rollout, script=ScriptConfig(switch_share=0.5))
        stage = build_stage(config, CPU)
        ticks = [[Tick(step, 0, rank, 2, 1, 0.5) for step in range(24)] for rank in (0, 1)]
        drawn = [[stage.batch(tick).script for tick in row] for row in ticks]
        return [[(script.switch, str(script.words.tolist())) for script in row] for row in drawn]

    one, other = scripts("fsdp2")
    assert [switch for switch, _ in one] == [switch for switch, _ in other]
    assert len({switch for switch, _ in one}) > 2
    assert [words for _, words in one] != [words for _, words in other]
    one, other = scripts("ddp")
    assert [switch for switch, _ in one] != [switch for switch, _ in other]


@pytest.mark.parametrize(
    ("name", "trained", "networks"),
    [
        ("teacher", {"teacher": WIDENED}, 0),
        ("causal", {"causal": WIDENED}, 0),
        ("init", {"student": WIDENED + GUIDANCE}, 2),
        ("self_forcing", {"student": None, "critic": None}, 1),
    ],
)
def test_full_size_is_counted_on_the_meta_device(
    name: str, trained: dict[str, int | None], networks: int
) -> None:
    config = load_run(CONFIGS / f"{name}.yaml")
    cost = estimate(config, stage_class(name), processes=32)
    assert {part.name for part in cost.modules} == set(trained)
    for part in cost.modules:
        expected = trained[part.name]
        if expected is not None:
            assert (part.count, part.trained) == (expected, expected)
            continue
        assert config.lora is not None
        adapters = 30 * config.lora.rank * (8 * 2 * 1536 + 2 * (1536 + 8960))
        assert part.count == WIDENED + GUIDANCE + adapters
        inputs = 1536 * (32 * 4 + 1) + GUIDANCE + 4 * 67 * 32 + 32 * 16
        assert part.trained == adapters + inputs
    assert cost.frozen["codec"] == (126_892_531, 4 * 126_892_531)
    assert len(cost.frozen) == 1 + networks
    assert all(line for line in cost.lines(config))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clips": None}, ConfigError, "clips: expected a folder of own clips for a model of the Wan family"),
        ({"height": 64}, ConfigError, r"clips\.height, width, fps: expected the model's \(32, 48, 16\)"),
        ({"share": 0.5}, ConfigError, r"clips\.share: expected 1 for a model of the Wan family, found 0\.5"),
        (
            {"unknown_words": 0.1},
            ConfigError,
            r"windows\.unknown_words: expected 0 for a model that reads any",
        ),
        ({"model": "wan-1.3b-longlive"}, ConfigError, r"wan\.model: expected one with tracks"),
        ({"model": "nothing"}, ConfigError, r"wan\.model: expected one of wan-1\.3b-causal"),
        ({"overrides": ("dit.dims=3",)}, CheckpointError, "dit.dims"),
        ({"weights": "/no/such"}, CheckpointError, "weights /no/such: expected a directory, found none"),
        ({"init": "/no/such"}, CheckpointError, "weights /no/such: expected a directory, found none"),
        ({"sampling": {"stepz": 3}}, InputError, "setting unknown key 'stepz'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, clips: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = teacher_run(tmp_path, clips)
    section = {key: change[key] for key in ("model", "overrides", "weights") if key in change}
    folder = {key: change[key] for key in ("height", "share") if key in change}
    if folder:
        changed: dict[str, Any] = {"clips": clip_config(clips, tmp_path, **folder)}
    elif section:
        changed = {"wan": replace(config.wan, **section)}
    elif "unknown_words" in change:
        changed = {"windows": replace(config.windows, **change)}
    else:
        changed = change
    with pytest.raises(error, match=message) as raised:
        build_stage(replace(config, **changed), CPU)
    assert "\n" not in str(raised.value)


def test_a_text_encoder_of_another_width(tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / "umt5"
    tiny_umt5().save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    config = teacher_run(tmp_path, clips, init=None)
    assert config.wan is not None
    wide = (*config.wan.overrides, "text.kind=umt5", "dit.text_dim=24", "text.dim=24")
    config = replace(config, wan=replace(config.wan, overrides=wide, text_encoder=str(folder)))
    with pytest.raises(CheckpointError, match=r"expected width 24 \(dit\.text_dim\), found 16"):
        build_stage(config, CPU)


@pytest.mark.slow
def test_missing_clips_end_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # else a machine that cannot hold the networks says that first
    monkeypatch.setattr("distill.memory.free_bytes", lambda device: None)
    assert main([str(CONFIGS / "teacher.yaml"), "clips=null", "trackers=[]"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: clips: expected a folder of own clips")
