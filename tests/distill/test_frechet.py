"""The Frechet objective: its distance in closed form, what it remembers, and what it sees of streams."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import distill.objectives.frechet
import distill.pictured
from distill.config import ConfigError
from distill.evaluation.features import ReaderFeatures
from distill.objectives import FrechetConfig, FrechetMatching, Moments, Scores, Shown, Window
from distill.objectives.frechet import distance
from distill.pictured import Pictured
from distill.running import ScriptConfig
from distill.scenes import COLOURS, SceneConfig
from distill.scenes.vocabulary import COLOUR_RGB
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from models.video_tokenizer import VideoTokenizer
from tests.distill.test_windows import marked_clips
from tests.models.test_video_tokenizer import TINY
from tests.tiny_models import assert_needs, randomize
from tests.tiny_stages import CPU, self_forcing_run

EMPTY = Window(torch.zeros(1, 1, 1, 1, 1), torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))


def white(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows (count, width) with mean 0 and covariance 1, exactly."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows - rows.mean(0)
    factor = torch.linalg.cholesky(rows.mT @ rows / count)
    return torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT.float()


def test_terms_and_gradient_have_their_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent features: squared differences of means and of deviations, each with its weight."""
    rows, goal = white(64, 3), torch.tensor([[0.3, -1.0, 2.0], [0.5, 1.5, 1.0]])
    config = FrechetConfig(mean=0.7, covariance=0.2, memory=0.0)
    clips = Moments(goal[0], goal[1].square().diag())

    def check() -> None:
        mean = torch.tensor([1.0, 0.0, -0.5], requires_grad=True)
        spread = torch.tensor([2.0, 0.7, 1.0], requires_grad=True)
        shown = Shown(rows * spread + mean, clips)
        loss, told = FrechetMatching(config).student_loss(EMPTY, Scores(shown=shown), torch.Generator())
        loss.backward()
        apart, wide = mean.detach() - goal[0], spread.detach() - goal[1]
        torch.testing.assert_close(told["apart_mean"], apart.square().sum())
        torch.testing.assert_close(told["apart_covariance"], wide.square().sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean.grad, 2 * 0.7 * apart)
        torch.testing.assert_close(spread.grad, 2 * 0.2 * wide, rtol=1e-3, atol=1e-3)

    changed = lambda one, other: distance(one, other)[::-1]  # noqa: E731
    assert_needs(check, monkeypatch, distill.objectives.frechet, "distance", changed)
    turned = lambda one, other: tuple(-x for x in distance(one, other))  # noqa: E731
    assert_needs(check, monkeypatch, distill.objectives.frechet, "distance", turned)


