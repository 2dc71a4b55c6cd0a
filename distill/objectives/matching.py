"""Distribution matching, also with guidance by the stream's own history."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from streamgen.engine.scheduler import velocity_target

from ..config import NonNegative
from .base import Denoiser, Judged, LevelConfig, Loss, Objective, Scores, Window, by_part


@dataclass(frozen=True)
class DMDConfig(LevelConfig):
    """Distribution matching as it is; see `LevelConfig` for the noise levels."""

    kind: Literal["dmd"] = "dmd"


@dataclass(frozen=True)
class HistoryConfig(LevelConfig):
    """Distribution matching with a real score that leans on the past by `strength`, see `HistoryMatching`."""

    kind: Literal["history"] = "history"
    strength: NonNegative = 1.0


class DistributionMatching(Objective):
    """Distribution matching distillation (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

    The gradient of the divergence between student and teacher at a noise level is the difference of the
    scores there, here of clean estimates: `g = (fake(x_t) - real(x_t)) / mean |x - real(x_t)|`, normalised
    per sample and part, and `loss = 1/2 mean (x - stopgrad(x - g))^2` has the gradient `g` (as in Self
    Forcing, arXiv 2506.08009). Parts that are scored apart have noise levels of their own.
    """

    def __init__(self, config: LevelConfig) -> None:
        self.config = config

    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        """See `Objective.student_loss`; averaged over the fresh frames."""
        noisy, sigma, _ = self.config.noised(window, generator)
        return self.at(window, noisy.detach(), sigma, scores)

    def at(self, window: Window, noisy: Tensor, sigma: Tensor, scores: Scores) -> Loss:
        """The student's loss at given noisy latents, as `student_loss`."""
        x, chosen = window.x, window.fresh
        with torch.no_grad():
            real, fake = self.real(scores, noisy, sigma), scores.fake(noisy, sigma)
            scale = by_part((x - real).abs().mean((2, 3, 4)), window).clamp_min(1e-6)
            gradient = (fake - real) / scale[..., None, None, None]
            target = (x - gradient)[:, chosen]
        loss = 0.5 * (x[:, chosen] - target).square().mean()
        apart = (fake - real)[:, chosen].abs().mean()
        return loss, {"apart": apart, "from_real": scale[:, chosen].mean()}

    def real(self, scores: Scores, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The real score's clean estimate."""
        return scores.real(noisy, sigma)

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator, judged: Judged | None = None
    ) -> Loss:
        """See `Objective.critic_loss`: flow matching on the student's own streams."""
        noisy, sigma, noise = self.config.noised(window, generator)
        return self.critic_at(window, noisy.detach(), sigma, noise, critic)

    def critic_at(
        self, window: Window, noisy: Tensor, sigma: Tensor, noise: Tensor, critic: Denoiser
    ) -> Loss:
        """The critic's loss at given noisy latents, as `critic_loss`."""
        error = (critic(noisy, sigma) - velocity_target(window.x.detach(), noise)).square()
        return error[:, window.fresh].mean(), {}


class HistoryMatching(DistributionMatching):
    """Distribution matching towards what the past makes more likely: after the abstract of History Forcing.

    To the real score is added, `strength` times, the difference of the teacher's estimate with and without
    the past of each chunk: `real + w (real - alone)`. That is guidance by history (as classifier-free
    guidance, arXiv 2207.12598, is by words): at w = 0 distribution matching, above it a student that is
    pulled towards chunks whose past can be told from them.
    """

    needs_alone: ClassVar[bool] = True

    def __init__(self, config: HistoryConfig) -> None:
        super().__init__(config)
        self.strength = config.strength

    def real(self, scores: Scores, noisy: Tensor, sigma: Tensor) -> Tensor:
        assert scores.alone is not None
        real = scores.real(noisy, sigma)
        return real + self.strength * (real - scores.alone(noisy, sigma))
