"""Causal initialisation: what the student is to hit, and what it is averaged into."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.flow import guided
from distill.stages.init import InitStage, _consistency, _regression, condition_of
from distill.trainer import Tick
from streamgen.engine.scheduler import FlowMatchScheduler
from tests.tiny_models import randomize
from tests.tiny_stages import CPU, init_run


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
