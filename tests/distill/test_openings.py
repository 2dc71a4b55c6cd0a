"""Streams that go on from the beginnings of clips."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.reward.openings
from distill.reward.openings import Openings
from distill.reward.pictures import RewardConfig
from distill.running import RunningStreams
from distill.scenes import MOTIONS, SHAPES, SceneConfig
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from distill.words.told import ATTRIBUTES, is_test
from models.text_encoder import Vocabulary
from streamgen.stream.recache import ByChunk
from tests.distill.test_stream_reward import Plain, judge, script_of
from tests.rolled_streams import GRID, SAMPLING
from tests.rolled_streams import script_of as told_script
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, self_forcing_run

SHIPPED = Path(__file__).parents[2] / "streamgen/weights/tiny/vocabulary.txt"


class Pictures(Plain):
    """Latents are the pictures of a latent frame, both ways."""

    def encode(self, video: Tensor) -> Any:
        whole = torch.cat([video[:, :1].expand(-1, 3, -1, -1, -1), video], 1)
        return SimpleNamespace(mean=whole.reshape(len(video), -1, 12, *video.shape[-2:]))

    def normalize(self, latents: Tensor, start: int) -> Tensor:
        return latents


def openings(count: int = 12, frames: int = 9) -> Openings:
    words = Vocabulary(SHIPPED.read_text(encoding="utf-8").split())
    codec: Any = Pictures()
    return Openings(SceneConfig(size=64, tracks=4), codec, words, 24, frames, CPU, count)


@pytest.mark.slow
def test_their_pictures_show_what_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward itself finds the shapes and ways that the labels have."""

    def check() -> None:
        made = openings()
        latents, told = made.draw(12, torch.Generator().manual_seed(3))
        script = script_of(told.labels, told.labels)
        _, found = judge().loss(latents, latents, torch.arange(9), script)
        assert float(found["streams/reward/right"]) > 0.85
        assert float(found["streams/reward/moves"]) > 0.85

    def others(scene: Any) -> dict[str, Tensor]:
        labels = shown(scene)
        for name, classes in (("shape", SHAPES), ("motion", MOTIONS)):
            moved = (labels[name] + 1) % len(classes)
            labels[name] = torch.where(labels[name] < len(classes), moved, len(classes))
        return labels

    shown = distill.reward.openings._shown
    assert_needs(check, monkeypatch, distill.reward.openings, "_shown", others)


def test_they_are_of_a_world_in_which_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = openings(count=8, frames=2)
    assert made.latents.shape[1:] == (2, 12, 64, 64)
    assert len(made.latents) == len(made.ids) == len(made.labels["shape"]) >= 8
    for name, classes in ATTRIBUTES.items():
        assert int(made.labels[name].min()) >= 0
        # objects that are not there have no class, the others have one each
        nothing = made.labels[name] == len(classes)
        assert torch.equal(nothing, made.labels["shape"] == len(SHAPES))
    again = openings(count=8, frames=2)
    assert torch.equal(made.latents, again.latents)
    monkeypatch.setattr(distill.reward.openings, "is_test", lambda caption: not is_test(caption))
    assert len(openings(count=1, frames=1).ids) < 10


def test_streams_go_on_from_them_as_from_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind frames that it is given a student makes what it makes behind the same ones of its own."""
    stage = SelfForcingStage(self_forcing_run(tmp_path), CPU)
    randomize(stage.student, 7)
    script = told_script(stage, None, tracks=False)

    def made(streams: RunningStreams, frames: int) -> Tensor:
        with torch.no_grad():
            latents: Tensor = stage.student(streams, frames, SAMPLING)[0]
        return latents

    def begun(opening: Tensor | None) -> RunningStreams:
        ring = stage.student.new_cache(1, GRID)
        return RunningStreams.begun(replace(script, opening=opening), ring, 5, SAMPLING.context_sigma)

    own = begun(None)
    first = made(own, 4)
    expected = made(own, 5)

    def check() -> None:
        streams = begun(first)
        assert streams.frames == 4
        assert streams.script.opening is None
        # before anything is committed, and after
        ring = stage.student.new_cache(1, GRID)
        for again in (streams, RunningStreams.load(streams.save(), ring)):
            torch.testing.assert_close(made(again, 5), expected, rtol=1e-4, atol=1e-5)

    assert_needs(
        check, monkeypatch, ByChunk, "rebuild", lambda self, runner, state, *rest: replace(state, context=())
    )


def test_a_stage_opens_its_share_of_the_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.reward.openings, "COUNT", 4)
    monkeypatch.setattr("distill.stages.judged.COUNT", 4)

    def opened(share: float) -> list[bool]:
        reward = RewardConfig(streams=1.0, weight=1.0, openings=share)
        made = self_forcing_run(tmp_path)
        rollout = replace(made.rollout, first_share=0.0)
        stage = SelfForcingStage(replace(made, reward=reward, rollout=rollout), CPU)
        found = []
        for step in range(8):
            batch = stage.batch(Tick(step, 0, 0, 1, 1, 0.5))
            found.append(batch.script.opening is not None)
            if batch.script.opening is None:
                continue
            assert batch.script.switch is None
            stage.streams = None
            rolled = stage.roll(stage.student, batch, with_gradient=False)
            longest = made.rollout.window_frames
            assert rolled.new == made.rollout.fresh_frames
            opening = batch.script.opening
            assert rolled.seen.shape[1] < longest + rolled.new or torch.equal(
                rolled.seen[:, :longest], opening
            )
            # sink and window of what was given
            opening, held = batch.script.opening, rolled.seen[:, : -rolled.new]
            kept = torch.cat([opening[:, :1], opening[:, -made.plan.window_frames :]], 1)
            assert torch.equal(held, kept)
            assert stage.streams is not None
            assert stage.streams.frames == longest + rolled.new
        return found

    # those without one have a switch
    assert sum(opened(1.0)) >= 3
    assert not any(opened(0.0))
