"""Reading an image or a clip as frames of a wanted size and rate.

decord reads where it has wheels, PyAV elsewhere and wherever decord fails; both run in a child process that
is killed when its time is up (`decode_worker`), so no file can hang or crash the caller.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from . import decode_worker
from .decode_child import decoding

T = TypeVar("T")
# The EXIF tag, and its values for pictures that were taken with the camera on its side.
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
# How much longer one side may be before it is said that a picture is cropped.
_CROPPED = 1.1


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """An image file as uint8 RGB (height, width, 3), scaled to cover and cropped at the centre.

    Of an animation it is the first frame; transparency is laid over white; the camera's orientation is
    respected.

    Raises:
        InputError: the file is missing or cannot be read as an image.
    """
    _check_size(height, width)
    file = _existing(path)
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                pixels = (np.asarray(image) / 257).round().astype(np.uint8)
                image = Image.fromarray(pixels)
            if "transparency" in image.info or "A" in image.getbands():
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            picture = np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InputError(f"{path}: has too many pixels: expected at most {most} million") from error
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read as an image (damaged, cut off or not an image)") from error
    return np.array(decode_worker.cover(picture, height, width))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file as it is seen, with the camera's orientation respected.

    Raises:
        InputError: the file is missing or cannot be read as an image.
    """
    file = _existing(path)
    try:
        with Image.open(file) as opened:
            turned = opened.getexif().get(_ORIENTATION, 1) in _LYING
            return opened.size[::-1] if turned else opened.size
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image (damaged, cut off or not an image)") from error


def crop_note(path: str | Path, width: int, height: int) -> str | None:
    """One line where an image file loses a tenth of a side or more on its way to this shape.

    Raises:
        InputError: see `image_size`.
    """
    found = image_size(path)
    shapes = sorted((found[0] / found[1], width / height))
    if shapes[1] <= _CROPPED * shapes[0]:
        return None
    return f"image: cropped at the centre, from {found[0]}x{found[1]} to the shape of {width}x{height}"


def read_clip(
    path: str | Path, fps: float, height: int, width: int, max_frames: int, timeout: float = 60.0
) -> np.ndarray:
    """The first frames of a clip, resampled to `fps` by timestamps.

    Frame k is the one on screen k / fps seconds after the first. Frames are scaled to cover and cropped at
    the centre; rotation metadata and non-square pixels are respected.

    Args:
        path: any video (or image) FFmpeg reads.
        fps: frames per second of the result.
        height: rows of the result.
        width: columns of the result.
        max_frames: frames to return at most; reading stops there.
        timeout: seconds after which this call returns, whatever the decoder does.

    Returns:
        uint8 RGB (T, height, width, 3), 1 <= T <= max_frames.

    Raises:
        InputError: the file is missing, is not a video, has no video or no frames, ends before its own
            table of frames does, or takes longer than `timeout`.
    """
    _check_size(height, width)
    if not (math.isfinite(fps) and fps > 0 and max_frames > 0 and timeout > 0):
        raise ValueError(f"expected fps, max_frames, timeout above 0, found {fps}, {max_frames}, {timeout}")
    file = _existing(path)
    request = decode_worker.Request(str(file.resolve()), float(fps), height, width, max_frames)
    deadline = time.monotonic() + timeout
    if importlib.util.find_spec("decord") is not None:
        # Half of the time, so that PyAV can still have a go where decord hangs.
        with contextlib.suppress(_DecoderDied, subprocess.TimeoutExpired):
            return _in_child(path, request, "decord", timeout / 2)
    try:
        return _in_child(path, request, "pyav", deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: decoding took longer than {timeout:g} s") from None
    except _DecoderDied as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from None


def clip_length(path: str | Path, fps: float, timeout: float = 600.0) -> int:
    """How many frames a clip has at a rate; it is gone through once.

    Raises:
        InputError: see `read_clip`.
    """
    file = _existing(path)
    about = file.stat()
    return _length_as_of(str(file), fps, timeout, about.st_mtime_ns, about.st_size)


@functools.lru_cache(1024)
def _length_as_of(path: str, fps: float, timeout: float, changed_ns: int, size: int) -> int:
    request = decode_worker.Request(str(Path(path).resolve()), float(fps), 1, 1, 0)
    try:
        return _run_child(path, request, {"count": True}, timeout, _count)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: its frames cannot be counted within {timeout:g} s: say a length") from None
    except _DecoderDied as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from None


def _count(folder: Path) -> int:
    return int(Path(folder, "count.txt").read_text(encoding="utf-8"))


class _DecoderDied(Exception):
    """The child ended without frames and without a verdict on the clip."""


def _in_child(path: str | Path, request: decode_worker.Request, backend: str, seconds: float) -> np.ndarray:
    return _run_child(path, request, {"backend": backend}, seconds, lambda f: np.load(Path(f, "frames.npy")))


def _run_child(
    path: str | Path,
    request: decode_worker.Request,
    what: dict[str, Any],
    seconds: float,
    result: Callable[[Path], T],
) -> T:
    with decoding(request, what) as at_work:
        code = at_work.child.wait(seconds)
        if code == 0:
            return result(at_work.folder)
        verdict = at_work.verdict(code)
        if verdict is not None:
            raise InputError(f"{path}: {verdict}")
        words = at_work.last_words() if code > 0 else ""
        raise _DecoderDied(words or f"the decoder crashed with {code}")


def _existing(path: str | Path) -> Path:
    file = Path(path)
    try:
        if not file.exists():
            raise InputError(f"{path}: no such file")
        if not file.is_file():
            raise InputError(f"{path}: not a file")
        with file.open("rb") as opened:
            if not opened.read(1):
                raise InputError(f"{path}: the file is empty")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    return file


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"expected height and width above 0, found {height} and {width}")
