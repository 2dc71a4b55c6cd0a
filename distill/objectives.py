"""What pulls a student's streams towards the teacher: objectives of Self Forcing, apart from its rollout.

An objective sees a window of generated latents and two score networks; another one (SiD, an adversarial
loss) is a class with the same two methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from streamgen.engine.scheduler import add_noise, velocity_target

from .config import require

#: `(x_t (B, T, C, h, w), sigma (B, T)) -> clean estimate` of a score network, or its velocity.
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scores:
    """The real score (a guided teacher) and the fake one (the critic) at a window's conditioning."""

    real: Denoiser
    fake: Denoiser


@dataclass(frozen=True)
class Window:
    """Generated latents `x (B, T, C, h, w)`, of which the frames with `fresh (T,)` are new; those before them
    are context and carry no gradient. `part (T,)` numbers what is compared at one noise level: 0 everywhere
    for a window as a whole, or its chunks.
    """

    x: Tensor
    fresh: Tensor
    part: Tensor


class Objective(Protocol):
    """Losses of student and critic on a window; noise levels and noise come from `generator`."""

    def student_loss(
        self, window: Window, scores: Scores, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) whose gradient reaches the student through `window.x`, and metrics."""
        ...

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss (scalar) of the critic, which here gives its velocity, and metrics."""
        ...


@dataclass(frozen=True)
class DMDConfig:
    """Noise levels at which distributions are compared: uniform, pushed towards noise by `shift`, within
    [`lowest`, `highest`].
    """

    shift: float = 3.0
    lowest: float = 0.02
    highest: float = 0.98

    def __post_init__(self) -> None:
        require(0 < self.lowest < self.highest < 1, "objective", "0 < lowest < highest < 1", self)
        require(self.shift > 0, "objective.shift", "> 0", self.shift)


class DistributionMatching:
    """Distribution matching distillation (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

    The gradient of the divergence between student and teacher at a noise level is the difference of the
    scores there, here of clean estimates: `g = (fake(x_t) - real(x_t)) / mean |x - real(x_t)|`, normalised
    per sample and part, and `loss = 1/2 mean (x - stopgrad(x - g))^2` has the gradient `g` (as in Self
    Forcing, arXiv 2506.08009). Parts that are scored apart have noise levels of their own.
    """

    def __init__(self, config: DMDConfig) -> None:
        self.config = config

    def student_loss(
        self, window: Window, scores: Scores, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `Objective.student_loss`; averaged over the fresh frames."""
        x = window.x
        with torch.no_grad():
            noisy, sigma, _ = self._noised(window, generator)
            real, fake = scores.real(noisy, sigma), scores.fake(noisy, sigma)
            chosen = window.fresh
            scale = _by_part((x - real).abs().mean((2, 3, 4)), window).clamp_min(1e-6)
            gradient = (fake - real) / scale[..., None, None, None]
            target = (x - gradient)[:, chosen]
        loss = 0.5 * (x[:, chosen] - target).square().mean()
        apart = (fake - real)[:, chosen].abs().mean()
        return loss, {"apart": apart, "from_real": scale[:, chosen].mean()}

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `Objective.critic_loss`: flow matching on the student's own streams."""
        x = window.x.detach()
        noisy, sigma, noise = self._noised(window, generator)
        error = (critic(noisy, sigma) - velocity_target(x, noise)).square()
        return error[:, window.fresh].mean(), {}

    def _noised(self, window: Window, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, sigma `(B, T)`, noise): one level per sample and part."""
        config, x = self.config, window.x.detach()
        parts = int(window.part.max()) + 1
        u = torch.rand(len(x), parts, generator=generator)[:, window.part.cpu()]
        sigma = (config.shift * u / (1 + (config.shift - 1) * u)).clamp(config.lowest, config.highest)
        sigma = sigma.to(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        return add_noise(x, noise, sigma), sigma, noise


def _by_part(values: Tensor, window: Window) -> Tensor:
    """Means of `values (B, T)` over the fresh frames of each part, at every frame of the part."""
    same = (window.part[:, None] == window.part) & window.fresh
    weights = same.to(values) / same.sum(1, keepdim=True).clamp_min(1)
    return values @ weights.T
