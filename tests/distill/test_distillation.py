"""The stages of distillation: teacher, causal initialisation, Self Forcing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint import latest_checkpoint
from distill.config import ConfigError
from distill.running import ScriptConfig
from distill.stages import build_stage
from distill.stages.self_forcing import SelfForcingRun, SelfForcingStage
from distill.trainer import Trainer, make_accelerator
from models.context import ChunkPlan
from streamgen import load_pipeline
from tests.processes import forget_processes
from tests.tiny_stages import CPU, causal_run, init_run, self_forcing_run, teacher_run, with_steps


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Any:
    yield
    forget_processes()


@pytest.mark.parametrize(
    "make",
    [
        self_forcing_run,
        pytest.param(teacher_run, marks=pytest.mark.slow),
        pytest.param(init_run, marks=pytest.mark.slow),
    ],
)
def test_a_stage_trains_and_its_checkpoint_streams(tmp_path: Path, make: Any) -> None:
    config = with_steps(make(tmp_path), 7)
    if isinstance(config, SelfForcingRun):
        # scripts with a switch have no tracks, and the motion encoder is to learn, too
        config = replace(config, script=ScriptConfig(switch_share=0.0))
    stage = build_stage(config, CPU)
    before = {
        name: {key: p.detach().clone() for key, p in module.named_parameters()}
        for name, module in stage.modules().items()
    }
    Trainer(config, stage, make_accelerator(config)).run("none")
    for name, module in stage.modules().items():
        kept = [key for key, p in module.named_parameters() if torch.equal(p, before[name][key])]
        assert not kept, (name, kept)
    pipeline = load_pipeline(Path(config.run_dir) / "export")
    chunk = next(pipeline.open("a red circle moves right"))
    assert torch.isfinite(chunk.frames.float()).all()
    assert len(chunk.frames) == (17 if config.stage == "teacher" else 1)


@pytest.mark.parametrize(
    "make",
    [
        self_forcing_run,
        pytest.param(causal_run, marks=pytest.mark.slow),
        pytest.param(teacher_run, marks=pytest.mark.slow),
        pytest.param(init_run, marks=pytest.mark.slow),
    ],
)
def test_a_stage_resumes_bit_exactly(tmp_path: Path, make: Any) -> None:
    """Weights, optimizers, averages and what a stage carries on: streams in mid-script, a moving target."""
    config = with_steps(make(tmp_path), 6)
    whole = replace(config, run_dir=str(tmp_path / "whole"))
    Trainer(whole, build_stage(whole, CPU), make_accelerator(whole)).run("none")
    for steps in (4, 6):
        part = replace(config, run_dir=str(tmp_path / "part"), max_steps=steps)
        stage = build_stage(part, CPU)
        Trainer(part, stage, make_accelerator(part)).run()
    ends = [latest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "part")]
    for file in sorted(path.name for path in ends[0].glob("*.pt")):
        left, right = (torch.load(end / file, weights_only=True) for end in ends)
        assert_same(left, right)


@pytest.mark.slow
def test_streams_that_are_not_kept_break_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelfForcingStage, "load_state", lambda self, state: None)
    with pytest.raises(AssertionError):
        test_a_stage_resumes_bit_exactly(tmp_path, self_forcing_run)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


@pytest.mark.slow
def test_ode_regression_trains(tmp_path: Path) -> None:
    config = init_run(tmp_path)
    config = replace(config, distillation=replace(config.distillation, method="ode"))
    Trainer(config, build_stage(config, CPU), make_accelerator(config)).run("none")


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    teacher = teacher_run(tmp_path)
    with pytest.raises(ConfigError, match="one chunk"):
        build_stage(replace(teacher, plan=ChunkPlan(1, 1, 1, 4)), CPU)
    with pytest.raises(ConfigError, match="latent frames, found 12"):
        build_stage(replace(teacher, plan=ChunkPlan(12, 12, 0, 0)), CPU)
    forcing = self_forcing_run(tmp_path)
    with pytest.raises(ConfigError, match=r"rollout\.window_frames: expected <= the teacher's 5"):
        build_stage(replace(forcing, rollout=replace(forcing.rollout, window_frames=6, fresh_frames=4)), CPU)
    with pytest.raises(ConfigError, match=r"window_frames - rollout\.fresh_frames: expected <= plan"):
        build_stage(replace(forcing, rollout=replace(forcing.rollout, fresh_frames=1)), CPU)
    with pytest.raises(ConfigError, match="teacher: expected a causal model with chunks of 1 latent"):
        build_stage(replace(forcing, scoring="chunks"), CPU)
    with pytest.raises(ConfigError, match="init: expected a checkpoint"):
        build_stage(replace(forcing, init=None), CPU)
