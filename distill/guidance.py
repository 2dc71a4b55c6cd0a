"""Guidance strengths in training: a student with them as inputs sees all that sliders can be set to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import require


@dataclass(frozen=True)
class GuidanceRange:
    """Strengths of joint guidance are drawn uniformly: `text` and `motion` as (least, most). Where there are
    no tracks motion is 0 and text at least 1, as in a stream.
    """

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

    def sample(self, tracks: Tensor, generator: torch.Generator) -> Tensor:
        """Strengths `(B, 2)` for samples with or without `tracks (B,)`."""
        draws = torch.rand(len(tracks), 2, generator=generator)
        low = torch.tensor([self.text[0], self.motion[0]])
        high = torch.tensor([self.text[1], self.motion[1]])
        strengths = low + (high - low) * draws
        silent = torch.stack([strengths[:, 0].clamp(min=1.0), torch.zeros(len(tracks))], 1)
        return torch.where(tracks[:, None], strengths, silent)