def test_covariances_that_do_not_commute() -> None:
    """Against the eigenvalues of the plain product, which are those of the symmetric one."""
    draws = torch.Generator().manual_seed(3)
    one, other = (torch.randn(4, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    a, b, nothing = one @ one.mT, other @ other.mT, torch.zeros(4, dtype=torch.float64)
    roots = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    found = distance(Moments(nothing, a), Moments(nothing + 1, b))
    torch.testing.assert_close(found[1], a.trace() + b.trace() - 2 * roots)
    assert float(found[0]) == 4
    assert float(distance(Moments(nothing, a), Moments(nothing, a))[1].abs()) < 1e-6


def test_earlier_updates_are_remembered_and_only_the_newest_has_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, clips = FrechetConfig(memory=0.5), Moments(torch.zeros(2), torch.eye(2))
    parts = [white(32, 2, seed) + seed for seed in range(3)]

    def check() -> None:
        objective = FrechetMatching(config)
        for part in parts[:2]:
            objective.student_loss(EMPTY, Scores(shown=Shown(part, clips)), torch.Generator())
        again = FrechetMatching(config)
        again.load_state(objective.state())
        last = parts[2].clone().requires_grad_()
        loss, _ = again.student_loss(EMPTY, Scores(shown=Shown(last, clips)), torch.Generator())
        loss.backward()
        # weights 1/4, 1/2 and 1 of means 0, 1 and 2
        mean = (0.5 + 2) / 1.75
        rows = torch.cat([part.repeat(n, 1) for part, n in zip(parts, (1, 2, 4), strict=True)])
        expected = distance(Moments.of(rows), clips)
        torch.testing.assert_close(loss.detach(), sum(expected), rtol=1e-4, atol=1e-4)
        assert abs(float(rows.mean()) - mean) < 1e-5
        assert last.grad is not None
        assert last.grad.abs().sum() > 0

    assert_needs(check, monkeypatch, FrechetMatching, "load_state", lambda self, state: None)


def test_a_student_takes_on_mean_and_spread() -> None:
    """On one number: pulled by features alone, from far away, to the clips' mean and deviation."""
    draws = torch.Generator().manual_seed(0)
    place = torch.tensor([3.0, 0.2], requires_grad=True)
    slow = torch.optim.Adam([place], 0.05)
    objective = FrechetMatching(FrechetConfig())
    clips = Moments(torch.tensor([-1.0]), torch.tensor([[2.25]]))
    for _ in range(250):
        made = place[0] + place[1] * torch.randn(32, 1, generator=draws)
        loss, _ = objective.student_loss(EMPTY, Scores(shown=Shown(made, clips)), draws)
        slow.zero_grad()
        loss.backward()
        slow.step()
    assert abs(float(place.detach()[0]) + 1) < 0.2
    assert abs(abs(float(place.detach()[1])) - 1.5) < 0.2


def painted(colour: int, at: list[tuple[int, int]], size: int = 32) -> Tensor:
    """A grey video (1, T, 3, size, size) with a square of a colour, its corner at these places."""
    video = torch.full((1, len(at), 3, size, size), -0.2)
    for frame, (row, column) in enumerate(at):
        rgb = torch.tensor(COLOUR_RGB[colour]) / 127.5 - 1
        video[0, frame, :, row : row + 10, column : column + 10] = rgb[:, None, None]
    return video


def test_features_tell_colour_place_and_motion() -> None:
    """Of a square: the area is its colour's, what moves is where it moves, and a still one does not."""
    features = ReaderFeatures(SceneConfig(size=32), CPU)
    colours, beside = len(COLOURS), features.of_a_picture
    nothing = features(torch.full((1, 2, 3, 32, 32), -0.2))[0, 0]
    for colour in range(colours):
        found = features(painted(colour, [(2, 2), (2, 2)]))[0, 0]
        assert len(found) == beside + features.of_a_change
        assert int((found - nothing)[:colours].argmax()) == colour
        assert not found[beside:].any()
    # a square of the one that the ground is least like
    blue = 4
    there = (features(painted(blue, [(2, 2), (2, 2)]))[0, 0] - nothing)[colours : colours + 16].view(4, 4)
    assert there[:2, :2].sum() > 5 * (there.sum() - there[:2, :2].sum()).abs()
    moved = features(painted(blue, [(2, 2), (2, 18)]))[0, 0][beside : beside + 16].view(4, 4)
    assert moved[:2].sum() > 5 * moved[2:].sum()
    video = painted(0, [(2, 2), (3, 3)]).requires_grad_()
    features(video).square().sum().backward()
    assert video.grad is not None
    assert video.grad.isfinite().all()
    assert video.grad.abs().sum() > 0


def test_streams_are_seen_as_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new in mid-stream looks as in a decode of the whole, whatever the sink before it."""
    codec = randomize(VideoTokenizer(replace(TINY, latent_channels=3)))
    assert isinstance(codec, VideoTokenizer)
    clips = marked_clips()
    latents = torch.randn(20, 12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    clips = replace(clips, latents=latents.half())

    class Pixels(torch.nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            return torch.cat([video[:, 1:].flatten(2), video.diff(dim=1).flatten(2)], 2)

    pictured = Pictured(codec, Pixels(), clips, 12, 12, 0)
    seen = latents[:2].clone()
    fresh = seen[:, -3:].clone().requires_grad_()
    with torch.no_grad():
        whole = codec.decode(codec.denormalize(seen, 0))
        expected = (pictured._features(whole[:, -13:]) - pictured.mean) / pictured.scale

    def check() -> None:
        shown = pictured.shown(seen, fresh, torch.arange(12))
        torch.testing.assert_close(shown.streams, expected, rtol=1e-3, atol=1e-3)
        late = torch.cat([torch.tensor([0]), torch.arange(21, 32)])
        behind_a_sink = pictured.shown(seen, fresh, late).streams
        torch.testing.assert_close(behind_a_sink, expected, rtol=1e-3, atol=1e-3)
        fresh.grad = None
        shown.streams.square().sum().backward()
        assert fresh.grad is not None
        assert fresh.grad.abs().sum() > 0

    decoded = distill.pictured.decoded
    alone = lambda codec, past, fresh, start: decoded(codec, past[:, :0], fresh, start)  # noqa: E731
    assert_needs(check, monkeypatch, distill.pictured, "decoded", alone)
    rows = torch.cat([pictured._features(video) for video in pictured._clips(clips, 12, 12, 0)])
    own = Moments.of((rows - pictured.mean) / pictured.scale)
    torch.testing.assert_close(own.mean, torch.zeros_like(own.mean), rtol=0, atol=1e-4)


def test_the_stage_needs_no_teacher_and_no_critic(tmp_path: Path) -> None:
    run = self_forcing_run(
        tmp_path, teacher="/no/such", objective=FrechetConfig(clips=8), script=ScriptConfig(switch_share=0)
    )
    stage = SelfForcingStage(run, CPU)
    randomize(stage.student, 3)
    assert set(stage.modules()) == {"student"}
    assert not stage.frozen()
    assert set(stage.optimizer_groups()) == {"student"}
    assert {stage.target(step) for step in range(9)} == {"student"}
    batch = replace(stage.batch(Tick(0, 0, 0, 1, 1, 0.5)), limit=99, first=False)
    for _ in range(2):
        stage.student.zero_grad(set_to_none=True)
        loss, told = stage.loss(stage.student, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert {"apart_mean", "apart_covariance"} <= set(told)
        assert any(p.grad is not None and bool(p.grad.any()) for p in stage.student.parameters())
    again = SelfForcingStage(run, CPU)
    again.student.load_state_dict(stage.student.state_dict())
    again.load_state(stage.state())
    losses = [one.loss(one.student, batch)[0].detach() for one in (stage, again)]
    assert torch.equal(*losses)
    with pytest.raises(ConfigError, match=r"rollout\.first_share: expected 0: frechet compares pictures"):
        SelfForcingStage(replace(run, rollout=replace(run.rollout, first_share=0.5)), CPU)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    with pytest.raises(ConfigError, match=r"prompts: expected null, since frechet needs clips"):
        SelfForcingStage(replace(run, prompts=str(prompts)), CPU)
