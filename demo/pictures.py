"""Frames as bytes for a browser."""

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .messages import JPEG, PNG

# Pictures of up to this many pixels are sent as they are: they are small, and shown enlarged so that every
# artefact of JPEG would be seen.
_EXACT_PIXELS = 128 * 128
_QUALITY = 85
_THUMB_WIDTH = 96


@dataclass(frozen=True)
class OutFrame:
    """A frame on its way to the viewer; `made` in Unix seconds."""

    epoch: int
    frame: int
    chunk: int
    made: float
    pixels: np.ndarray
    _made: list[tuple[int, bytes]] = field(default_factory=list, compare=False, repr=False)

    def encoded(self) -> tuple[int, bytes]:
        """The picture as `encode` makes it; made once for all who see it."""
        if not self._made:
            self._made.append(encode(self.pixels))
        return self._made[0]


def is_small(pixels: np.ndarray) -> bool:
    """Whether a picture `(H, W, 3)` is sent as it is, which takes so little time that nobody waits for it."""
    return pixels.shape[0] * pixels.shape[1] <= _EXACT_PIXELS


def encode(pixels: np.ndarray) -> tuple[int, bytes]:
    """A uint8 picture `(H, W, 3)` as (`PNG` or `JPEG`, bytes)."""
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if is_small(pixels):
        image.save(out, "PNG", compress_level=1)
        return PNG, out.getvalue()
    image.save(out, "JPEG", quality=_QUALITY)
    return JPEG, out.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """A picture for the scrubber: exact where it is small, else 96 pixels wide."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if height * width <= _EXACT_PIXELS:
        image.save(out, "PNG", compress_level=6)
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    image.resize((_THUMB_WIDTH, max(1, round(_THUMB_WIDTH * height / width)))).save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
