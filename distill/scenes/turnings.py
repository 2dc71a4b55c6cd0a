"""Where paths turn, by latent frame: what a model has to foresee, and seldom sees."""

import math

import torch
from torch import Tensor

#: Pixel frames per latent frame behind the first.
_TEMPORAL = 4
#: A path turns where its heading changes by more than this from one latent frame to the next, or within one.
#: The slowest circles turn by 29 degrees in a latent frame.
_LEAST_TURN = math.radians(25)
#: Slower than this (frame sizes per pixel frame) is at rest and has no heading.
_AT_REST = 0.15 / 64


def turning_latents(centres: Tensor, free: Tensor) -> Tensor:
    """Latent frames in which an object's own path turns, bool `(B, O, T)`.

    Args:
        centres: `(B, O, F, 2)` normalised, over `F = 1 + 4 (T - 1)` pixel frames; they may wrap around.
        free: `(B, O, F)` bool: the object is there and goes its own way, neither dragged nor carried by the
            camera.
    """
    steps = centres.diff(dim=2)
    steps = (steps + 0.5).remainder(1.0) - 0.5
    # latent frame l > 0 has the steps that lead to its pixel frames 4l - 3 .. 4l
    grouped = steps.unflatten(2, (-1, _TEMPORAL))
    own = free[:, :, 1:].unflatten(2, (-1, _TEMPORAL)).all(-1)
    within = _turn(grouped[..., 0, :], grouped[..., -1, :])
    mean = grouped.mean(-2)
    since = torch.zeros_like(within)
    since[:, :, 1:] = _turn(mean[:, :, :-1], mean[:, :, 1:])
    turns = (torch.maximum(within, since) > _LEAST_TURN) & own
    before = own.clone()
    before[:, :, 1:] &= own[:, :, :-1]
    still = torch.zeros_like(turns[:, :, :1])
    return torch.cat([still, turns & before], 2)


def _turn(before: Tensor, after: Tensor) -> Tensor:
    """Angle between steps `(..., 2)`, 0 where one of them is rest."""
    moving = (before.norm(dim=-1) > _AT_REST) & (after.norm(dim=-1) > _AT_REST)
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    angle = torch.atan2(cross, (before * after).sum(-1)).abs()
    return torch.where(moving, angle, torch.zeros_like(angle))
