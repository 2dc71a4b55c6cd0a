"""What pulls a student's streams towards the teacher: objectives of Self Forcing, apart from its rollout.

An objective sees a window of generated latents, two score networks and, where it asks for them, clips. A new
one is a class with the two methods of `Objective`, a config with its own `kind`, and a line in `OBJECTIVES`.
"""

from collections.abc import Callable
from typing import Any

from .adversarial import Adversarial, GANConfig, MixedConfig, MixedMatching
from .base import Denoiser, Judge, Judged, LevelConfig, Loss, Objective, Scores, Window
from .identity import ScoreIdentity, SiDConfig
from .matching import DistributionMatching, DMDConfig, HistoryConfig, HistoryMatching

ObjectiveConfig = DMDConfig | SiDConfig | GANConfig | MixedConfig | HistoryConfig

#: The objective of each config.
OBJECTIVES: dict[type[Any], Callable[[Any], Objective]] = {
    DMDConfig: DistributionMatching,
    SiDConfig: ScoreIdentity,
    GANConfig: Adversarial,
    MixedConfig: MixedMatching,
    HistoryConfig: HistoryMatching,
}

__all__ = [
    "OBJECTIVES",
    "Adversarial",
    "DMDConfig",
    "Denoiser",
    "DistributionMatching",
    "GANConfig",
    "HistoryConfig",
    "HistoryMatching",
    "Judge",
    "Judged",
    "LevelConfig",
    "Loss",
    "MixedConfig",
    "MixedMatching",
    "Objective",
    "ObjectiveConfig",
    "ScoreIdentity",
    "Scores",
    "SiDConfig",
    "Window",
]
