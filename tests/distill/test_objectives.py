"""Distribution matching: its gradient against a closed form, and where it takes a student."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distill.objectives.adversarial
import distill.objectives.base
import distill.objectives.matching
from distill.config import ConfigError, build
from distill.objectives import (
    OBJECTIVES,
    Adversarial,
    Denoiser,
    DistributionMatching,
    DMDConfig,
    FrechetConfig,
    GANConfig,
    HistoryConfig,
    HistoryMatching,
    Judge,
    Judged,
    MixedConfig,
    MixedMatching,
    ScoreIdentity,
    Scores,
    SiDConfig,
    Window,
)
from distill.stages.self_forcing import SelfForcingRun
from streamgen.engine.scheduler import add_noise
from tests.tiny_models import assert_needs

REQUIRED = {"stage": "self_forcing", "run_dir": "runs", "max_steps": 1, "seed": 0}


def gaussian_denoiser(mean: float, deviation: float) -> Denoiser:
    """The exact posterior mean of a Gaussian under `x_t = (1 - s) x + s noise`."""

    def clean(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[..., None, None, None]
        a = 1 - s
        gain = a * deviation**2 / (a**2 * deviation**2 + s**2)
        return mean + gain * (x - a * mean)

    return clean


def window(batch: int = 64, fresh_from: int = 2) -> Window:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 5, 3, 4, 4, generator=generator) * 0.7 - 0.4
    return Window(x.requires_grad_(), torch.arange(5) >= fresh_from, torch.zeros(5, dtype=torch.long))


def test_the_gradient_is_that_of_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """With exact scores of N(m, d^2) for both sides the gradient is known in every element."""
    real, fake = gaussian_denoiser(0.5, 1.2), gaussian_denoiser(-0.4, 0.7)

    def check() -> None:
        piece = window()
        config = DMDConfig(shift=2.0)
        loss, _ = DistributionMatching(config).student_loss(
            piece, Scores(real, fake), torch.Generator().manual_seed(3)
        )
        loss.backward()
        # the same draws, by hand
        generator = torch.Generator().manual_seed(3)
        u = torch.rand(len(piece.x), generator=generator)
        sigma = (2 * u / (1 + u)).clamp(config.lowest, config.highest)
        noise = torch.randn(piece.x.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        a = 1 - s
        x = piece.x.detach()
        noisy = a * x + s * noise

        def clean(mean: float, deviation: float) -> Tensor:
            return mean + a * deviation**2 / (a**2 * deviation**2 + s**2) * (noisy - a * mean)

        scale = (x - clean(0.5, 1.2))[:, 2:].abs().mean((1, 2, 3, 4), keepdim=True)
        expected = (clean(-0.4, 0.7) - clean(0.5, 1.2)) / scale / x[:, 2:].numel()
        grad = piece.x.grad
        assert grad is not None
        assert torch.allclose(grad[:, 2:], expected[:, 2:], rtol=1e-4, atol=1e-9)
        # frames that are only context pull nowhere
        assert not grad[:, :2].any()

    assert_needs(check, monkeypatch, distill.objectives.base, "add_noise", lambda x, noise, sigma: x)


def test_score_identity_has_the_gradient_of_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both scores, with the weight of their difference: known in every element."""
    alpha, sides = 0.7, ((0.5, 1.2), (-0.4, 0.7))

    def check() -> None:
        piece, config = window(fresh_from=0), SiDConfig(alpha=alpha)
        scores = Scores(*(gaussian_denoiser(*side) for side in sides))
        loss, _ = ScoreIdentity(config).student_loss(piece, scores, torch.Generator().manual_seed(3))
        loss.backward()
        sigma, noise = config.sample(piece, torch.Generator().manual_seed(3))
        s, x = sigma[..., None, None, None], piece.x.detach()
        a = 1 - s
        noisy = a * x + s * noise
        gains = [a * d**2 / (a**2 * d**2 + s**2) for _, d in sides]
        real, fake = (m + gain * (noisy - a * m) for (m, _), gain in zip(sides, gains, strict=True))
        apart, slope = real - fake, (gains[0] - gains[1]) * a
        scale = (x - real).abs().mean((1, 2, 3, 4), keepdim=True)
        pull = slope * (real - x - alpha * apart) + apart * (gains[0] * a - 1 - alpha * slope)
        assert piece.x.grad is not None
        torch.testing.assert_close(piece.x.grad, pull / scale / x.numel(), rtol=1e-3, atol=1e-8)

    by_matching = DistributionMatching.student_loss
    assert_needs(check, monkeypatch, ScoreIdentity, "student_loss", by_matching)


