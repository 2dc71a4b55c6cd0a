"""The session so far on disk: all frames of the branch that plays, and of those that were left.

Frames are kept losslessly compressed, so that MP4 and digests come out as `streamgen render` would make them.
Each stream that was started has a file of its own, a reel; a branch is a list of places in reels.
"""

import contextlib
import hashlib
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from streamgen.errors import InputError


@dataclass(frozen=True)
class Piece:
    """Frames `[start, start + frames)` of a branch, at a place in a reel."""

    start: int
    frames: int
    offset: int
    size: int
    reel: int = 0


@dataclass(frozen=True)
class Lineage:
    """The recorded pieces of one branch, in order from frame 0; `full` once the disk budget was used up."""

    pieces: tuple[Piece, ...] = ()
    full: bool = False

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return self.pieces[-1].start + self.pieces[-1].frames if self.pieces else 0

    def to_json(self) -> list[list[int]]:
        """Plain values, a row for each piece."""
        return [list(asdict(piece).values()) for piece in self.pieces]

    @classmethod
    def from_json(cls, rows: Iterable[Iterable[int]]) -> "Lineage":
        """Inverse of `to_json`."""
        return cls(tuple(Piece(*row) for row in rows))


class Recording:
    """Frames of one session. Thread-safe.

    Args:
        height, width: of the frames.
        budget: bytes on disk. What is beyond takes the place of streams that were left, oldest first; what
            the stream that plays has beyond it is not recorded.
        folder: where reels lie as files; None: files without a name, which are gone with the session.
    """

    def __init__(self, height: int, width: int, budget: int, folder: Path | None = None) -> None:
        self.size, self.budget, self.folder = (height, width), budget, folder
        self._reels: dict[int, IO[bytes]] = {}
        self._written: dict[int, int] = {}
        self._pieces: list[Piece] = []
        self._full, self._closed, self._reel = False, False, -1
        self._lock = threading.Lock()
        self._next_reel()

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
            if self._full or self._closed or start != self._end():
                return
            data = _packed(frames)
            if not self._room_for(len(data)):
                self._full = True
                return
            file, offset = self._reels[self._reel], self._written[self._reel]
            try:
                file.seek(offset)
                file.write(data)
                file.flush()
            except OSError:
                self._full = True
                return
            self._pieces.append(Piece(start, len(frames), offset, len(data), self._reel))
            self._written[self._reel] += len(data)

    def lineage(self) -> Lineage:
        """The branch that plays, as it is now."""
        with self._lock:
            return Lineage(tuple(self._pieces), self._full)

    def go_to(self, lineage: Lineage, frame: int | None = None) -> None:
        """Play another branch, or this one from an earlier frame (the start of a piece) on."""
        with self._lock:
            self._pieces = [p for p in lineage.pieces if frame is None or p.start + p.frames <= frame]

    def restart(self, kept: Iterable[Lineage] = ()) -> None:
        """A new stream: what no lineage in `kept` has is forgotten."""
        with self._lock:
            wanted = {piece.reel for lineage in kept for piece in lineage.pieces}
            for reel in set(self._reels) - wanted:
                self._forget(reel)
            self._pieces, self._full = [], False
            self._next_reel()

    def reopen(self, lineage: Lineage, frame: int) -> None:
        """Go on with the reels in the folder, at a frame; pieces whose reel is not there are left out."""
        with self._lock:
            for reel in {piece.reel for piece in lineage.pieces}:
                path = self._path(reel)
                if path is not None and path.is_file() and reel not in self._reels:
                    self._reels[reel] = path.open("r+b")
                    self._written[reel] = path.stat().st_size
            self._pieces = [
                p for p in lineage.pieces if p.start + p.frames <= frame and p.reel in self._reels
            ]
            self._reel = max(self._reels)
            self._next_reel()

    def close(self) -> None:
        """Let go of the files; those without a name give their disk space back."""
        with self._lock:
            self._closed = True
            for file in self._reels.values():
                file.close()

    def read(self, frames: int, lineage: Lineage | None = None) -> Iterator[np.ndarray]:
        """The first `frames` frames of a branch, by default the one that plays, in runs of uint8
        `(T, H, W, 3)`.

        Raises:
            InputError: the session has ended, or the stream's place was taken by newer ones.
        """
        left = frames
        for piece in (lineage or self.lineage()).pieces:
            if left <= 0:
                return
            with self._lock:
                if self._closed:
                    raise InputError("the session has ended")
                file = self._reels.get(piece.reel)
                if file is None:
                    raise InputError("the frames of this branch gave way to those of newer streams")
                file.seek(piece.offset)
                data = file.read(piece.size)
            try:
                array = _unpacked(data, (piece.frames, *self.size, 3))
            except (zlib.error, ValueError):
                raise InputError("the recording is damaged") from None
            yield array[:left]
            left -= piece.frames

    def _end(self) -> int:
        return self._pieces[-1].start + self._pieces[-1].frames if self._pieces else 0

    def _room_for(self, size: int) -> bool:
        """Whether so many bytes fit, once streams that were left have made room."""
        used = {piece.reel for piece in self._pieces} | {self._reel}
        for reel in sorted(set(self._reels) - used):
            if sum(self._written.values()) + size <= self.budget:
                break
            self._forget(reel)
        return sum(self._written.values()) + size <= self.budget

    def _forget(self, reel: int) -> None:
        self._reels.pop(reel).close()
        del self._written[reel]
        path = self._path(reel)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, reel: int) -> Path | None:
        return None if self.folder is None else self.folder / f"reel-{reel}.bin"

    def _next_reel(self) -> None:
        self._reel += 1
        path = self._path(self._reel)
        while path is not None and path.exists():
            # of a stream from the shelf that will go on here
            self._reel += 1
            path = self._path(self._reel)
        file: IO[bytes]
        if path is None:
            file = tempfile.TemporaryFile(prefix="streamgen-demo-")  # noqa: SIM115 - lives with the session
        else:
            file = path.open("w+b")
        self._reels[self._reel], self._written[self._reel] = file, 0


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
