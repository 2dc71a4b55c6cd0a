"""Score identity distillation."""

from dataclasses import dataclass
from typing import Literal

import torch

from ..config import NonNegative
from .base import LevelConfig, Loss, Scores, Window, by_part
from .matching import DistributionMatching


@dataclass(frozen=True)
class SiDConfig(LevelConfig):
    """Score identity distillation with the weight `alpha` of the difference of the scores."""

    kind: Literal["sid"] = "sid"
    alpha: NonNegative = 1.0


class ScoreIdentity(DistributionMatching):
    """Score identity distillation (SiD, arXiv 2404.04057, equation 23; as Self Forcing, arXiv 2506.08009,
    uses it).

    The divergence is that of Fisher, `E |real(x_t) - fake(x_t)|^2` of clean estimates, whose gradient knows
    how the scores change with `x_t`: `loss = mean (real - fake) ((real - x) - alpha (real - fake)) / mean |x
    - real|`, with the gradient through both networks. The critic learns as in distribution matching.
    """

    def __init__(self, config: SiDConfig) -> None:
        super().__init__(config)
        self.alpha = config.alpha

    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        """See `Objective.student_loss`; averaged over the fresh frames."""
        x, chosen = window.x, window.fresh
        noisy, sigma, _ = self.config.noised(window, generator)
        real, fake = scores.real(noisy, sigma), scores.fake(noisy, sigma)
        with torch.no_grad():
            scale = by_part((x - real).abs().mean((2, 3, 4)), window).clamp_min(1e-6)
        product = (real - fake) * ((real - x) - self.alpha * (real - fake))
        loss = (product / scale[..., None, None, None])[:, chosen].mean()
        apart = (fake - real)[:, chosen].detach().abs().mean()
        return loss, {"apart": apart, "from_real": scale[:, chosen].mean()}
