"""How what is seen of a photograph moves: paths of a camera and of patches, outlines, light."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Draw:
    """Numbers from one generator, so that a clip is a function of its seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """One of [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def logarithmic(self, low: float, high: float) -> float:
        """One of [low, high), small ones as often as large ones."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, *shape: int) -> Tensor:
        """Of deviation 1."""
        return torch.randn(shape, generator=self.generator)

    def below(self, count: int) -> int:
        """A whole number of [0, count)."""
        return int(torch.randint(count, (), generator=self.generator))

    def one_of(self, weights: Tensor) -> int:
        """A place of `weights (N,)`, in proportion to them."""
        return int(torch.multinomial(weights, 1, generator=self.generator))

    def chance(self, share: float) -> bool:
        """True in this share of all draws."""
        return self.uniform(0, 1) < share


@dataclass(frozen=True)
class Path:
    """Where a plane is at T moments: `place (T, 2)` in half widths of the picture, `turn (T,)` in radians,
    `size (T,)` relative.
    """

    place: Tensor
    turn: Tensor
    size: Tensor


def draw_path(draw: Draw, moments: Tensor, fastest: float, still: float) -> Path:
    """A path that begins at 0, unturned, of size 1; `moments (T,)` in frames, `fastest` in widths per frame.

    A share of `still` does not move at all; the others go straight, most of them swing or shake on top, and
    some turn or grow.
    """
    zeros = torch.zeros_like(moments)
    if draw.chance(still):
        return Path(torch.stack([zeros, zeros], 1), zeros, zeros + 1)
    speed = 2 * draw.logarithmic(fastest / 50, fastest)
    angle = draw.uniform(0, 2 * math.pi)
    ahead = speed * torch.tensor([math.cos(angle), math.sin(angle)])
    place = moments[:, None] * ahead
    if draw.chance(0.5):
        # to and fro across the way, at the speed of the way
        period, phase = draw.uniform(6, 40), draw.uniform(0, 2 * math.pi)
        reach = speed * period / (2 * math.pi)
        swing = reach * (torch.sin(2 * math.pi * moments / period + phase) - math.sin(phase))
        place = place + swing[:, None] * ahead.flip(0) / speed
    if draw.chance(0.4):
        place = place + draw.logarithmic(0.002, 0.02) * _shaking(draw, moments)
    turn = zeros + moments * (float(draw.normal(1)) * 0.02 if draw.chance(0.4) else 0.0)
    growth = float(draw.normal(1)) * 0.015 if draw.chance(0.5) else 0.0
    return Path(place, turn, torch.exp((moments * growth).clamp(-1.2, 1.2)))


def _shaking(draw: Draw, moments: Tensor) -> Tensor:
    """Small moves of a hand (T, 2): three swings of their own for each direction."""
    periods = 3 + 12 * torch.rand(3, 2, generator=draw.generator)
    phases = 2 * math.pi * torch.rand(3, 2, generator=draw.generator)
    return torch.sin(2 * math.pi * moments[:, None, None] / periods + phases).sum(1)


def draw_light(draw: Draw, moments: Tensor, grid: Tensor) -> Tensor:
    """Factors of brightness (T, 1, H, W) or (T, 1, 1, 1): constant, swinging, or a shadow that passes."""
    factor = torch.ones(len(moments), 1, 1, 1)
    if draw.chance(0.3):
        period, phase = draw.uniform(8, 80), draw.uniform(0, 2 * math.pi)
        swing = draw.uniform(0.02, 0.2) * torch.sin(2 * math.pi * moments / period + phase)
        factor = factor * (1 + swing)[:, None, None, None]
    if draw.chance(0.2):
        angle, soft = draw.uniform(0, 2 * math.pi), draw.logarithmic(0.05, 1.0)
        along = grid[..., 0] * math.cos(angle) + grid[..., 1] * math.sin(angle)
        edge = draw.uniform(-1.2, 1.2) + draw.uniform(-0.08, 0.08) * moments
        shade = torch.sigmoid((along - edge[:, None, None]) / soft)[:, None]
        factor = factor * (1 - draw.uniform(0.1, 0.6) * shade)
    return factor


def draw_outline(draw: Draw) -> "Outline":
    """A blob, or in one case of three a bar."""
    if draw.chance(0.33):
        return Outline(draw.logarithmic(0.03, 0.2), draw.uniform(0.5, 3.0), torch.zeros(4), torch.zeros(4))
    waves = 0.25 * draw.normal(4) / torch.arange(1, 5)
    return Outline(
        draw.logarithmic(0.12, 0.8), None, waves, 2 * math.pi * torch.rand(4, generator=draw.generator)
    )


@dataclass(frozen=True)
class Outline:
    """What is cut out, in half widths: a blob of some `radius`, wavy around it, or a bar `radius` to either
    side and `length` up and down.
    """

    radius: float
    length: float | None
    waves: Tensor
    phases: Tensor

    def inside(self, places: Tensor, pixel: Tensor) -> Tensor:
        """Coverage in [0, 1] of `places (T, H, W, 2)`; `pixel (T,)` is how far one is from the next."""
        x, y = places.unbind(-1)
        if self.length is None:
            angle = torch.atan2(y, x)[..., None]
            around = (self.waves * torch.cos(torch.arange(1, 5) * angle + self.phases)).sum(-1)
            left = self.radius * (1 + around).clamp_min(0.2) - torch.hypot(x, y)
        else:
            left = torch.minimum(self.radius - x.abs(), self.length - y.abs())
        return (left / pixel[:, None, None] + 0.5).clamp(0, 1)
