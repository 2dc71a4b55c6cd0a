"""The session so far on disk: all frames of the branch that plays, and of those that were left.

Frames are kept losslessly compressed in one temporary file, so that MP4 and digests come out as
`streamgen render` would make them; a branch is a list of places in that file.
"""

import contextlib
import hashlib
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamgen.errors import InputError
from streamgen.video.write import VideoFileSink


@dataclass(frozen=True)
class Piece:
    """Frames `[start, start + frames)` of a branch, at a place in the file."""

    start: int
    frames: int
    offset: int
    size: int


@dataclass(frozen=True)
class Lineage:
    """The recorded pieces of one branch, in order from frame 0; `full` once the disk budget was used up."""

    pieces: tuple[Piece, ...] = ()
    full: bool = False


class Recording:
    """Frames of one session. Thread-safe.

    Args:
        height, width: of the frames.
        budget: bytes on disk; what comes after is not recorded.
    """

    def __init__(self, height: int, width: int, budget: int) -> None:
        self.size, self.budget = (height, width), budget
        self._file = tempfile.TemporaryFile(prefix="streamgen-demo-")  # noqa: SIM115 - lives with the session
        self._written = 0
        self._pieces: list[Piece] = []
        self._full = False
        self._lock = threading.Lock()

    @property
    def frames(self) -> int:
        """Frames recorded of the branch that plays."""
        with self._lock:
            return self._end()

    @property
    def full(self) -> bool:
        """Whether the disk budget is used up."""
        return self._full

    def add(self, start: int, frames: np.ndarray) -> None:
        """Record uint8 `(T, H, W, 3)` from frame `start` on; what does not follow is left out."""
        with self._lock:
            if self._full or self._file.closed or start != self._end():
                return
            data = _packed(frames)
            if self._written + len(data) > self.budget:
                self._full = True
                return
            try:
                self._file.seek(self._written)
                self._file.write(data)
            except OSError:
                self._full = True
                return
            self._pieces.append(Piece(start, len(frames), self._written, len(data)))
            self._written += len(data)

    def lineage(self) -> Lineage:
        """The branch that plays, as it is now."""
        with self._lock:
            return Lineage(tuple(self._pieces), self._full)

    def go_to(self, lineage: Lineage, frame: int | None = None) -> None:
        """Play another branch, or this one from an earlier frame (the start of a piece) on."""
        with self._lock:
            pieces = lineage.pieces
            self._pieces = [p for p in pieces if frame is None or p.start + p.frames <= frame]

    def restart(self) -> None:
        """A new stream: everything before is forgotten."""
        with self._lock:
            self._pieces, self._written, self._full = [], 0, False
            with contextlib.suppress(OSError, ValueError):
                self._file.truncate(0)

    def close(self) -> None:
        """Give the disk space back."""
        with self._lock:
            self._file.close()

    def read(self, frames: int) -> Iterator[np.ndarray]:
        """The first `frames` frames of the branch that plays, in runs of uint8 `(T, H, W, 3)`."""
        left = frames
        for piece in self.lineage().pieces:
            if left <= 0:
                return
            with self._lock:
                if self._file.closed:
                    raise InputError("the session has ended")
                self._file.seek(piece.offset)
                data = self._file.read(piece.size)
            try:
                array = _unpacked(data, (piece.frames, *self.size, 3))
            except (zlib.error, ValueError):
                raise InputError("the stream was started again meanwhile") from None
            yield array[:left]
            left -= piece.frames

    def _end(self) -> int:
        return self._pieces[-1].start + self._pieces[-1].frames if self._pieces else 0


def _packed(frames: np.ndarray) -> bytes:
    """Uint8 `(T, H, W, 3)` without loss: differences between neighbours in a row, Huffman-coded.

    On pictures of 832 x 480 this takes about a third of the time of zlib's fastest level, and less room.
    """
    steps = frames.copy()
    steps[:, :, 1:] -= frames[:, :, :-1]
    coder = zlib.compressobj(1, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(steps.tobytes()) + coder.flush()


def _unpacked(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The frames of `_packed`.

    Raises:
        ValueError, zlib.error: damaged data.
    """
    steps = np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
    return np.cumsum(steps, axis=2, dtype=np.uint8)


def write_video(recording: Recording, frames: int, fps: float, path: Path) -> int:
    """Write the first `frames` recorded frames as MP4; returns how many there were.

    Raises:
        InputError: nothing is recorded, or the session ended meanwhile. OutputError: the disk is full.
    """
    if not min(frames, recording.frames):
        raise InputError("nothing has been recorded yet")
    with VideoFileSink(path, *recording.size, fps) as sink:
        for run in recording.read(frames):
            sink.write(run)
        return sink.frames_written


def session_record(
    recording: Recording, frames: int, timeline: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """The record of the first `frames` frames, which `streamgen render RECORD.json -o again.mp4` makes again
    and compares with what was shown, bit for bit.

    Args:
        timeline: the stream's timeline; events after those frames are left out.
        about: further values, such as the model.

    Raises:
        InputError: nothing is recorded, or the session ended meanwhile.
    """
    digest, count = hashlib.sha256(), 0
    for run in recording.read(frames):
        digest.update(np.ascontiguousarray(run).data)
        count += len(run)
    if not count:
        raise InputError("nothing has been recorded yet")
    events = [row for row in timeline["events"] if row["frame"] < count]
    return {
        "format": "streamgen-render",
        "version": 1,
        "job": {},
        **about,
        "frames": count,
        "fps": timeline["fps"],
        "sha256": digest.hexdigest(),
        "parts": [{"frames": count, "sha256": digest.hexdigest()}],
        "timeline": {**timeline, "events": events},
    }
