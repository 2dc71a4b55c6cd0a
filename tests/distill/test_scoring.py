"""What a student's streams are scored with, for every objective: on the shipped config's shape."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.scoring
import distill.stages.scorers
import distill.stages.self_forcing
from distill.config import ConfigError
from distill.guidance import GuidanceRange
from distill.latent_cache import LatentClips
from distill.objectives import (
    DMDConfig,
    GANConfig,
    HistoryConfig,
    MixedConfig,
    ObjectiveConfig,
    SiDConfig,
)
from distill.running import Script, ScriptConfig, draw_script
from distill.scoring import clip_windows
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from distill.windows import WindowConfig
from models.context import ChunkPlan
from tests.distill.test_windows import LATENTS, marked_clips
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, init_run, self_forcing_run

EVERY: list[ObjectiveConfig] = [DMDConfig(), SiDConfig(), GANConfig(), MixedConfig(), HistoryConfig()]
PLAN = ChunkPlan(1, 1, 1, 3)


def made(tmp_path: Path, scoring: str = "chunks", **changes: Any) -> SelfForcingStage:
    """A stage with random networks; the critic's judgement is random, too."""
    start = init_run(tmp_path, plan=PLAN).teacher
    run = self_forcing_run(tmp_path, **({"teacher": start, "init": start} if scoring == "chunks" else {}))
    stage = SelfForcingStage(replace(run, scoring=scoring, plan=PLAN, **changes), CPU)
    for number, network in enumerate((stage.student, stage.teacher, stage.critic)):
        randomize(network, 5 + number)
    return stage


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.kind)
def test_every_objective_teaches_student_and_critic(
    tmp_path: Path, config: ObjectiveConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the update of each only its own parameters get a gradient, whatever the loss goes through."""
    stage = made(tmp_path, objective=config)
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)

    def learning() -> dict[str, bool]:
        parts = {"student": stage.student, "critic": stage.critic, "teacher": stage.teacher}
        found = {name: any(p.grad is not None for p in part.parameters()) for name, part in parts.items()}
        for part in parts.values():
            part.zero_grad(set_to_none=True)
        return found

    def check() -> None:
        stage.streams = None
        for module, name in ((stage.critic, "critic"), (stage.student, "student"), (stage.critic, "critic")):
            loss, metrics = stage.loss(module, batch)
            assert torch.isfinite(loss)
            assert all(torch.isfinite(torch.as_tensor(value)) for value in metrics.values())
            loss.backward()
            if name == "critic" and stage.critic.judge is not None:
                assert stage.critic.judge.weight.grad is not None
            assert learning() == {"student": False, "critic": False, "teacher": False} | {name: True}

    if config.kind in ("sid", "gan", "dmd+gan"):
        assert_needs(check, monkeypatch, distill.stages.self_forcing, "without_gradients", nullcontext)
    else:
        check()


def test_alone_a_first_chunk_is_scored_as_ever_and_later_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a past a chunk's score is that of a stream that begins with it."""
    stage = made(tmp_path, objective=HistoryConfig())
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)

    def check() -> None:
        stage.streams = None
        with torch.no_grad():
            rolled = stage.roll(stage.student, batch, with_gradient=False)
            noisy = torch.randn(rolled.window.x.shape, generator=torch.Generator().manual_seed(3))
            levels = torch.full(noisy.shape[:2], 0.7)
            scores = stage.scorers.scores(rolled, torch.Generator().manual_seed(0))
            assert scores.alone is not None
            real, alone = scores.real(noisy, levels), scores.alone(noisy, levels)
            torch.testing.assert_close(alone[:, 0], real[:, 0], rtol=1e-4, atol=1e-4)
            for later in range(1, noisy.shape[1]):
                assert (alone[:, later] - real[:, later]).abs().max() > 1e-3
            # each chunk's is its own
            changed = noisy.clone()
            changed[:, 0] += 1
            torch.testing.assert_close(scores.alone(changed, levels)[:, 1:], alone[:, 1:])

    with_past = lambda teacher, told, shape, chunk: distill.scoring.real_score(teacher, told, shape)  # noqa: E731
    assert_needs(check, monkeypatch, distill.stages.scorers, "score_alone", with_past)


def test_what_an_objective_needs_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"scoring: expected chunks: history needs a teacher that sees a past"
    ):
        made(tmp_path / "one", scoring="windows", objective=HistoryConfig())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    with pytest.raises(ConfigError, match=r"prompts: expected null, since gan needs clips"):
        made(tmp_path / "two", objective=GANConfig(), prompts=str(prompts))


def frames_of(clips: LatentClips, places: list[int], new: int, plan: ChunkPlan) -> Tensor:
    """The latent frames that two windows show beside a stream's."""
    script = script_of(clips)
    shown, told = clip_windows(
        clips, script, torch.tensor(places), new, (0.5, 0.2), plan, 0.0, torch.Generator().manual_seed(0)
    )
    assert told.committed is not None
    seen, levels = told.committed
    assert not levels.any()
    assert torch.equal(seen[:, -new:], shown)
    assert told.tracks.state.shape[2] == 4 * len(places)
    return seen[0, :, 0, 0, 0].long()


def script_of(clips: LatentClips) -> Script:
    """A script of two streams of these clips."""
    plain = ScriptConfig(switch_share=0.0)
    draws = torch.Generator().manual_seed(1)
    return draw_script(clips, 2, [9], plain, WindowConfig(), GuidanceRange(), draws)


def test_clips_are_shown_as_streams_are() -> None:
    """The same latent frames; of a stream that is longer than clips the sink and the end of a clip."""
    clips, plan = marked_clips(), ChunkPlan(1, 1, 1, 8)
    assert frames_of(clips, list(range(9)), 9, plan).tolist() == list(range(9))
    near = [0, *range(4, 18)]
    assert frames_of(clips, near, 6, plan).tolist() == near
    far = [0, *range(19, 33)]
    assert frames_of(clips, far, 6, plan).tolist() == [0, *range(LATENTS - 14, LATENTS)]
    with pytest.raises(ConfigError, match=r"cache\.frames: expected"):
        frames_of(clips, list(range(LATENTS + 1)), 1, plan)
