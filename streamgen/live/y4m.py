"""Frames from a pipe: YUV4MPEG2 (as `ffmpeg -f yuv4mpegpipe` and mpv write it) and raw RGB."""

import os
import re
import select
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO

import numpy as np

from ..errors import InputError, Interrupted
from .read import EndsEarly

MAGIC = b"YUV4MPEG2"
# rows and columns of luma that a chroma sample stands for; None: there are none
_CHROMA: dict[str, tuple[int, int] | None] = {
    "420": (2, 2), "420jpeg": (2, 2), "420mpeg2": (2, 2), "420paldv": (2, 2),
    "422": (1, 2), "444": (1, 1), "mono": None,
}  # fmt: skip
_LONGEST_HEADER, _LARGEST_SIDE = 1024, 16384
_LOOK = 0.2
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How the frames of a pipe lie.

    Attributes:
        width, height: in pixels.
        rate: frames a second; None where it does not say.
        chroma: kind of a Y4M stream; None for raw RGB.
        full: whether its luma reaches from 0 to 255.
    """

    width: int
    height: int
    rate: float | None = None
    chroma: str | None = None
    full: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame, its header left out."""
        luma = self.width * self.height
        if self.chroma is None:
            return 3 * luma
        steps = _CHROMA[self.chroma]
        if steps is None:
            return luma
        return luma + 2 * -(-self.height // steps[0]) * -(-self.width // steps[1])

    def picture(self, data: bytes) -> np.ndarray:
        """A frame's bytes as uint8 RGB `(height, width, 3)`."""
        plane = np.frombuffer(data, np.uint8)
        if self.chroma is None:
            return plane.reshape(self.height, self.width, 3)
        luma = plane[: self.width * self.height].reshape(self.height, self.width)
        steps = _CHROMA[self.chroma]
        if steps is None:
            grey = np.zeros((1, 1), np.uint8) + 128
            return _rgb(luma, np.broadcast_to(grey, luma.shape), np.broadcast_to(grey, luma.shape), self.full)
        shape = (-(-self.height // steps[0]), -(-self.width // steps[1]))
        size = shape[0] * shape[1]
        parts = (plane[luma.size + i * size : luma.size + (i + 1) * size].reshape(shape) for i in range(2))
        spread = [part.repeat(steps[0], 0).repeat(steps[1], 1)[: self.height, : self.width] for part in parts]
        return _rgb(luma, spread[0], spread[1], self.full)


class PipeBytes:
    """Bytes of a pipe or file, waiting for them in steps so that whoever waits can be stopped.

    Args:
        name: what messages call it.
        file: opened for reading.
        stopped: asked while nothing comes; then `Interrupted` is raised.
    """

    def __init__(self, name: str, file: IO[bytes], stopped: Callable[[], bool] = lambda: False) -> None:
        self.name, self._file, self._stopped = name, file, stopped
        self._rest = b""
        mode = os.fstat(file.fileno()).st_mode
        self._waits = os.name == "posix" and not stat.S_ISREG(mode)

    def exactly(self, count: int) -> bytes:
        """The next bytes, fewer where they end."""
        parts, have = [self._rest], len(self._rest)
        while have < count and (block := self._block(count - have)):
            parts.append(block)
            have += len(block)
        data = b"".join(parts)
        self._rest = data[count:]
        return data[:count]

    def line(self) -> bytes | None:
        """The next bytes up to a newline, without it; None where there is none in reach."""
        data = self._rest
        while b"\n" not in data and len(data) <= _LONGEST_HEADER:
            block = self._block(_LONGEST_HEADER)
            if not block:
                break
            data += block
        text, newline, rest = data.partition(b"\n")
        if not newline or len(text) > _LONGEST_HEADER:
            self._rest = data
            return None
        self._rest = rest
        return text

    def begins_with(self, magic: bytes) -> bool:
        """Whether these bytes come next; they stay."""
        data = self.exactly(len(magic))
        self._rest = data + self._rest
        return data == magic

    def _block(self, most: int) -> bytes:
        while self._waits and not select.select([self._file], [], [], _LOOK)[0]:
            if self._stopped():
                raise Interrupted("interrupted while waiting for input")
        return os.read(self._file.fileno(), min(most, _BLOCK))


def read_layout(pipe: PipeBytes, size: tuple[int, int] | None, rate: float | None) -> Layout:
    """What a pipe's first bytes, or its reader, say of its frames.

    Args:
        size: width and height of raw frames; None: only Y4M can be read.
        rate: frames a second of raw frames.

    Raises:
        InputError: nothing in it, another format, or a size that is said twice.
    """
    name = pipe.name
    if size is not None:
        if pipe.begins_with(MAGIC):
            raise InputError(f"input {name}: says its own size (Y4M), expected no --input-size")
        width, height = size
        if not all(1 <= side <= _LARGEST_SIDE for side in size):
            raise InputError(f"input {name}: expected sides of 1 to {_LARGEST_SIDE}, found {width}x{height}")
        return Layout(width, height, rate)
    if not pipe.begins_with(MAGIC):
        empty = not pipe.exactly(1)
        found = "nothing in it" if empty else "neither: raw RGB frames need --input-size WIDTHxHEIGHT"
        raise InputError(f"input {name}: expected a Y4M stream (YUV4MPEG2 ...) or raw frames, found {found}")
    line = pipe.line()
    if line is None:
        raise InputError(f"input {name}: its Y4M header has no end")
    return _header(name, line.decode("ascii", "replace"))


def frames_of(pipe: PipeBytes, layout: Layout) -> Iterator[np.ndarray]:
    """Its frames, uint8 RGB `(height, width, 3)`.

    Raises:
        EndsEarly: it ends in the middle of a frame, or what should be one is none.
    """
    number = 0
    while True:
        if layout.chroma is not None:
            line = pipe.line()
            if line is None:
                if pipe.exactly(1):
                    raise EndsEarly(f"{pipe.name}: expected frame {number}, found other bytes")
                return
            if not line.startswith(b"FRAME"):
                raise EndsEarly(f"{pipe.name}: expected frame {number}, found {line[:24]!r}")
        data = pipe.exactly(layout.frame_bytes)
        if not data and layout.chroma is None:
            return
        if len(data) < layout.frame_bytes:
            raise EndsEarly(
                f"{pipe.name}: ends in the middle of frame {number}: {len(data)} of {layout.frame_bytes} "
                "bytes"
            )
        yield layout.picture(data)
        number += 1


def _header(name: str, line: str) -> Layout:
    words = line.split(" ")
    told = {word[0]: word[1:] for word in words[1:] if word and word[0] != "X"}
    full = "XCOLORRANGE=FULL" in words
    if not re.fullmatch(r"[1-9]\d{0,4}", told.get("W", "")) or not re.fullmatch(
        r"[1-9]\d{0,4}", told.get("H", "")
    ):
        raise InputError(f"input {name}: expected width and height in its Y4M header, found {line[:80]!r}")
    width, height = int(told["W"]), int(told["H"])
    if max(width, height) > _LARGEST_SIDE:
        raise InputError(f"input {name}: expected sides of at most {_LARGEST_SIDE}, found {width}x{height}")
    chroma = told.get("C", "420")
    if chroma not in _CHROMA:
        raise InputError(
            f"input {name}: expected Y4M of 8 bits ({', '.join(_CHROMA)}), found C{chroma[:24]}: "
            "ffmpeg writes it with -pix_fmt yuv420p"
        )
    if told.get("I", "p") not in ("p", "?"):
        raise InputError(f"input {name}: expected progressive Y4M (Ip), found I{told['I'][:8]}")
    rate = told.get("F", "").replace("0:0", "")
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", rate)
    if rate and (
        found is None or not int(found[2]) or not 0 < Fraction(int(found[1]), int(found[2])) <= 1000
    ):
        raise InputError(f"input {name}: expected a frame rate of up to 1000, found F{rate[:24]}")
    return Layout(
        width, height, float(Fraction(int(found[1]), int(found[2]))) if found else None, chroma, full
    )


def _rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray, full: bool) -> np.ndarray:
    """BT.601 planes of one size as uint8 RGB."""
    luma = y.astype(np.float32) if full else (y.astype(np.float32) - 16) * (255 / 219)
    scale = 1.0 if full else 255 / 224
    blue, red = ((x.astype(np.float32) - 128) * scale for x in (u, v))
    picture = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
    return picture.round().clip(0, 255).astype(np.uint8)
