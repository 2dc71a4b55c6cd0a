"""The reward of first pictures: what it says of the world's, its gradient, and its place in a stage."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.config import ConfigError
from distill.reward import pictures as reward
from distill.reward.pictures import PictureReward, RewardConfig
from distill.scenes import COLOURS, SHAPES, SIZES, SceneConfig, SceneGenerator
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from distill.words.told import ToldBatch
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, self_forcing_run

WORLD = SceneConfig(size=64, object_weights=(0.5, 0.5, 0.0), camera_probability=0.0)


class Plain:
    """A codec whose latents are pictures."""

    latent_mean = torch.zeros(1)

    def initial_state(self, *sizes: Any) -> None:
        return None

    def denormalize(self, latents: Tensor, start: int) -> Tensor:
        return latents

    def decode_chunk(self, latents: Tensor, state: None) -> tuple[Tensor, None]:
        return latents, None


def new_judge() -> PictureReward:
    codec: Any = Plain()
    return PictureReward(RewardConfig(share=1.0), WORLD, codec, CPU)


judge = functools.cache(new_judge)


def pictures(count: int, seed: int = 5) -> tuple[Tensor, ToldBatch]:
    """First pictures (B, 3, H, W) of the world and all that can be told of them."""
    drawn = SceneGenerator(WORLD).sample(count, 1, seed)
    used = drawn.radii[:, :, 0] > 0
    labels = {
        name: torch.where(used, drawn.labels[name][:, 0], len(classes))
        for name, classes in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES))
    }
    nothing = torch.zeros(count, 1, dtype=torch.long)
    return drawn.video[:, 0].float().movedim(-1, 1) / 127.5 - 1, ToldBatch(nothing, nothing, labels)


@pytest.mark.slow
def test_pictures_of_the_world_are_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shown_ones, told = pictures(10)

    def check(judge: Callable[[], PictureReward] = judge) -> None:
        shown = judge().shown(shown_ones, told.labels)
        assert int(shown.there.sum()) > 10
        right = shown.fits[shown.there].argmax(1) == shown.shape[shown.there]
        # objects that touch may be read as one another's
        assert float(right.float().mean()) > 0.85
        assert float(shown.beside[shown.there.any(1)].median()) < 0.02
        # without what is told of one of two objects, this one lies beside
        both = told.labels["shape"][:, 1] < len(SHAPES)
        hidden = {
            name: torch.cat([label[:, :1], torch.full_like(label[:, 1:], 99)], 1)
            for name, label in told.labels.items()
        }
        less = judge().shown(shown_ones, hidden)
        assert bool((less.beside[both] > 0.15).all())

    assert_needs(lambda: check(new_judge), monkeypatch, reward, "_FACTORS", (0.3, 0.35, 0.4))
    assert_needs(check, monkeypatch, reward, "_widened", torch.ones_like)


def test_captions_that_do_not_say_which_pixels_are_whose_are_not_judged() -> None:
    shown_ones, told = pictures(6)
    colour = told.labels["colour"]
    two = colour[:, 1] < len(COLOURS)
    unsaid = replace(told, labels={**told.labels, "colour": torch.full_like(colour, len(COLOURS))})
    assert not judge().shown(shown_ones, unsaid.labels).there.any()
    alike = replace(told, labels={**told.labels, "colour": torch.where(two[:, None], colour[:, :1], colour)})
    assert torch.equal(judge().shown(shown_ones, alike.labels).there.any(1), ~two)
    loss, found = judge().loss(shown_ones[:, None], unsaid)
    assert float(loss) == 0
    assert not found


def test_its_gradient_makes_a_picture_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Circles that are told to be squares lose to the circle what they win for the square."""
    shown_ones, told = pictures(4)
    shape = told.labels["shape"]
    there = shape < len(SHAPES)
    other = replace(
        told, labels={**told.labels, "shape": torch.where(there, (shape + 1) % len(SHAPES), shape)}
    )

    def fit(found: Tensor) -> float:
        shown = judge().shown(found, other.labels)
        rows = torch.arange(int(shown.there.sum()))
        return float(shown.fits[shown.there][rows, shown.shape[shown.there]].mean())

    def check() -> None:
        latents = shown_ones[:, None].clone().requires_grad_()
        loss, _ = judge().loss(latents, other)
        (gradient,) = torch.autograd.grad(loss, latents)
        assert fit(shown_ones - 0.03 * gradient[:, 0].sign()) > fit(shown_ones) + 0.002

    def flipped(fits: Tensor, shape: Tensor) -> Tensor:
        return -torch.nn.functional.cross_entropy(fits, shape)

    assert_needs(check, monkeypatch, reward, "cross_entropy", flipped)


@pytest.mark.slow
def test_a_stage_adds_it_on_first_frames_of_captions_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = self_forcing_run(tmp_path)
    rollout = replace(made.rollout, first_share=1.0, first_batch=3)
    run = replace(made, rollout=rollout, reward=RewardConfig(share=1.0, weight=1.0))

    def losses(run: Any) -> dict[str, float]:
        stage = SelfForcingStage(run, CPU)
        randomize(stage.student, 7)
        student = next(step for step in range(9) if stage.target(step) == "student")
        batch = stage.batch(Tick(student, 0, 0, 1, 1, 0.5))
        assert batch.judged is not None
        assert torch.equal(batch.script.words[:, 0], batch.judged.ids)
        assert batch.script.switch is None
        assert not batch.script.tracks.state.any()
        loss, found = stage.loss(stage.student, batch)
        assert loss.requires_grad
        assert stage.batch(Tick(student + 1, 0, 0, 1, 1, 0.5)).judged is None, "a critic has no use for it"
        return {
            name: float(torch.as_tensor(value).detach()) for name, value in {**found, "loss": loss}.items()
        }

    def check() -> None:
        plain = losses(replace(run, reward=RewardConfig(share=1.0, weight=0.0)))
        rewarded = losses(run)
        assert rewarded["loss"] == pytest.approx(plain["loss"] + plain["reward/loss"], rel=1e-4)

    assert_needs(
        check,
        monkeypatch,
        PictureReward,
        "loss",
        lambda self, latents, told: (latents.sum() * 0, {"reward/loss": 1.0}),
    )


def test_where_it_has_nothing_to_judge_it_is_refused(tmp_path: Path) -> None:
    made = self_forcing_run(tmp_path)
    told = r"reward\.share: expected 0 without clips of the procedural world"
    with pytest.raises(ConfigError, match=told):
        SelfForcingStage(replace(made, reward=RewardConfig(share=0.5), prompts="prompts.txt"), CPU)
    with pytest.raises(ConfigError, match=r"reward\.share"):
        RewardConfig(share=2.0)
