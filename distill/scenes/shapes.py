"""Shapes as signed distances, and anti-aliased sprites of them at sub-pixel offsets.

Distances follow Inigo Quilez, "2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .vocabulary import SHAPES, SIZE_JITTER, SIZE_RADII

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

#: Width of the dark outline in world units: of the smallest and of the largest objects.
_OUTLINE_WORLD = (1.0, 1.4)
_OUTLINE_SHADE = 0.42
_SHADE_RANGE = (0.8, 1.0)
_UNIT = 128


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


def inside_shape(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Whether points (in radii from the centre) lie inside shapes given by index; all of one shape."""
    inside = torch.zeros_like(x, dtype=torch.bool)
    for index, name in enumerate(SHAPES):
        inside |= (shape == index) & (signed_distance(name, x, y) < 0)
    return inside


@dataclass(frozen=True)
class SpriteSheet:
    """Sprites of one size class.

    A pixel under a sprite becomes ``(keep * below + paint * colour) / 128``.

    Attributes:
        crop: side K of the sprite in pixels (even); pixel j lies at ``j + 0.5 - K/2`` from the corner of
            the base pixel.
        keep, paint: uint8 (shapes * jitters * S * S, K * K), with S the sub-pixel positions per pixel;
            ``keep + paint <= 128``.
    """

    crop: int
    keep: Tensor
    paint: Tensor


def build_sprites(
    size_index: int, pixels_per_unit: float, subpixels: int, device: torch.device
) -> SpriteSheet:
    """All sprites of a size class: every shape, jitter level and sub-pixel offset."""
    largest = SIZE_RADII[size_index] * max(SIZE_JITTER) * pixels_per_unit
    crop = 2 * math.ceil(largest * max(EXTENTS) + 1)
    offsets = torch.arange(subpixels) / subpixels
    local = torch.arange(crop) + 0.5 - crop / 2
    along = local[None, :] - offsets[:, None]
    x = along[None, :, None, :].expand(subpixels, subpixels, crop, crop)
    y = along[:, None, :, None].expand(subpixels, subpixels, crop, crop)
    thin, thick = _OUTLINE_WORLD
    outline = (thin + (thick - thin) * size_index / (len(SIZE_RADII) - 1)) * pixels_per_unit
    low, high = _SHADE_RANGE
    keeps, paints = [], []
    for name in SHAPES:
        for jitter in SIZE_JITTER:
            radius = SIZE_RADII[size_index] * jitter * pixels_per_unit
            distance = signed_distance(name, x / radius, y / radius) * radius
            alpha = (0.5 - distance).clamp(0, 1)
            body = (0.5 - (distance + outline)).clamp(0, 1)
            light = (0.5 - 0.36 * (x + y) / radius).clamp(0, 1)
            shade = _OUTLINE_SHADE + body * (low + (high - low) * light - _OUTLINE_SHADE)
            keep = ((1 - alpha) * _UNIT).round()
            paint = torch.minimum((alpha * shade * _UNIT).round(), _UNIT - keep)
            keeps.append(keep.flatten(2).flatten(0, 1))
            paints.append(paint.flatten(2).flatten(0, 1))
    return SpriteSheet(
        crop, torch.cat(keeps).to(device, torch.uint8), torch.cat(paints).to(device, torch.uint8)
    )
