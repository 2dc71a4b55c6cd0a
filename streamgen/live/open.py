"""From what a user names to a source of frames: a clip, a pipe, pictures in memory."""

import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from ..engine.geometry import LatentGeometry
from ..errors import InputError
from ..suggest import shorten
from ..video.decode_worker import cover
from .clips import clip_frames
from .read import HeldFrames, ReadInput, ThreadFrames, resampled
from .taken import checked_frames
from .y4m import Layout, PipeBytes, frames_of, read_layout

STDIN = "-"


@dataclass(frozen=True)
class RawFrames:
    """What raw RGB frames of a pipe do not say of themselves: width and height, and frames a second (None: as
    the stream).
    """

    size: tuple[int, int]
    rate: float | None = None


def open_input(
    source: str | Path | Tensor | np.ndarray,
    geometry: LatentGeometry,
    chunk_frames: int,
    raw: RawFrames | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> ReadInput:
    """A source of frames, ready to be read; nothing of it is dropped.

    Args:
        source: a clip; `-` for standard input, or a named pipe, with Y4M or raw RGB frames; or uint8 frames
            `(T, H, W, 3)` of the stream's rate.
        geometry: size and rate of the stream.
        chunk_frames: pixel frames of a chunk, of which two lie ready.
        raw: of a pipe of raw frames.
        stopped: asked while a pipe keeps the stream waiting; then `Interrupted` is raised.

    Raises:
        InputError: nothing there, another format, or not one whole frame.
    """
    if isinstance(source, Tensor | np.ndarray):
        frames = checked_frames(source, geometry.height, geometry.width)
        return ReadInput("given frames", HeldFrames(frames))
    if not isinstance(source, str | Path) or not str(source):
        raise InputError(f"input: expected a path, - or frames, found {shorten(source)}")
    name, ahead, size = str(source), max(8, 2 * chunk_frames), (geometry.height, geometry.width)
    path = Path(source)
    piped = name == STDIN or _is_pipe(path)
    if not piped:
        if raw is not None:
            raise InputError(f"--input-size: not here, {name} says its own size")
        if not path.is_file():
            raise InputError(f"input {name}: no such file")
        opener = lambda: clip_frames(path, size, geometry.fps, stopped)  # noqa: E731
        reader = ThreadFrames(name, opener, ahead, stopped=stopped)
    else:
        pipe = PipeBytes(name, _opened(path, name), stopped)
        size_told, rate_told = (None, None) if raw is None else (raw.size, raw.rate)
        layout = read_layout(pipe, size_told, rate_told)
        reader = ThreadFrames(name, lambda: _piped(pipe, layout, geometry), ahead, once=True, stopped=stopped)
    try:
        first = reader.frame(0)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith("input ") else f"input {error}") from None
    if first is None:
        raise InputError(f"input {reader.trouble or f'{name}: has no frames'}")
    return ReadInput(name, reader)


def _piped(pipe: PipeBytes, layout: Layout, geometry: LatentGeometry) -> Iterator[Tensor]:
    pictures = (
        torch.from_numpy(np.array(cover(picture, geometry.height, geometry.width)))
        for picture in frames_of(pipe, layout)
    )
    return resampled(pictures, layout.rate or geometry.fps, geometry.fps)


def _opened(path: Path, name: str) -> BinaryIO:
    if name == STDIN:
        return cast(BinaryIO, sys.stdin.buffer)
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"input {name}: cannot be read ({error.strerror})") from None


def _is_pipe(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):
        return False