def linear_judge(weight: Tensor) -> Judge:
    """How bright a frame is, times a weight."""
    return lambda x, sigma: weight * x.mean((2, 3, 4))


def test_the_game_pulls_streams_and_judgement_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a judgement that is linear: the student's gradient, the critic's, and the penalty."""
    clips = torch.randn(64, 5, 3, 4, 4, generator=torch.Generator().manual_seed(5)) + 1

    def check() -> None:
        weight, piece = torch.tensor(3.0, requires_grad=True), window()
        judged = Judged(clips, linear_judge(weight), linear_judge(weight))
        same = gaussian_denoiser(0, 1)
        game = Adversarial(GANConfig(penalty=2.0, perturbation=0.5))
        sigma, noise = game.config.sample(piece, torch.Generator().manual_seed(3))
        a, x = 1 - sigma[..., None, None, None], piece.x.detach()
        streams, reals = ((a * y + (1 - a) * noise).mean((2, 3, 4))[:, 2:] for y in (x, clips))
        lead = 3 * (streams - reals)
        draws = torch.Generator().manual_seed(3)
        loss, _ = game.student_loss(piece, Scores(same, same, judged=judged), draws)
        loss.backward()
        assert piece.x.grad is not None
        pull = -torch.sigmoid(-lead) * 3 * a[:, 2:, 0, 0, 0] / 48 / lead.numel()
        torch.testing.assert_close(piece.x.grad[:, 2:, 0, 0, 0], pull, rtol=1e-4, atol=1e-9)
        assert not piece.x.grad[:, :2].any()
        weight.grad = None
        loss, told = game.critic_loss(piece, same, torch.Generator().manual_seed(3), judged)
        loss.backward()
        assert weight.grad is not None
        # the penalty goes with the square of the weight
        rest = 2 * float(told["penalty"]) / 3
        expected = (torch.sigmoid(lead) * (streams - reals)).mean() + rest
        torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=1e-6)
        # of both sides, the square of 3 * 0.5 * the mean of 48 numbers
        assert 0.6 < float(told["penalty"]) / (2 * 2 * (3 * 0.5) ** 2 / 48) < 1.5

    reversed_game = lambda x: torch.nn.functional.softplus(-x)  # noqa: E731
    assert_needs(check, monkeypatch, distill.objectives.adversarial, "softplus", reversed_game)


def test_matching_and_game_share_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of noisy latents for both, each with its weight, for student and critic."""
    clips = torch.randn(64, 5, 3, 4, 4, generator=torch.Generator().manual_seed(5)) + 1
    judge = linear_judge(torch.tensor(3.0))
    judged = Judged(clips, judge, judge)
    real, fake = gaussian_denoiser(0.5, 1.2), gaussian_denoiser(-0.4, 0.7)
    config = MixedConfig(share=0.3)

    def check() -> None:
        piece, scores = window(), Scores(real, fake, judged=judged)
        parts = DistributionMatching(config), Adversarial(config)
        found = MixedMatching(config).student_loss(piece, scores, torch.Generator().manual_seed(3))[0]
        own = [part.student_loss(piece, scores, torch.Generator().manual_seed(3))[0] for part in parts]
        torch.testing.assert_close(found, own[0] + 0.3 * own[1])
        found = MixedMatching(config).critic_loss(piece, fake, torch.Generator().manual_seed(3), judged)[0]
        own = [part.critic_loss(piece, fake, torch.Generator().manual_seed(3), judged)[0] for part in parts]
        torch.testing.assert_close(found, own[0] + 0.3 * own[1])

    def apart(
        self: MixedMatching, piece: Window, scores: Scores, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        parts = [part.student_loss(piece, scores, draws)[0] for part in (self.matching, self.game)]
        return parts[0] + 0.3 * parts[1], {}

    assert_needs(check, monkeypatch, MixedMatching, "student_loss", apart)


def test_history_adds_what_the_past_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real score is led away from what it says without the past; not at all at strength 0."""
    real, fake, alone = gaussian_denoiser(0.5, 1.2), gaussian_denoiser(-0.4, 0.7), gaussian_denoiser(0, 1)

    def pull(objective: DistributionMatching, scores: Scores) -> Tensor:
        piece = window()
        objective.student_loss(piece, scores, torch.Generator().manual_seed(3))[0].backward()
        assert piece.x.grad is not None
        return piece.x.grad

    def check() -> None:
        led = lambda x, s: real(x, s) + 1.5 * (real(x, s) - alone(x, s))  # noqa: E731
        plain = DistributionMatching(DMDConfig())
        found = pull(HistoryMatching(HistoryConfig(strength=1.5)), Scores(real, fake, alone))
        torch.testing.assert_close(found, pull(plain, Scores(led, fake)))
        found = pull(HistoryMatching(HistoryConfig(strength=0)), Scores(real, fake, alone))
        torch.testing.assert_close(found, pull(plain, Scores(real, fake)))

    assert_needs(check, monkeypatch, HistoryMatching, "real", DistributionMatching.real)


def test_equal_scores_pull_nowhere() -> None:
    both = gaussian_denoiser(0.2, 0.9)
    piece = window()
    loss, metrics = DistributionMatching(DMDConfig()).student_loss(
        piece, Scores(both, both), torch.Generator().manual_seed(0)
    )
    loss.backward()
    assert float(metrics["apart"]) == 0
    assert piece.x.grad is not None
    assert float(piece.x.grad.abs().max()) < 1e-9


def test_the_size_of_a_sample_does_not_change_its_pull() -> None:
    """Normalised per sample: one ten times as far from the teacher is not pulled ten times as hard."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 2, 3, 4, 4, generator=generator)
    x = torch.cat([near, 10 * near]).requires_grad_()
    far = Scores(lambda x_t, s: torch.zeros_like(x_t), lambda x_t, s: x.detach())
    loss, _ = DistributionMatching(DMDConfig()).student_loss(
        Window(x, torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.long)), far, generator
    )
    loss.backward()
    assert x.grad is not None
    assert torch.allclose(x.grad[0], x.grad[1], rtol=1e-4)


