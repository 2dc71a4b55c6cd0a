"""The tokenizer stage: batches, masks, loss, statistics, export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from distill.config import CheckpointConfig, read_mapping
from distill.scenes import SceneConfig, SceneGenerator
from distill.stages import STAGES, build_stage, load_run
from distill.stages.tokenizer import (
    DataConfig,
    TokenizerRun,
    TokenizerStage,
    latent_statistics,
    moving_cells,
    object_cells,
    to_float,
)
from distill.trainer import Tick, Trainer, make_accelerator
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.checkpoints.digest import tensor_digest
from tests.processes import forget_processes

ROOT = Path(__file__).resolve().parents[2]
MODEL = VideoTokenizerConfig(dim=24, heads=1, encoder_spatial=1, decoder_spatial=1, refine_channels=4)
DATA = DataConfig(
    frames=5,
    image_batch=4,
    video_batch=2,
    pca_clips=4,
    statistics_clips=18,
    held_out_clips=3,
    sheet_clips=2,
)
CPU = torch.device("cpu")


def run_config(run_dir: Path) -> TokenizerRun:
    config = TokenizerRun("tokenizer", str(run_dir), max_steps=4, seed=1, log_every=1, trackers=())
    checkpoint = CheckpointConfig(every_steps=2, every_minutes=None)
    return replace(config, model=MODEL, data=DATA, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TokenizerStage:
    return TokenizerStage(run_config(tmp_path_factory.mktemp("run")), CPU)


def test_every_recipe_builds_its_config() -> None:
    paths = [p for p in (ROOT / "configs" / "distill").rglob("*.yaml") if p.name != "recipe.yaml"]
    # the others are what these share
    stages = [path for path in paths if "stage" in read_mapping(path)]
    assert len(stages) >= 14
    for path in stages:
        assert load_run(path).stage in STAGES


@pytest.mark.slow
def test_training_writes_loadable_weights(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    stage = build_stage(config, CPU)
    Trainer(config, stage, make_accelerator(config)).run()
    forget_processes()
    assert {path.name for path in (tmp_path / "previews").iterdir()} == {"step-000000000", "step-000000004"}
    assert (tmp_path / "previews" / "step-000000004" / "reconstructions.png").is_file()

    plain = OmegaConf.to_container(OmegaConf.load(tmp_path / "export" / "tokenizer.yaml"))
    tokenizer = VideoTokenizer(VideoTokenizerConfig.from_dict(plain))  # type: ignore[arg-type]
    weights = load_file(tmp_path / "export" / "tokenizer.safetensors")
    tokenizer.load_state_dict(weights)
    assert {str(value.dtype) for name, value in weights.items() if name.startswith("latent")} == {
        "torch.float32"
    }
    assert weights["encoder.embed.first.weight"].dtype == torch.bfloat16
    with safe_open(tmp_path / "export" / "tokenizer.safetensors", "pt") as file:
        assert file.metadata()["digest"] == tensor_digest(weights)
    scene = SceneGenerator(SceneConfig(), CPU).sample(16, 17, 5)
    with torch.no_grad():
        latents = tokenizer.normalize(tokenizer.encode(to_float(scene.video)).mean, 0)
    assert latents[:, :1].std().item() == pytest.approx(1.0, abs=0.25)
    assert latents[:, 1:].std().item() == pytest.approx(1.0, abs=0.25)


def test_batches_follow_the_curriculum_and_the_place(stage: TokenizerStage) -> None:
    def frames(step: int, progress: float) -> int:
        return stage.batch(Tick(step, 0, 0, 1, 1, progress)).video.shape[1]

    assert [frames(step, 0.1) for step in range(4)] == [1, 1, 1, 1]
    later = [frames(step, 0.5) for step in range(20)]
    assert set(later) == {1, 5}
    assert abs(later.count(1) / 20 - DATA.image_share) < 0.08
    place = Tick(1, 0, 0, 2, 1, 0.5)
    assert torch.equal(stage.batch(place).video, stage.batch(place).video)
    assert not torch.equal(stage.batch(place).video, stage.batch(replace(place, rank=1)).video)


def test_object_cells_hold_every_object() -> None:
    config = SceneConfig(object_weights=(0.0, 1.0), change_probability=0.0)
    scene = SceneGenerator(config, CPU).sample(32, 3, seed=4)
    cells = object_cells(scene, 8)
    assert cells.shape == (32, 3, 1, 64, 64)
    assert 0.05 < cells.mean() < 0.6
    pixel = (scene.points * 64).long().clamp(0, 63)
    for clip, track in torch.nonzero(scene.track_object >= 0).tolist():
        for time in range(3):
            x, y = pixel[clip, track, time].tolist()
            assert cells[clip, time, 0, y, x] == 1


def test_object_cells_wrap_around_the_border() -> None:
    scene = SceneGenerator(SceneConfig(object_weights=(1.0,), tracks=2), CPU).sample(1, 1, seed=0)
    scene.centres[:] = torch.tensor([0.0, 0.5])
    cells = object_cells(scene, 8)[0, 0, 0]
    assert cells[32, 0] == cells[32, 63] == 1
    assert cells[32, 32] == cells[0, 0] == 0


def test_moving_cells() -> None:
    video = torch.zeros(1, 3, 3, 16, 16)
    video[:, 2, 1, 9, 3] = 0.5
    moving = moving_cells(video, 8)
    assert moving[0, :2].sum() == 0
    assert moving[0, 2, 0, 8:, :8].min() == 1
    assert moving.sum() == 64


def test_statistics_match_a_direct_computation(stage: TokenizerStage) -> None:
    videos = [
        to_float(stage.generators[stage.config.scenes.size].sample(3, 5, seed).video) for seed in (1, 2)
    ]
    mean, std = latent_statistics(stage.tokenizer, iter(videos))
    with torch.no_grad():
        latents = torch.cat([stage.tokenizer.encode(video).mean for video in videos])
    torch.testing.assert_close(mean[0], latents[:, 0].mean((0, 2, 3)))
    torch.testing.assert_close(mean[1], latents[:, 1:].mean((0, 1, 3, 4)))
    variance = latents[:, 1:].var((0, 1, 3, 4), correction=0).mean()
    torch.testing.assert_close(std[1], variance.sqrt().expand(16))


def test_an_error_on_an_object_costs_more(stage: TokenizerStage) -> None:
    clips = stage.batch(Tick(1, 0, 0, 1, 1, 0.5))
    nowhere = replace(clips, objects=torch.zeros_like(clips.objects), moving=torch.zeros_like(clips.moving))
    torch.manual_seed(0)
    weighted = stage.module(clips)[1]["mse"]
    torch.manual_seed(0)
    assert weighted > stage.module(nowhere)[1]["mse"]


@pytest.mark.slow
def test_sizes_take_turns_after_the_first_images(tmp_path: Path) -> None:
    """Images and clips come in every size, with about as many pixels; the first phase has the own size."""
    config = run_config(tmp_path)
    data = replace(DATA, sizes=(32, 64, 96), image_phase=0.5, image_share=0.5)
    stage = TokenizerStage(replace(config, data=data), CPU)
    early = {stage.batch(Tick(step, 0, 0, 1, 0, 0.2)).video.shape for step in range(6)}
    assert early == {(4, 1, 3, 64, 64)}
    late = {stage.batch(Tick(step, 0, 0, 1, 0, 0.7)).video.shape for step in range(40)}
    images = {(16, 1, 3, 32, 32), (4, 1, 3, 64, 64), (2, 1, 3, 96, 96)}
    clips = {(8, 5, 3, 32, 32), (2, 5, 3, 64, 64), (1, 5, 3, 96, 96)}
    assert late == images | clips


@pytest.mark.slow
def test_a_start_from_weights_is_measured_against_the_pca(stage: TokenizerStage, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in stage.tokenizer.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    stage.export(tmp_path)
    again = TokenizerStage(replace(stage.config, init=str(tmp_path)), CPU)
    weights = load_file(tmp_path / "tokenizer.safetensors")
    assert tensor_digest({k: v.float() for k, v in weights.items()}) == tensor_digest(
        again.tokenizer.state_dict()
    )
    with torch.no_grad():
        figures = again.evaluate(0, tmp_path)
        assert figures["psnr_over_pca"] < -1.0
        fresh = TokenizerStage(stage.config, CPU).evaluate(0, tmp_path)
    assert fresh["psnr_over_pca"] == pytest.approx(0.0, abs=1e-4)
    assert figures["psnr"] - figures["psnr_over_pca"] == pytest.approx(fresh["psnr"], abs=1e-3)
