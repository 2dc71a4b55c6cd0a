"""What every objective sees, and the noise levels at which distributions are compared."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from streamgen.engine.scheduler import add_noise

from ..config import Checked, Positive, require

#: `(x_t (B, T, C, h, w), sigma (B, T)) -> clean estimate` of a score network, or its velocity.
Denoiser = Callable[[Tensor, Tensor], Tensor]
#: `(x_t (B, T, C, h, w), sigma (B, T)) -> (B, T)`: how much each frame looks like one of a clip.
Judge = Callable[[Tensor, Tensor], Tensor]
Loss = tuple[Tensor, dict[str, Tensor | float]]


@dataclass(frozen=True)
class Judged:
    """Latents of clips `x (B, T, C, h, w)`, as many and as long as the student's, and what the critic's
    features say of noisy windows: of clips at their own conditioning, and of the student's.
    """

    x: Tensor
    of_clips: Judge
    of_student: Judge


@dataclass(frozen=True)
class Moments:
    """Mean `(F,)` and covariance `(F, F)` of features."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Those of the rows of `(N, F)`."""
        mean = features.mean(0)
        apart = features - mean
        return Moments(mean, apart.mT @ apart / len(features))


@dataclass(frozen=True)
class Shown:
    """Features `(N, F)` of pictures of the student's new frames, with a gradient, and the moments of such
    features of clips.
    """

    streams: Tensor
    clips: Moments


def _no_score(x: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("an objective that needs no scores has asked for one")


@dataclass(frozen=True)
class Scores:
    """The real score (a guided teacher) and the fake one (the critic) at a window's conditioning, for
    objectives that need scores; where one asks for them, the real one without what came before each chunk,
    `Judged` clips, and what is `Shown` of pictures.
    """

    real: Denoiser = _no_score
    fake: Denoiser = _no_score
    alone: Denoiser | None = None
    judged: Judged | None = None
    shown: Shown | None = None


@dataclass(frozen=True)
class Window:
    """Generated latents `x (B, T, C, h, w)`, of which the frames with `fresh (T,)` are new; those before them
    are context and carry no gradient. `part (T,)` numbers what is compared at one noise level: 0 everywhere
    for a window as a whole, or its chunks.
    """

    x: Tensor
    fresh: Tensor
    part: Tensor


class Objective(ABC):
    """Losses of student and critic on a window; noise levels and noise come from `generator`.

    Attributes:
        needs_clips: `Scores.judged` and the critic's `judged` have to be given.
        needs_alone: `Scores.alone` has to be given.
        needs_scores: there are a teacher and a critic; without, `Scores.shown` has to be given.
    """

    needs_scores: ClassVar[bool] = True
    needs_clips: ClassVar[bool] = False
    needs_alone: ClassVar[bool] = False

    @abstractmethod
    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        """Loss (scalar) whose gradient reaches the student through `window.x`, and metrics."""

    def critic_loss(
        self, window: Window, critic: Denoiser, generator: torch.Generator, judged: Judged | None = None
    ) -> Loss:
        """Loss (scalar) of the critic, which here gives its velocity, and metrics; none without scores."""
        raise NotImplementedError(f"{type(self).__name__} has no critic")


@dataclass(frozen=True)
class LevelConfig(Checked, section="objective"):
    """Noise levels at which distributions are compared: uniform, pushed towards noise by `shift`, within
    [`lowest`, `highest`].
    """

    shift: Positive = 3.0
    lowest: float = 0.02
    highest: float = 0.98

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.lowest < self.highest < 1, "objective", "0 < lowest < highest < 1", self)

    def sample(self, window: Window, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(sigma `(B, T)`, noise as `window.x`): one level per sample and part."""
        x, parts = window.x.detach(), int(window.part.max()) + 1
        u = torch.rand(len(x), parts, generator=generator)[:, window.part.cpu()]
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).clamp(self.lowest, self.highest)
        return sigma.to(x), torch.randn(x.shape, generator=generator).to(x)

    def noised(self, window: Window, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, sigma `(B, T)`, noise); the gradient of x_t is that of `window.x`."""
        sigma, noise = self.sample(window, generator)
        return add_noise(window.x, noise, sigma), sigma, noise


def by_part(values: Tensor, window: Window) -> Tensor:
    """Means of `values (B, T)` over the fresh frames of each part, at every frame of the part."""
    same = (window.part[:, None] == window.part) & window.fresh
    weights = same.to(values) / same.sum(1, keepdim=True).clamp_min(1)
    return values @ weights.T
