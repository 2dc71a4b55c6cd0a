"""Denoising that begins at a picture instead of at noise (SDEdit, arXiv 2108.01073), masks, and words of the
picture (source-oriented guidance of StreamEdit, arXiv 2605.21466).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.causal_dit import TextContext

from .sampler import Velocity
from .scheduler import add_noise

# velocities, about 1 in size, that differ by less than this are the same
_ALIKE = 0.01


@dataclass(frozen=True, eq=False)
class Source:
    """What a chunk is made from.

    Attributes:
        latents: `(1, T, C, h, w)`, clean.
        mask: `(h, w)` in [0, 1], how much of each cell may change; None: all of them.
        words: what it shows, in words; None: nobody says.
    """

    latents: Tensor
    mask: Tensor | None = None
    words: TextContext | None = None

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        """Where denoising begins; the noise itself at level 1."""
        return noise if sigma == 1 else add_noise(self.latents, noise, sigma)

    def kept(self, clean: Tensor) -> Tensor:
        """A clean estimate, outside of the mask the source."""
        assert self.mask is not None, "asked where there is a mask"
        return torch.lerp(self.latents, clean, self.mask.to(clean.dtype))

    def likened(self, made: Velocity, seen: Velocity, noise: Mapping[float, Tensor]) -> Velocity:
        """A velocity that leaves as it is what the words do not change.

        Beside the chunk, the source itself is noised by the same draws and predicted under its own words. How
        that prediction misses the source is taken off again, wholly where the two predictions are most alike
        and not at all where they differ most; under the same words the source comes back.

        Args:
            made: under the words of the chunk.
            seen: under those of the source.
            noise: what the chunk was noised with, by level.
        """

        def velocity(x: Tensor, sigma: float) -> Tensor:
            drawn = noise[sigma]
            new, old = made(x, sigma), seen(self.noised(drawn, sigma), sigma)
            apart = (new - old).abs().mean(2, keepdim=True)
            low, high = (edge(apart, (1, 3, 4), keepdim=True) for edge in (torch.amin, torch.amax))
            differs = (apart - low) / (high - low).clamp(min=_ALIKE)
            return new + (1 - differs) * (drawn - self.latents - old)

        return velocity


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
