"""A picture in mid-stream, and masks: which part of the input may change."""

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import InputError
from ..motion.masks import box_mask, read_mask
from ..suggest import shorten, unknown_key
from ..video.decode_worker import cover
from ..video.read import crop_note, read_image

PictureUse = Literal["scene", "reference"]
_KEYS = ("use", "png", "file")
_LARGEST_SIDE = 8192


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and what it is to a stream.

    Attributes:
        pixels: uint8 `(H, W, 3)` of any size; streams take it scaled to cover theirs, cropped at the centre.
        use: `scene`: the past is forgotten and it begins a scene; `reference`: it takes the sink's place, so
            that the stream goes on and looks like it.
        note: what is worth saying of it, such as that it was cropped.

    Raises:
        InputError: no picture, or another use.
    """

    pixels: Tensor
    use: PictureUse = "scene"
    note: str | None = None

    def __post_init__(self) -> None:
        if self.use not in get_args(PictureUse):
            raise InputError(f"picture: use: expected scene or reference, found {shorten(self.use)}")
        x: Any = self.pixels
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x))
            object.__setattr__(self, "pixels", x)
        fits = isinstance(x, Tensor) and x.dtype == torch.uint8 and x.dim() == 3 and x.shape[2] == 3
        if not fits or not 1 <= min(x.shape[:2]) <= max(x.shape[:2]) <= _LARGEST_SIDE:
            raise InputError(f"picture: expected uint8 pixels (H, W, 3), found {shorten(_form(x))}")

    @classmethod
    def read(cls, file: str | Path, height: int, width: int, use: PictureUse = "scene") -> "Picture":
        """A picture file, scaled to cover and cropped at the centre.

        Raises:
            InputError: it cannot be read.
        """
        pixels = torch.from_numpy(read_image(file, height, width))
        return cls(pixels, use, crop_note(file, width, height))

    def covering(self, height: int, width: int) -> "Picture":
        """At a stream's size; itself where it has that."""
        found = tuple(self.pixels.shape[:2])
        if found == (height, width):
            return self
        pixels = torch.from_numpy(np.array(cover(self.pixels.cpu().numpy(), height, width)))
        note = f"picture: {found[1]}x{found[0]}, scaled to cover {width}x{height} and cropped at the centre"
        return replace(self, pixels=pixels, note=note)

    def png(self) -> bytes:
        """The pixels, without loss."""
        out = io.BytesIO()
        Image.fromarray(self.pixels.cpu().numpy()).save(out, "PNG")
        return out.getvalue()

    @classmethod
    def of_png(cls, data: bytes, use: Any) -> "Picture":
        """Inverse of `png`.

        Raises:
            InputError: no picture.
        """
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if max(opened.size) > _LARGEST_SIDE:
                    raise InputError(f"picture: expected sides of at most {_LARGEST_SIDE}")
                pixels = np.array(opened.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"picture: cannot be read ({type(error).__name__})") from None
        return cls(torch.from_numpy(pixels), use)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {"use": self.use, "png": base64.b64encode(self.png()).decode()}

    @classmethod
    def from_json(cls, row: Any) -> "Picture":
        """Inverse of `to_json`.

        Raises:
            InputError: another form.
        """
        if not isinstance(row, Mapping) or not isinstance(row.get("png"), str):
            raise InputError(f"picture: expected use and png, found {shorten(row)}")
        for key in row:
            if key not in _KEYS:
                raise InputError(f"picture: {unknown_key(key, _KEYS)}")
        try:
            data = base64.b64decode(row["png"], validate=True)
        except (binascii.Error, ValueError):
            raise InputError("picture: png: expected base64") from None
        return cls.of_png(data, row.get("use", "scene"))


def checked_mask(mask: Any) -> Tensor:
    """A mask as an event has it: float32 `(h, w)` in [0, 1] of any size, 1 where the picture may change.

    Args:
        mask: numbers or truth values `(H, W)`, a tensor or array.

    Raises:
        InputError: another form, or values outside.
    """
    x = torch.from_numpy(np.ascontiguousarray(mask)) if isinstance(mask, np.ndarray) else mask
    if not isinstance(x, Tensor) or x.dim() != 2 or 0 in x.shape or max(x.shape) > _LARGEST_SIDE:
        raise InputError(f"mask: expected numbers (height, width), found {shorten(_form(x))}")
    x = x.detach().cpu().float()
    if not bool(torch.isfinite(x).all()) or float(x.min()) < 0 or float(x.max()) > 1:
        raise InputError("mask: expected numbers from 0 (keep) to 1 (may change), found others")
    return x.clone()


def latent_mask(mask: Tensor, height: int, width: int) -> Tensor | None:
    """A mask on the latent grid, `(height, width)`: how much of each cell it covers. None where it covers
    all, which is no mask.
    """
    cells = adaptive_avg_pool2d(mask[None], (height, width))[0] if mask.shape != (height, width) else mask
    return None if bool((cells == 1).all()) else cells.clone()


def mask_of(value: Any) -> Tensor:
    """A mask from a file (a picture, bright where it may change, or .npy), from `{"box": [x, y, x, y]}`, or
    None: everywhere.

    Raises:
        InputError: another form, or a file that cannot be read.
    """
    if value is None:
        return torch.ones(1, 1)
    if isinstance(value, Mapping):
        for key in value:
            if key != "box":
                raise InputError(f"mask: {unknown_key(key, ('box',))}")
        box = value.get("box")
        whole = isinstance(box, list | tuple) and len(box) == 4
        sides = list(box) if isinstance(box, list | tuple) else []
        if not whole or any(isinstance(x, bool) or not isinstance(x, int | float) for x in sides):
            raise InputError(f"mask: box: expected [left, top, right, bottom], found {shorten(box)}")
        try:
            return torch.from_numpy(box_mask(*sides)[0]).float()
        except InputError as error:
            raise InputError(f"mask: {error}") from None
    if not isinstance(value, str | Path):
        raise InputError(f"mask: expected a file, a box or null, found {shorten(value)}")
    covered = read_mask(Path(value))
    if len(covered) != 1:
        raise InputError(f"mask: {value}: expected (height, width), found {covered.shape}")
    return torch.from_numpy(covered[0]).float()


def mask_to_json(mask: Tensor) -> dict[str, Any]:
    """Plain values that `mask_from_json` reads."""
    data = mask.numpy().astype("<f4").tobytes()
    return {"shape": list(mask.shape), "float32": base64.b64encode(data).decode()}


def mask_from_json(row: Any) -> Tensor:
    """Inverse of `mask_to_json`; null is everywhere.

    Raises:
        InputError: another form.
    """
    if row is None:
        return torch.ones(1, 1)
    try:
        values = np.frombuffer(base64.b64decode(row["float32"]), "<f4").reshape(row["shape"])
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise InputError(f"mask: expected shape and float32, found {shorten(row)}") from None
    return checked_mask(values.copy())


def _form(x: Any) -> Any:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" if isinstance(x, Tensor) else x
