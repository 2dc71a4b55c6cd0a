"""Causal initialisation: what the student is to hit, and what it is averaged into."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from distill.config import ConfigError
from distill.flow import guided
from distill.mixture import Kind, MixtureConfig
from distill.stages.init import (
    InitConfig,
    InitRun,
    InitStage,
    StudentBatch,
    _consistency,
    _regression,
    condition_of,
)
from distill.stages.teacher import TeacherStage
from distill.trainer import Tick
from streamgen.engine.scheduler import FlowMatchScheduler
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, WINDOWS, export, init_run, teacher_run


def test_init_targets_follow_the_teacher(tmp_path: Path) -> None:
    """The consistency target of the lowest level is the teacher's own step; regression ends where a solver of
    the guided teacher does, and only visits the student's levels.
    """
    stage = InitStage(init_run(tmp_path), CPU)
    randomize(stage.student, 9)
    batch = stage.batch(Tick(1, 0, 0, 1, 1, 0.5))
    windows, strengths = batch.windows, batch.strengths
    sigmas = torch.tensor(FlowMatchScheduler(4, 3.0).sigmas()[::-1])
    with torch.no_grad():
        condition, past = condition_of(stage.teacher, windows, strengths)
        assert past is not None
        lowest = replace(batch, levels=torch.ones_like(batch.levels))
        x, level, target = _consistency(stage, lowest, condition, past, sigmas)
        velocity = guided(stage.teacher, x, level, condition, past)
        torch.testing.assert_close(target, x - sigmas[1] * velocity)
        x, level, target = _regression(stage, batch, condition, past, sigmas)
        assert set(level.flatten().tolist()) <= {float(sigmas[2]), float(sigmas[4])}
        solved = windows.noise
        for i in (4, 3, 2, 1):
            here = sigmas[i].expand_as(windows.sigma)
            solved = solved + (sigmas[i - 1] - sigmas[i]) * guided(
                stage.teacher, solved, here, condition, past
            )
        torch.testing.assert_close(target, solved)


def test_the_target_average_follows_once_an_update(tmp_path: Path) -> None:
    stage = InitStage(init_run(tmp_path), CPU)
    randomize(stage.student, 9)

    def distance() -> float:
        pairs = zip(stage.student.parameters(), stage.average.parameters(), strict=True)
        return float(sum((a - b).detach().square().sum() for a, b in pairs))

    before = distance()
    for micro in (0, 1, 2):
        stage.loss(stage.student, stage.batch(Tick(1, micro, 0, 1, 1, 0.5)))
    assert distance() == pytest.approx(before * stage.options.target_decay**2, rel=1e-3)


def windows_run(tmp_path: Path, **changes: Any) -> InitRun:
    """An init stage with a bidirectional teacher of five latent frames."""
    start = tmp_path / "teacher_export"
    if not start.exists():
        export(TeacherStage(teacher_run(tmp_path), CPU), start, 4)
    settings: dict[str, Any] = {
        "scoring": "windows",
        "teacher": str(start),
        "distillation": InitConfig(method="ode", steps=4, student_steps=2),
        "windows": replace(WINDOWS, frames=5, gap_share=0.0),
        "mixture": MixtureConfig(0.0, Kind(0.0, 3), Kind(0.0, 2), Kind(1.0, 2), Kind(0.0, 2)),
        **changes,
    }
    return init_run(tmp_path, **settings)


def test_a_bidirectional_teacher_solves_whole_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first frame depends on the last one's noise, and the student's past is the clip that came out; a
    teacher that sees the past alone knows nothing of later noise.
    """
    stage = InitStage(windows_run(tmp_path), CPU)
    batch = stage.batch(Tick(1, 0, 0, 1, 1, 0.5))
    noise = batch.windows.noise.clone()
    noise[:, -1] += 1
    other = replace(batch, windows=replace(batch.windows, noise=noise))
    seen: list[StudentBatch] = []

    def student(told: StudentBatch) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(told)
        return torch.zeros(()), {}

    def check() -> None:
        seen.clear()
        for one in (batch, other):
            stage.loss(cast(nn.Module, student), one)
        first, second = seen
        torch.testing.assert_close(first.windows.x0, first.target)
        assert not torch.allclose(first.target[:, 0], second.target[:, 0])

    assert_needs(check, monkeypatch, stage, "scoring", "chunks")


def test_a_teacher_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    causal = {"teacher": init_run(tmp_path).teacher}
    for changes, message in (
        ({"scoring": "chunks"}, "teacher: expected a causal one"),
        (causal, "teacher: expected a bidirectional one"),
        ({"windows": replace(WINDOWS, frames=7, gap_share=0.0)}, "windows.frames: expected 1 to 5"),
        ({"windows": WINDOWS}, "windows.gap_share: expected 0 where whole windows are solved"),
        ({"distillation": InitConfig(steps=4, student_steps=2)}, "distillation.method: expected ode"),
    ):
        with pytest.raises(ConfigError, match=message):
            InitStage(windows_run(tmp_path, **changes), CPU)
