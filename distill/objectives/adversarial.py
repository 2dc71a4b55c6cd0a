"""Clips against the student's streams, alone and beside distribution matching."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from streamgen.engine.scheduler import add_noise

from ..config import NonNegative, Positive
from .base import Denoiser, Judge, Judged, LevelConfig, Loss, Objective, Scores, Window
from .matching import DistributionMatching


@dataclass(frozen=True)
class GameConfig(LevelConfig):
    """A relativistic game on noisy latents; `penalty` weighs how much the judgement changes under
    `perturbation` of clips and of the student's windows.
    """

    penalty: NonNegative = 100.0
    perturbation: Positive = 0.01


@dataclass(frozen=True)
class GANConfig(GameConfig):
    """The game alone."""

    kind: Literal["gan"] = "gan"


@dataclass(frozen=True)
class MixedConfig(GameConfig):
    """Distribution matching and the game side by side; `share` weighs the game's losses."""

    kind: Literal["dmd+gan"] = "dmd+gan"
    share: Positive = 0.05


class Adversarial(Objective):
    """A relativistic game (RpGAN, arXiv 1807.00734; R3GAN, arXiv 2501.05441) on noised latents (as DMD2,
    arXiv 2405.14867), judged by the critic's features.

    With judgements `D` of a clip and of a stream at one noise level, the critic's loss is `softplus(D(stream)
    - D(clip))` and the student's the reverse. R1 and R2 penalties keep the judgement smooth; their gradient
    norms are taken by finite differences, `penalty (D(x) - D(x + perturbation noise))^2` (APT, arXiv
    2501.08316, section 3.3), which needs no second derivatives.
    """

    needs_clips: ClassVar[bool] = True

    def __init__(self, config: GameConfig) -> None:
        self.config = config

    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        """See `Objective.student_loss`; averaged over the fresh frames."""
        noisy, sigma, noise = self.config.noised(window, generator)
        assert scores.judged is not None
        return self.at(window, noisy, sigma, noise, scores.judged)

    def at(self, window: Window, noisy: Tensor, sigma: Tensor, noise: Tensor, judged: Judged) -> Loss:
        """The student's loss at given noisy latents, as `student_loss`."""
        with torch.no_grad():
            clips = judged.of_clips(add_noise(judged.x, noise, sigma), sigma)
        lead = (judged.of_student(noisy, sigma) - clips)[:, window.fresh]
        return softplus(-lead).mean(), {"lead": lead.detach().mean()}

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator, judged: Judged | None = None
    ) -> Loss:
        """See `Objective.critic_loss`: the judgement alone, its velocity is not needed."""
        noisy, sigma, noise = self.config.noised(window, generator)
        assert judged is not None
        return self.critic_at(window, noisy.detach(), sigma, noise, judged, generator)

    def critic_at(
        self,
        window: Window,
        noisy: Tensor,
        sigma: Tensor,
        noise: Tensor,
        judged: Judged,
        generator: torch.Generator,
    ) -> Loss:
        """The critic's loss at given noisy latents, as `critic_loss`."""
        fresh = window.fresh
        real = add_noise(judged.x, noise, sigma)
        of_clips, clips = self._judged(judged.of_clips, real, sigma, fresh, generator)
        of_student, streams = self._judged(judged.of_student, noisy, sigma, fresh, generator)
        lead = clips - streams
        penalty = self.config.penalty * (of_clips + of_student)
        told: dict[str, Tensor | float] = {
            "lead": -lead.detach().mean(),
            "right": (lead > 0).float().mean(),
            "penalty": penalty.detach(),
        }
        return softplus(-lead).mean() + penalty, told

    def _judged(
        self, judge: Judge, x: Tensor, sigma: Tensor, fresh: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(mean squared change under a perturbation, judgement of the fresh frames)."""
        shaken = x + self.config.perturbation * torch.randn(x.shape, generator=generator).to(x)
        found = judge(x, sigma)[:, fresh]
        return (found - judge(shaken, sigma)[:, fresh]).square().mean(), found


class MixedMatching(Objective):
    """Distribution matching and the game at the same noisy latents (after One-Forcing): what the scores say
    of a level and what clips look like there pull together.
    """

    needs_clips: ClassVar[bool] = True

    def __init__(self, config: MixedConfig) -> None:
        self.config = config
        self.matching, self.game = DistributionMatching(config), Adversarial(config)

    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        noisy, sigma, noise = self.config.noised(window, generator)
        assert scores.judged is not None
        matched, told = self.matching.at(window, noisy.detach(), sigma, scores)
        won, more = self.game.at(window, noisy, sigma, noise, scores.judged)
        return matched + self.config.share * won, told | more

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator, judged: Judged | None = None
    ) -> Loss:
        noisy, sigma, noise = self.config.noised(window, generator)
        noisy = noisy.detach()
        assert judged is not None
        matched, _ = self.matching.critic_at(window, noisy, sigma, noise, critic)
        judgement, told = self.game.critic_at(window, noisy, sigma, noise, judged, generator)
        return matched + self.config.share * judgement, told | {"matching": matched.detach()}