def test_parts_have_levels_and_sizes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are scored apart: each at its own noise level, each pulled by its own distance."""
    torch.manual_seed(0)
    near = torch.randn(64, 1, 3, 4, 4)
    x = torch.cat([near, near, 10 * near], 1).requires_grad_()
    part, levels = torch.tensor([0, 0, 1]), []

    def real(x_t: Tensor, sigma: Tensor) -> Tensor:
        levels.append(sigma)
        return torch.zeros_like(x_t)

    def check() -> None:
        levels.clear()
        x.grad = None
        scores = Scores(real, lambda x_t, sigma: x.detach())
        piece = Window(x, torch.ones(3, dtype=torch.bool), part)
        loss, _ = DistributionMatching(DMDConfig()).student_loss(piece, scores, torch.Generator())
        loss.backward()
        assert torch.equal(levels[0][:, 0], levels[0][:, 1])
        assert (levels[0][:, 1] != levels[0][:, 2]).all()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[:, 0], x.grad[:, 2], rtol=1e-4, atol=1e-9)

    def as_one(values: Tensor, piece: Window) -> Tensor:
        return values.mean(1, keepdim=True).expand_as(values)

    assert_needs(check, monkeypatch, distill.objectives.matching, "by_part", as_one)


class Generator1D(nn.Module):
    """Noise to a number, by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, noise: Tensor) -> Tensor:
        out: Tensor = noise + self.net(noise)
        return out


