"""Denoising that begins at a picture instead of at noise (SDEdit, arXiv 2108.01073), and masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .scheduler import add_noise


@dataclass(frozen=True, eq=False)
class Source:
    """What a chunk is made from.

    Attributes:
        latents: `(1, T, C, h, w)`, clean.
        mask: `(h, w)` in [0, 1], how much of each cell may change; None: all of them.
    """

    latents: Tensor
    mask: Tensor | None = None

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        """Where denoising begins; the noise itself at level 1."""
        return noise if sigma == 1 else add_noise(self.latents, noise, sigma)

    def kept(self, clean: Tensor) -> Tensor:
        """A clean estimate, outside of the mask the source."""
        assert self.mask is not None, "asked where there is a mask"
        return torch.lerp(self.latents, clean, self.mask.to(clean.dtype))


def levels_from(levels: tuple[float, ...], strength: float) -> tuple[float, ...]:
    """Of falling noise levels that end in 0 those from the first one at or under `strength` on; where all are
    above it, the last one but 0.
    """
    begin = next((i for i, level in enumerate(levels[:-1]) if level <= strength + 1e-6), len(levels) - 2)
    return levels[begin:]


def strength_problem(levels: tuple[float, ...], strength: float) -> str | None:
    """Why no noise level of these is at or under a strength, in one line; None where one is."""
    lowest = levels[-2]
    if strength + 1e-6 >= lowest:
        return None
    named = ", ".join(f"{level:g}" for level in sorted(levels[:-1]))
    return (
        f"strength: expected {lowest:.3g} to 1 for the noise levels of this model ({named}), "
        f"found {strength:g}"
    )
