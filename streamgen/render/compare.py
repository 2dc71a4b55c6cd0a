"""Where two renders differ: their frames, and what their records say they were made with."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..errors import InputError
from .records import parts_of, read_record, sidecar_path

# What two runs of one job never have in common, or what follows from the frames.
_ALWAYS_DIFFERENT = {"video", "timings", "peak_memory_mb", "origin", "replay", "file", "sha256", "parts"}
# What follows from the rest, and is not in records of older versions.
_ALWAYS_DIFFERENT |= {"notes"}
_MOST_RANGES = 20


@dataclass
class FrameDifferences:
    """What was found in the frames that both have.

    Attributes:
        compared: their number.
        differing: of them, how many are not equal in every pixel.
        ranges: runs [first, last] of those.
        worst_frame, worst_psnr: the frame that differs most, and its PSNR in dB.
        largest: the largest difference of one value, 0 to 255.
        squares: sum of squared differences, of how many values.
    """

    compared: int = 0
    differing: int = 0
    ranges: list[list[int]] = field(default_factory=list)
    worst_frame: int | None = None
    worst_psnr: float = math.inf
    largest: int = 0
    squares: float = 0.0
    values: int = 0

    def add(self, number: int, first: np.ndarray, second: np.ndarray) -> None:
        """Compare the next frame of both, uint8 (H, W, 3)."""
        self.compared += 1
        self.values += first.size
        difference = np.abs(first.astype(np.int16) - second)
        most = int(difference.max(initial=0))
        if not most:
            return
        self.differing += 1
        if self.ranges and self.ranges[-1][1] == number - 1:
            self.ranges[-1][1] = number
        else:
            self.ranges.append([number, number])
        squares = float(np.square(difference, dtype=np.float64).sum())
        psnr = _psnr(squares, first.size)
        self.squares += squares
        self.largest = max(self.largest, most)
        if psnr < self.worst_psnr:
            self.worst_frame, self.worst_psnr = number, psnr


def compare_renders(first: Path, second: Path) -> dict[str, Any]:
    """Compare two videos and, where they have them, their records.

    Returns:
        plain values: `equal` (same size, length and frames as they are shown), `frames`, `fps` and `size` of
        both, `first_difference` (frame and seconds), `differing_frames`, `ranges`, `psnr` (dB, None where
        equal), `worst`, `largest_difference`, `raw_frames_equal` (by the records' digests, None without),
        and `records`: what differs in them, as [first, second] by dotted name.

    Raises:
        InputError: a file that is missing or cannot be decoded.
    """
    about = [_Video(path) for path in (first, second)]
    found = FrameDifferences()
    lengths = [0, 0]
    same_size = about[0].size == about[1].size
    for number, pair in enumerate(itertools.zip_longest(*(video.frames() for video in about))):
        for place, frame in enumerate(pair):
            lengths[place] += frame is not None
        if same_size and pair[0] is not None and pair[1] is not None:
            found.add(number, pair[0], pair[1])
    start = found.ranges[0][0] if found.ranges else None
    if start is None and lengths[0] != lengths[1]:
        start = min(lengths)
    fps = float(about[0].rate)
    records = [read_record(sidecar_path(path)) for path in (first, second)]
    return {
        "equal": same_size and lengths[0] == lengths[1] and not found.differing,
        "files": [str(first), str(second)],
        "frames": lengths,
        "fps": [float(video.rate) for video in about],
        "size": ["x".join(map(str, video.size)) for video in about],
        "first_difference": None if start is None else {"frame": start, "seconds": round(start / fps, 4)},
        "differing_frames": found.differing,
        "ranges": found.ranges[:_MOST_RANGES],
        "more_ranges": max(len(found.ranges) - _MOST_RANGES, 0),
        "psnr": round(_psnr(found.squares, found.values), 2) if found.differing else None,
        "worst": {"frame": found.worst_frame, "psnr": round(found.worst_psnr, 2)}
        if found.differing
        else None,
        "largest_difference": found.largest,
        "raw_frames_equal": _raw_equal(records),
        "records": _record_differences(records),
    }


class _Video:
    """A video file, opened far enough to know that it is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        with self._open() as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video")
            stream = container.streams.video[0]
            self.size = (stream.width, stream.height)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)

    def frames(self) -> Iterator[np.ndarray]:
        """Its frames, uint8 RGB (H, W, 3), one at a time."""
        try:
            with self._open() as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: cannot be decoded (damaged or cut off)") from error

    def _open(self) -> Any:
        try:
            return av.open(str(self.path), options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self.path}: not a video, or one cut off") from error


def _psnr(squares: float, values: int) -> float:
    return 10 * math.log10(255**2 * values / squares) if squares else math.inf


def _raw_equal(records: list[dict[str, Any] | None]) -> bool | None:
    """Whether the frames were the same before they were encoded; None where the records do not say."""
    if records[0] is None or records[1] is None:
        return None
    first, second = (parts_of(record) for record in (records[0], records[1]))
    if not first or [part.frames for part in first] != [part.frames for part in second]:
        return None
    return first == second


def _record_differences(records: list[dict[str, Any] | None]) -> dict[str, list[Any]]:
    if records[0] is None or records[1] is None:
        return {}
    first, second = (dict(_flat(record)) for record in (records[0], records[1]))
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by dotted name; lists of scalars stay whole, those of objects are numbered."""
    for name, value in values.items():
        if not prefix and name in _ALWAYS_DIFFERENT:
            continue
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{name}", value if len(text) <= 200 else f"{text[:197]}..."
