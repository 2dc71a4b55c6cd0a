"""Objects have dark outlines, which in some colours read as another colour: these are no objects."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..evaluation.reading import Reading
from ..scenes import COLOURS

#: Colours that the outlines of objects of other colours read as.
OUTLINES: Mapping[str, tuple[str, ...]] = {
    "orange": ("yellow",),
    "red": ("orange",),
    "purple": ("pink", "white"),
    "pink": ("white",),
}
#: An outline lies within so many pixels of a 64-pixel frame of its object, for at least this share.
_NEAR, _SHARE = 3, 0.8


def alike(colour: int) -> frozenset[int]:
    """Colours that an object beside one of this colour should not have: one reads as the other's outline."""
    name = COLOURS[colour]
    found = {other for other, of in OUTLINES.items() if name in of} | set(OUTLINES.get(name, ()))
    return frozenset(COLOURS.index(other) for other in found)


def without_outlines(reading: Reading) -> Reading:
    """A reading in which a colour is not there where all but a little of it is a larger object's outline."""
    masks, area, centre = reading.masks.clone(), reading.area.clone(), reading.centre.clone()
    for name, others in OUTLINES.items():
        colour = COLOURS.index(name)
        for other in others:
            outline = _is_outline(reading, colour, COLOURS.index(other))
            masks[outline, colour] = False
            area[outline, colour] = 0
            centre[outline, colour] = torch.nan
    return replace(reading, masks=masks, area=area, centre=centre)


def _is_outline(reading: Reading, colour: int, other: int) -> Tensor:
    """(T,) bool: what there is of a colour lies about a larger object of the other one."""
    mask, body = reading.masks[:, colour], reading.masks[:, other]
    reach = round(_NEAR * mask.shape[-1] / 64)
    near = max_pool2d(body[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    pixels = mask.sum((1, 2))
    share = (mask & near).sum((1, 2)) / pixels.clamp(min=1)
    return (share > _SHARE) & (pixels > 0) & (body.sum((1, 2)) > pixels)
