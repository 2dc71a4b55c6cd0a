"""Anti-aliased sprites: ready-made ones at sub-pixel offsets, ones of any size from a table of distances."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import EXTENTS, DistanceTable, signed_distance
from .vocabulary import SHAPES, SIZE_JITTER, SIZE_RADII

#: Width of the dark outline in world units: of the smallest and of the largest objects.
_OUTLINE_WORLD = (1.0, 1.4)
_OUTLINE_SHADE = 0.42
_SHADE_RANGE = (0.8, 1.0)
_UNIT = 128
#: Largest radius of a zoomed object, as a factor of its class'.
_LARGEST_ZOOMED = 1.2


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


def _outline(size_index: int, pixels_per_unit: float) -> float:
    """Width in pixels of a size class' outline."""
    thin, thick = _OUTLINE_WORLD
    return (thin + (thick - thin) * size_index / (len(SIZE_RADII) - 1)) * pixels_per_unit


def _crop(radius: float) -> int:
    """Side of the square of pixels that any shape of this radius (pixels) needs, wherever its centre is."""
    return 2 * math.ceil(radius * max(EXTENTS) + 1)


def _paint(distance: Tensor, light: Tensor, outline: float) -> tuple[Tensor, Tensor]:
    """Keep and paint (float, whole numbers) from signed distances in pixels and light in [0, 1]."""
    alpha = (0.5 - distance).clamp(0, 1)
    body = (0.5 - outline - distance).clamp(0, 1)
    low, high = _SHADE_RANGE
    shade = _OUTLINE_SHADE + body * (low + (high - low) * light - _OUTLINE_SHADE)
    keep = ((1 - alpha) * _UNIT).round()
    return keep, torch.minimum((alpha * shade * _UNIT).round(), _UNIT - keep)


def build_sprites(
    size_index: int, pixels_per_unit: float, subpixels: int, device: torch.device
) -> SpriteSheet:
    """All sprites of a size class: every shape, jitter level and sub-pixel offset."""
    crop = _crop(SIZE_RADII[size_index] * max(SIZE_JITTER) * pixels_per_unit)
    offsets = torch.arange(subpixels) / subpixels
    local = torch.arange(crop) + 0.5 - crop / 2
    along = local[None, :] - offsets[:, None]
    x = along[None, :, None, :].expand(subpixels, subpixels, crop, crop)
    y = along[:, None, :, None].expand(subpixels, subpixels, crop, crop)
    outline = _outline(size_index, pixels_per_unit)
    keeps, paints = [], []
    for name in SHAPES:
        for jitter in SIZE_JITTER:
            radius = SIZE_RADII[size_index] * jitter * pixels_per_unit
            distance = signed_distance(name, x / radius, y / radius) * radius
            light = (0.5 - 0.36 * (x + y) / radius).clamp(0, 1)
            keep, paint = _paint(distance, light, outline)
            keeps.append(keep.flatten(2).flatten(0, 1))
            paints.append(paint.flatten(2).flatten(0, 1))
    return SpriteSheet(
        crop, torch.cat(keeps).to(device, torch.uint8), torch.cat(paints).to(device, torch.uint8)
    )


class ZoomedSprites:
    """Sprites of one size class, which decides the outline and the crop, at any radius: several times the
    work of a ready-made one.
    """

    def __init__(self, size_index: int, pixels_per_unit: float, table: DistanceTable) -> None:
        self.crop = _crop(SIZE_RADII[size_index] * _LARGEST_ZOOMED * pixels_per_unit)
        self._outline = _outline(size_index, pixels_per_unit)
        self._radius = SIZE_RADII[size_index] * pixels_per_unit
        self._table = table

    def draw(self, shape: Tensor, scale: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """Keep and paint, int16 (R, K * K), of R sprites.

        Args:
            shape: (R,) index.
            scale: (R,) radius as a factor of the class'.
            part: (R, 2) float offset (x, y) of the centre within its pixel, in pixels.
        """
        radius = self._radius * scale
        local = torch.arange(self.crop, device=scale.device) + 0.5 - self.crop / 2
        away = (local - part[..., None]) / radius[:, None, None]
        x, y = away[:, 0, None, :], away[:, 1, :, None]
        distance = self._table.distances(shape[:, None, None], x, y) * radius[:, None, None]
        light = (0.5 - 0.36 * (x + y)).clamp(0, 1)
        keep, paint = _paint(distance, light, self._outline)
        return keep.short().flatten(1), paint.short().flatten(1)
