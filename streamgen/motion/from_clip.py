"""Motion taken from a clip: points found in it and followed from frame to frame.

The default tracker is OpenCV's pyramidal Lucas-Kanade (Bouguet 2000) with a forward-backward check (Kalal et
al. 2010): seconds on a CPU, lost where things turn or hide. CoTracker (arXiv 2410.11831) follows points
through occlusions and needs its own package and weights.
"""

import functools
import importlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..errors import InputError
from ..video.read import read_clip
from .tracks import OCCLUDED, UNSPECIFIED, VISIBLE, TrackSet

Tracker = Literal["lucas-kanade", "cotracker"]
SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")

MAX_TRACKED = 1024
_MAX_SECONDS = 120.0
# Pixels of the shorter side while tracking.
_SIDE = 256
# A point that does not come back to within this many pixels was lost.
_RETURN_PIXELS = 1.0
_SOW_SECONDS = 1.0


@dataclass(frozen=True)
class ClipMotion:
    """Which motion of a clip to take.

    Attributes:
        seconds: of the clip, from its start; None: all of it, at most two minutes.
        points: tracks to begin with, 1 to 1024, spread over the frame.
        tracker: "lucas-kanade" or "cotracker".
        weights: of CoTracker, a file.
    """

    seconds: float | None = None
    points: int = 64
    tracker: Tracker = "lucas-kanade"
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.tracker not in get_args(Tracker):
            raise InputError(
                f"tracker: expected one of {', '.join(get_args(Tracker))}, found {str(self.tracker)[:60]!r}"
            )
        if not 1 <= self.points <= MAX_TRACKED:
            raise InputError(f"points: expected 1 to {MAX_TRACKED}, found {self.points}")


def tracks_of_clip(file: Path, fps: float, aspect: float, wanted: ClipMotion | None = None) -> TrackSet:
    """Tracks of what moves in a clip, cropped to the stream's shape and at its frame rate.

    Args:
        file: any video FFmpeg reads.
        fps: frames per second of the stream.
        aspect: width / height of the stream.

    Raises:
        InputError: the clip cannot be read or shows nothing to follow, or the tracker is not installed.
    """
    wanted = wanted or ClipMotion()
    if not (math.isfinite(aspect) and 0.01 <= aspect <= 100):
        raise InputError(f"aspect: expected 0.01 to 100, found {aspect:g}")
    height = round(_SIDE if aspect >= 1 else _SIDE / aspect)
    width = round(_SIDE * aspect if aspect >= 1 else _SIDE)
    seconds = min(wanted.seconds or _MAX_SECONDS, _MAX_SECONDS)
    follow = _tracker(wanted)
    frames = read_clip(file, fps, height, width, max(round(seconds * fps), 2))
    if len(frames) < 2:
        raise InputError("has one frame, expected some motion")
    points, state = follow(frames, wanted.points, max(round(_SOW_SECONDS * fps), 1))
    if not (state != UNSPECIFIED).any():
        raise InputError("shows nothing that can be followed (no corners or texture in it)")
    normal = (points + 0.5) / np.array([width, height])
    inside = ((normal >= 0) & (normal <= 1)).all(axis=-1)
    state = np.where(inside, state, UNSPECIFIED).astype(np.int8)
    return TrackSet.from_points(torch.from_numpy(normal.astype(np.float32)), torch.from_numpy(state))


def _tracker(wanted: ClipMotion) -> Any:
    if wanted.tracker == "cotracker":
        return _cotracker(wanted.weights)
    if importlib.util.find_spec("cv2") is None:
        raise InputError(
            'tracker lucas-kanade: OpenCV is not installed, expected `pip install "streamgen[track]"`'
        )
    return follow_lucas_kanade


