"""Masks: where and when the motion of a file is left unspecified, so that the model decides."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from .tracks import UNSPECIFIED, TrackSet

_MAX_VALUES = 2**27


@dataclass(frozen=True)
class Mask:
    """A part of the frame for some time.

    Attributes:
        covered: bool (frames, H, W) or (1, H, W), spread over the whole frame; frame 0 is `start`, and the
            last one holds on.
        start: first pixel frame.
        stop: first pixel frame after it; None: to the end.
    """

    covered: np.ndarray
    start: int = 0
    stop: int | None = None


def masked(tracks: TrackSet, masks: list[Mask]) -> TrackSet:
    """Tracks whose points are unspecified wherever a mask covers them."""
    state = tracks.state.clone()
    for mask in masks:
        stop = tracks.num_frames if mask.stop is None else min(mask.stop, tracks.num_frames)
        if mask.start >= stop:
            continue
        times, height, width = mask.covered.shape
        covered = torch.from_numpy(mask.covered)
        at = (torch.arange(mask.start, stop) - mask.start).clamp(max=times - 1)
        points = tracks.points[:, mask.start : stop]
        column = (points[..., 0] * width).long().clamp(0, width - 1)
        row = (points[..., 1] * height).long().clamp(0, height - 1)
        hit = covered[at[None].expand_as(row), row, column]
        state[:, mask.start : stop][hit] = UNSPECIFIED
    return TrackSet(tracks.points, state, tracks.pinned, tracks.ids)


def box_mask(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A rectangle in normalised coordinates, as bool (1, 512, 512).

    Raises:
        InputError: it is empty or reaches out of the frame.
    """
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError("box: expected [left, top, right, bottom] in [0, 1], left < right and top < bottom")
    centres = (np.arange(512) + 0.5) / 512
    across = (centres >= left) & (centres <= right)
    down = (centres >= top) & (centres <= bottom)
    return (down[:, None] & across[None])[None]


def read_mask(file: Path) -> np.ndarray:
    """A mask from a picture (what is at least half bright is covered), or from an .npy of shape (H, W) or
    (frames, H, W), as bool (frames, H, W).

    Raises:
        InputError: missing, or neither of them.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix.lower() == ".npy":
            values = np.load(file, allow_pickle=False)
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
                raise InputError(f"{file}: expected an array of numbers")
            covered = values > (0.5 if values.dtype.kind in "fb" else 127 if values.max(initial=0) > 1 else 0)
        else:
            with Image.open(file) as picture:
                covered = np.asarray(picture.convert("L")) >= 128
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be read as a mask (a picture or .npy)") from error
    covered = covered[None] if covered.ndim == 2 else covered
    if covered.ndim != 3 or not 0 < covered.size <= _MAX_VALUES:
        raise InputError(
            f"{file}: expected (height, width) or (frames, height, width), found {covered.shape}"
        )
    return covered