class Critic1D(nn.Module):
    """Velocity of a noisy number at a level."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        out: Tensor = self.net(torch.stack([x, sigma.expand_as(x)], -1))
        return out[..., 0]


MODES = (-2.0, 2.0)
WIDTH = 0.4


def two_modes(x: Tensor, sigma: Tensor) -> Tensor:
    """Exact posterior mean of an even mixture of two Gaussians."""
    s = sigma[..., None, None, None]
    a = 1 - s
    variance = a**2 * WIDTH**2 + s**2
    logits = torch.stack([-((x - a * mode) ** 2) / (2 * variance) for mode in MODES])
    means = torch.stack([mode + a * WIDTH**2 / variance * (x - a * mode) for mode in MODES])
    return (logits.softmax(0) * means).sum(0)


def train_toy(objective: DistributionMatching) -> Tensor:
    """Samples of a one-step student after training with its critic."""
    torch.manual_seed(0)
    student, critic = Generator1D(), Critic1D()
    slow = torch.optim.Adam(student.parameters(), 1e-3, betas=(0.0, 0.9))
    quick = torch.optim.Adam(critic.parameters(), 4e-3, betas=(0.0, 0.9))
    draws = torch.Generator().manual_seed(1)
    fresh, part = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)

    def roll() -> Tensor:
        # 16 numbers a sample: the gradient is normalised by the mean distance of a sample
        return student(torch.randn(512, 1, generator=draws)).view(32, 1, 1, 4, 4)

    def fake(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma.view(-1, 1, 1, 1, 1) * velocity(x, sigma)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return critic(x, sigma.view(-1, 1, 1, 1, 1))

    for step in range(2400):
        if step % 4 == 3:
            loss, _ = objective.student_loss(Window(roll(), fresh, part), Scores(two_modes, fake), draws)
            slow.zero_grad()
            loss.backward()
            slow.step()
        else:
            loss, _ = objective.critic_loss(Window(roll().detach(), fresh, part), velocity, draws)
            quick.zero_grad()
            loss.backward()
            quick.step()
    with torch.no_grad():
        return student(torch.randn(4000, 1, generator=draws))[:, 0]


def assert_two_modes(samples: Tensor) -> None:
    left, right = samples[samples < 0], samples[samples >= 0]
    assert 0.3 < len(left) / len(samples) < 0.7
    for part, mode in ((left, MODES[0]), (right, MODES[1])):
        assert abs(float(part.median()) - mode) < 0.35
        low, high = part.quantile(torch.tensor([0.16, 0.84])).tolist()
        assert WIDTH / 2 < (high - low) / 2 < 3 * WIDTH


@pytest.mark.slow
def test_a_student_finds_both_modes_of_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their width, which the fake score keeps: pulled by the teacher alone, samples fall to points."""

    def check() -> None:
        assert_two_modes(train_toy(DistributionMatching(DMDConfig(shift=1.0))))

    def alone(
        self: DistributionMatching, piece: Window, scores: Scores, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        with torch.no_grad():
            sigma = torch.rand(len(piece.x), generator=draws).clamp(0.02, 0.98)
            noise = torch.randn(piece.x.shape, generator=draws)
            target = scores.real(add_noise(piece.x, noise, sigma[:, None]), sigma)
        return 0.5 * (piece.x - target).square().mean(), {}

    assert_needs(check, monkeypatch, DistributionMatching, "student_loss", alone)


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="lowest < highest"):
        DMDConfig(lowest=0.9, highest=0.1)
    with pytest.raises(ConfigError, match="shift"):
        DMDConfig(shift=0.0)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({}, DMDConfig),
        ({"kind": "dmd", "shift": 2.0}, DMDConfig),
        ({"kind": "sid", "alpha": 1.2}, SiDConfig),
        ({"kind": "gan", "penalty": 1.0}, GANConfig),
        ({"kind": "dmd+gan", "share": 0.1}, MixedConfig),
        ({"kind": "history", "strength": 0.5}, HistoryConfig),
        ({"kind": "frechet", "memory": 0.5}, FrechetConfig),
    ],
)
def test_a_config_names_its_objective(section: dict[str, Any], kind: type) -> None:
    run = build(SelfForcingRun, REQUIRED | {"objective": section})
    assert type(run.objective) is kind
    assert OBJECTIVES[kind](run.objective).config == run.objective


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"kind": "sidd"},
            r"objective\.kind: expected one of dmd, sid, gan, dmd\+gan, history, frechet, found 'sidd'",
        ),
        ({"kind": "sid", "strength": 1.0}, r"unknown config key 'objective\.strength'"),
        ({"kind": "gan", "penalty": -1.0}, "objective.penalty: expected >= 0"),
        ({"kind": "dmd", "shift": "far"}, "objective.shift: expected float"),
    ],
)
def test_objectives_that_are_none_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SelfForcingRun, REQUIRED | {"objective": section})
