"""What pulls a student's streams towards the teacher: objectives of Self Forcing, apart from its rollout.

An objective sees a window of generated latents, two score networks and, where it asks for them, clips; or
features of pictures instead of the networks. A new
one is a class with the two methods of `Objective`, a config with its own `kind`, and a line in `OBJECTIVES`.
"""

from collections.abc import Callable
from typing import Any

from .adversarial import Adversarial, GANConfig, MixedConfig, MixedMatching
from .base import Denoiser, Judge, Judged, Loss, Moments, Objective, Scores, Shown, Window
from .frechet import FrechetConfig, FrechetMatching
from .identity import ScoreIdentity, SiDConfig
from .matching import DistributionMatching, DMDConfig, HistoryConfig, HistoryMatching

ObjectiveConfig = DMDConfig | SiDConfig | GANConfig | MixedConfig | HistoryConfig | FrechetConfig

#: The objective of each config.
OBJECTIVES: dict[type[Any], Callable[[Any], Objective]] = {
    DMDConfig: DistributionMatching,
    SiDConfig: ScoreIdentity,
    GANConfig: Adversarial,
    MixedConfig: MixedMatching,
    HistoryConfig: HistoryMatching,
    FrechetConfig: FrechetMatching,
}

__all__ = [
    "OBJECTIVES",
    "DMDConfig",
    "Denoiser",
    "FrechetConfig",
    "FrechetMatching",
    "Judge",
    "Judged",
    "Loss",
    "Moments",
    "Objective",
    "ObjectiveConfig",
    "Scores",
    "Shown",
    "Window",
]
