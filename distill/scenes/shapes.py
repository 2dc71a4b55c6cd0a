"""Shapes as signed distances.

Distances follow Inigo Quilez, "2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

import math

import torch
from torch import Tensor

from .vocabulary import SHAPES

WORLD_SIZE = 64.0
#: Farthest point of each shape from its centre, in radii; shapes are scaled to comparable area.
EXTENTS: tuple[float, ...] = (1.0, 1.26, 1.42, 1.42, 1.36, 1.14)

_SQUARE_HALF = 0.89
_TRIANGLE_CIRCUMRADIUS = 1.42
_STAR_RADII = (1.42, 0.6)
_DIAMOND_HALF = (0.98, 1.36)
_RING_RADII = (0.5, 1.14)
#: Every shape but the ring contains the disc of this many radii; the ring contains its edge.
BODY_RADIUS = 0.58
#: Band inside the ring, in radii.
RING_BODY_RADII = (0.62, 1.02)
#: Entries per radius of the table of distances, its reach in radii, and its side.
_TABLE_STEPS = 120
_TABLE_REACH = 1.75
_TABLE_SIDE = round(2 * _TABLE_REACH * _TABLE_STEPS)


def _polygon_distance(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a simple polygon, negative inside (even-odd rule)."""
    distance = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for index, (ax, ay) in enumerate(corners):
        bx, by = corners[index - 1]
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, (px - ex * along).square() + (py - ey * along).square())
        if ay != by:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ax + ex * (y - ay) / ey)
    return torch.where(inside, -distance.sqrt(), distance.sqrt())


def _corners(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        h = _SQUARE_HALF
        return [(-h, -h), (h, -h), (h, h), (-h, h)]
    if shape == "diamond":
        w, h = _DIAMOND_HALF
        return [(0, -h), (w, 0), (0, h), (-w, 0)]
    if shape == "triangle":
        radii, count = [_TRIANGLE_CIRCUMRADIUS], 3
    else:
        radii, count = list(_STAR_RADII), 10
    angles = [2 * math.pi * index / count - math.pi / 2 for index in range(count)]
    return [
        (radii[index % len(radii)] * math.cos(angle), radii[index % len(radii)] * math.sin(angle))
        for index, angle in enumerate(angles)
    ]


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in radii, negative inside; x right, y down, in radii from the object's centre."""
    if shape == "circle":
        return torch.hypot(x, y) - 1
    if shape == "ring":
        inner, outer = _RING_RADII
        return (torch.hypot(x, y) - (inner + outer) / 2).abs() - (outer - inner) / 2
    return _polygon_distance(x, y, _corners(shape))


class DistanceTable:
    """Signed distances of all shapes, looked up rather than computed: right within 0.006 radii.

    Distances are exact at the centres of cells; beyond ``_TABLE_REACH`` they are too small, but positive.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        line = (torch.arange(_TABLE_SIDE) + 0.5) / _TABLE_STEPS - _TABLE_REACH
        x, y = line[None, :].expand(_TABLE_SIDE, -1), line[:, None].expand(-1, _TABLE_SIDE)
        self._table = torch.stack([signed_distance(name, x, y) for name in SHAPES]).flatten().to(device)

    def distances(self, shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Signed distances in radii at (x, y) (in radii from the centre) to shapes given by index.

        All three broadcast: of a grid of pixels, x may be a row and y a column.
        """
        index = (shape * _TABLE_SIDE + _cell(y)).int() * _TABLE_SIDE + _cell(x)
        return self._table.index_select(0, index.flatten()).view(index.shape)


def _cell(place: Tensor) -> Tensor:
    return ((place + _TABLE_REACH) * _TABLE_STEPS).int().clamp(0, _TABLE_SIDE - 1)
