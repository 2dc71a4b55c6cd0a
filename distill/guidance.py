"""Guidance strengths in training: a student with them as inputs sees all that sliders can be set to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.context import ChunkPlan
from models.motion_encoder import UNSPECIFIED

from .config import require

_TEMPORAL = 4


@dataclass(frozen=True)
class GuidanceRange:
    """Strengths of joint guidance are drawn uniformly: `text` and `motion` as (least, most)."""

    text: tuple[float, float] = (1.0, 4.0)
    motion: tuple[float, float] = (0.0, 4.0)

    def __post_init__(self) -> None:
        for name, (least, most) in (("text", self.text), ("motion", self.motion)):
            require(0 <= least <= most, f"guidance.{name}", "0 <= least <= most", (least, most))
        require(
            self.text[0] + self.motion[0] >= 1,
            "guidance",
            "a sum of least values >= 1 (unguided)",
            (self.text[0], self.motion[0]),
        )

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Strengths `(B, 2)` of text and motion."""
        low = torch.tensor([self.text[0], self.motion[0]])
        high = torch.tensor([self.text[1], self.motion[1]])
        return low + (high - low) * torch.rand(batch, 2, generator=generator)


def strengths_over(strengths: Tensor, state: Tensor, plan: ChunkPlan, places: Tensor | None = None) -> Tensor:
    """Strengths of each latent frame `(B, T, 2)`, as a stream has them: in chunks of which no track says
    anything motion is 0, and text at least 1.

    Args:
        strengths: `(B, 2)` as they are set.
        state: `(B, N, P)` states of the tracks over the pixel frames of T latent frames, P = 4 T or
            1 + 4 (T - 1).
        plan: chunks.
        places: `(T,)` which latent frames of a stream these are; its first ones if not given.
    """
    said = (state != UNSPECIFIED).any(1)
    said = torch.nn.functional.pad(said, (-said.shape[1] % _TEMPORAL, 0))
    told = said.unflatten(1, (-1, _TEMPORAL)).any(2)
    at = range(told.shape[1]) if places is None else places.tolist()
    chunks = torch.tensor([plan.index_of(place) for place in at], device=told.device)
    told = (told[:, None] & (chunks[:, None] == chunks)).any(2)
    silent = torch.stack([strengths[:, 0].clamp(min=1.0), torch.zeros_like(strengths[:, 0])], 1)
    return torch.where(told[..., None], strengths[:, None], silent[:, None])