def follow_lucas_kanade(frames: np.ndarray, count: int, sow_every: int) -> tuple[np.ndarray, np.ndarray]:
    """Tracks of corners, new ones being sown where a part of the picture has none any more.

    Args:
        frames: uint8 (T, H, W, 3).
        count: cells of a grid over the picture, one corner each.
        sow_every: frames between two looks for empty cells.

    Returns:
        points float64 (N, T, 2) in pixels (x, y), whole at pixel centres, and state int8 (N, T).
    """
    import cv2

    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    alive = np.zeros((0, 2), np.float32)
    rows: list[int] = []
    found: list[tuple[int, list[np.ndarray]]] = []
    for number, picture in enumerate(gray):
        if number and len(alive):
            moved, kept = _followed(gray[number - 1], picture, alive)
            alive, rows = moved[kept], [row for row, good in zip(rows, kept, strict=True) if good]
            for row, point in zip(rows, alive, strict=True):
                found[row][1].append(point)
        if number % sow_every == 0 and number < len(gray) - 1:
            for point in _sown(picture, alive, count):
                rows.append(len(found))
                found.append((number, [point]))
                alive = np.concatenate([alive, point[None]])
    points = np.zeros((len(found), len(frames), 2))
    state = np.full((len(found), len(frames)), UNSPECIFIED, np.int8)
    for row, (start, places) in enumerate(found):
        if len(places) > 1:
            points[row, start : start + len(places)] = places
            state[row, start : start + len(places)] = VISIBLE
    return points, state


def _followed(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points went, and which of them come back to where they were."""
    import cv2

    # its annotations do not know that the guess may be None
    flow: Any = functools.partial(cv2.calcOpticalFlowPyrLK, nextPts=None, winSize=(15, 15), maxLevel=3)
    start = points.reshape(-1, 1, 2)
    moved, found, _ = flow(before, after, start)
    back, found_back, _ = flow(after, before, moved)
    error = np.linalg.norm((back - start).reshape(-1, 2), axis=1)
    moved = moved.reshape(-1, 2)
    height, width = after.shape
    inside = ((moved >= -0.5) & (moved <= np.array([width, height]) - 0.5)).all(axis=1)
    good = (found.ravel() == 1) & (found_back.ravel() == 1) & (error < _RETURN_PIXELS) & inside
    return moved.astype(np.float32), good


def _sown(picture: np.ndarray, alive: np.ndarray, count: int) -> list[np.ndarray]:
    """The best corner of each grid cell that has no point."""
    import cv2

    height, width = picture.shape
    columns = max(round(math.sqrt(count * width / height)), 1)
    rows = max(math.ceil(count / columns), 1)
    found = []
    for number in range(min(rows * columns, count)):
        row, column = divmod(number, columns)
        top, bottom = row * height // rows, (row + 1) * height // rows
        left, right = column * width // columns, (column + 1) * width // columns
        taken = ((alive >= (left, top)) & (alive < (right, bottom))).all(axis=1)
        if taken.any() or bottom - top < 3 or right - left < 3:
            continue
        cell = np.ascontiguousarray(picture[top:bottom, left:right])
        # the threshold of goodFeaturesToTrack is relative to the cell: noise has a best corner, too
        if cell.std() < 2.0:
            continue
        corners = cv2.goodFeaturesToTrack(cell, 1, 0.05, 1)
        if corners is not None:
            found.append(corners.reshape(2) + np.array([left, top], np.float32))
    return found


def _cotracker(weights: Path | None) -> Any:
    if importlib.util.find_spec("cotracker") is None:
        raise InputError(
            "tracker cotracker: its package is not installed, expected one from "
            "github.com/facebookresearch/co-tracker"
        )
    if weights is None or not weights.is_file():
        raise InputError("tracker cotracker: expected its weights as a file, in `weights`")
    predictor = importlib.import_module("cotracker.predictor").CoTrackerPredictor

    def follow(frames: np.ndarray, count: int, sow_every: int) -> tuple[np.ndarray, np.ndarray]:
        model = predictor(checkpoint=str(weights))
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
        with torch.no_grad():
            tracks, visible = model(video, grid_size=max(math.isqrt(count), 1))
        points = tracks[0].permute(1, 0, 2).cpu().numpy().astype(np.float64)
        seen = visible[0].permute(1, 0).cpu().numpy() > 0.5
        return points, np.where(seen, VISIBLE, OCCLUDED).astype(np.int8)

    return follow
