"""Features of own streams against those of clips, without teacher and critic."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import Checked, Decay, NonNegative, Several, require
from .base import Loss, Moments, Objective, Scores, Window

#: Eigenvalues below this share of the mean have no gradient through their root.
_LEAST = 1e-6


@dataclass(frozen=True)
class FrechetConfig(Checked, section="objective"):
    """Frechet distance of features; `mean` and `covariance` weigh its two terms, `memory` is the decay of
    what is known of streams from update to update, `clips` how many clips tell what is to be matched.
    """

    kind: Literal["frechet"] = "frechet"
    mean: NonNegative = 1.0
    covariance: NonNegative = 1.0
    memory: Decay = 0.9
    clips: Several = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mean + self.covariance > 0, "objective.mean", "above 0, or covariance", self.mean)


@dataclass
class _Known:
    """What is known of streams: sums of weights, of features (F,) and of their products (F, F)."""

    weight: float = 0.0
    first: Tensor | None = None
    second: Tensor | None = None


@dataclass
class FrechetMatching(Objective):
    """The squared Frechet distance between normal distributions of features of streams and of clips (FID,
    arXiv 1706.08500, as a loss; after Frechet Forcing):

        |m - n|^2 + tr(A + B - 2 (B^1/2 A B^1/2)^1/2)

    with means m, n and covariances A, B of streams and clips. The features of an update are too few for a
    covariance: it is taken over earlier updates, too, `memory` of each, and the gradient is that of the
    newest ones. Nothing is compared for a caption alone: what the words do is not part of it.
    """

    config: FrechetConfig
    known: _Known = field(default_factory=_Known)

    needs_scores: ClassVar[bool] = False

    def student_loss(self, window: Window, scores: Scores, generator: torch.Generator) -> Loss:
        assert scores.shown is not None
        # eigenvalues need more digits than half precision has
        with torch.autocast(window.x.device.type, enabled=False):
            streams = self._moments(scores.shown.streams.float())
            mean, spread = distance(streams, scores.shown.clips)
        loss = self.config.mean * mean + self.config.covariance * spread
        return loss, {"apart_mean": mean.detach(), "apart_covariance": spread.detach()}

    def state(self) -> dict[str, Any]:
        """What is known of streams, as plain values and tensors."""
        return dict(vars(self.known))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.known = _Known(**state)

    def _moments(self, features: Tensor) -> Moments:
        """Of these features (N, F), with gradient, and of those before them."""
        kept, known = self.config.memory, self.known
        weight = kept * known.weight + 1
        first, second = features.mean(0), features.mT @ features / len(features)
        if known.first is not None and known.second is not None:
            first = kept * known.first.to(first) + first
            second = kept * known.second.to(second) + second
        self.known = _Known(weight, first.detach(), second.detach())
        mean = first / weight
        return Moments(mean, second / weight - mean[:, None] * mean)


def distance(one: Moments, other: Moments) -> tuple[Tensor, Tensor]:
    """The two terms of the squared Frechet distance: of the means, and of the covariances."""
    root = _root(other.covariance)
    product = root @ one.covariance @ root
    values = torch.linalg.eigvalsh((product + product.mT) / 2)
    least = _LEAST * values.detach().clamp_min(0).mean().clamp_min(1e-12)
    spread = one.covariance.trace() + other.covariance.trace() - 2 * values.clamp_min(least).sqrt().sum()
    return (one.mean - other.mean).square().sum(), spread


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
