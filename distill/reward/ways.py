"""The paths that the world's motions take, against which that of an object is held."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu

from ..scenes import MOTIONS
from ..scenes.dynamics import NEVER, MotionPlan, Simulation
from ..scenes.shapes import WORLD_SIZE

#: Paths that are drawn of each motion, and of those that have a phase or depend on where the border is.
_PATHS, _MORE = 512, {"circles": 4096, "zigzag": 4096, "bounces": 16384}
#: What keeps inside, and how far another place of a path may be off (of 64), since so many are drawn.
_INSIDE, _SHIFT = ("bounces",), 2.5
#: Distances that an object keeps from the border, of 64: from the smallest to the largest.
_MARGINS = (5.0, 17.0)
_SEED = 4_000_037


class Held(NamedTuple):
    """Paths against those of the world.

    Attributes:
        apart: `(N, M)` how far they are from the nearest one of each motion, root of the mean square.
        steps: `(N, F - 1)` how unlike their steps are those of the nearest one of all.
    """

    apart: Tensor
    steps: Tensor


class Ways:
    """Paths of all motions.

    Where a path lies does not matter, but for motions that turn at the border; it may begin at any time.

    Args:
        frames: the longest path that can be compared, in pixel frames.
        device: of what is compared.
    """

    def __init__(self, frames: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        self._paths = [
            _drawn(motion, _MORE.get(name, _PATHS), frames, generator).to(device)
            for motion, name in enumerate(MOTIONS)
        ]

    def held(self, path: Tensor, times: Tensor) -> Held:
        """Paths `(N, F, 2)`, at pixel frames `times (F,)` since the first, against the nearest one of each
        motion, with a gradient, in units of which a frame has 64. Paths run on beyond the frame where an
        object passes its border.
        """
        aways, columns = [], []
        for name, paths in zip(MOTIONS, self._paths, strict=True):
            known = paths[:, times]
            with torch.no_grad():
                nearest = known[_squares(path, known, name in _INSIDE).argmin(1)]
            away = path - nearest
            middle = away.mean(1, keepdim=True)
            apart = (away - middle).square().sum(-1).mean(1)
            if name in _INSIDE:
                apart = apart + _beyond(middle[:, 0])
            aways.append(away)
            # a root has no gradient at 0
            columns.append((apart + 1e-4).sqrt())
        apart = torch.stack(columns, 1)
        own = torch.stack(aways, 1)[torch.arange(len(path), device=path.device), apart.argmin(1)]
        return Held(apart, (own.diff(dim=1).square().sum(-1) + 1e-4).sqrt())


def _squares(path: Tensor, known: Tensor, inside: bool) -> Tensor:
    """Mean square distances `(N, P)` of paths and known ones `(P, F, 2)`, moved onto each other."""
    middles = path.mean(1), known.mean(1)
    one, other = ((p - m[:, None]).flatten(1) for p, m in zip((path, known), middles, strict=True))
    apart = one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.T
    apart = apart / path.shape[1]
    return apart + _beyond(middles[0][:, None] - middles[1]) if inside else apart


def _beyond(shift: Tensor) -> Tensor:
    """The square of how far paths lie apart beyond what the number of known ones explains."""
    return relu(shift.abs() - _SHIFT).square().sum(-1)


def _drawn(motion: int, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """`count` paths of a motion, `(count, frames, 2)` in world units, as they run on beyond the border."""
    low, high = _MARGINS
    plan = MotionPlan(
        motion=torch.full((count, 2, 1), motion),
        change_frame=torch.full((count,), NEVER),
        margin=low + (high - low) * torch.rand(count, 1, generator=generator),
        drag_start=torch.full((count, 1), NEVER),
        drag_frames=torch.zeros(count, 1, dtype=torch.long),
    )
    return run_on(Simulation(plan, generator).run(frames).positions[:, 0] / WORLD_SIZE) * WORLD_SIZE


def run_on(positions: Tensor) -> Tensor:
    """Positions `(..., T, 2)` on the torus, of which a frame is 1, as a path that does not jump."""
    steps = (positions.diff(dim=-2) + 0.5).remainder(1.0) - 0.5
    return positions[..., :1, :] + torch.cat([torch.zeros_like(positions[..., :1, :]), steps.cumsum(-2)], -2)
