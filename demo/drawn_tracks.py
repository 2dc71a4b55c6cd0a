"""What was drawn on the picture as tracks: paths and boxes with their own timing, moves of the camera; and
tracks as what could have been drawn.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from streamgen.motion.boxes import Box, grid
from streamgen.motion.tracks import UNSPECIFIED, TrackSet, camera, path

from .messages import Camera, Grid

XY = tuple[float, float]
Knots = list[tuple[float, ...]]

# Farthest a thing is pulled per frame, of the picture: tracks faster than the model knows break things.
MAX_STEP = 0.05
# Of tracks that are drawn again: knots of one way, ways of tracks that do not go together, points held still.
_MOST_KNOTS, _MOST_WAYS, _MOST_PINS = 64, 8, 64
# Tracks that go together keep their distance up to this, of the picture.
_TOGETHER = 0.01


def path_tracks(
    points: Sequence[tuple[float, ...]], at: XY, own: Grid | None, fps: float, aspect: float
) -> tuple[Knots, TrackSet]:
    """A drawn path of (milliseconds, x, y) on the thing that is at `at`: knots in seconds, and tracks.

    Args:
        own: tracks about it in place of one.
    """
    knots = _unhurried(_knots_from(points, at), fps)
    knots = [(seconds, clamped(x), clamped(y)) for seconds, x, y in knots]
    if own is None:
        return knots, path(knots, fps)
    return knots, grid(knots, fps, own.size, own.spacing, aspect)


def box_tracks(
    drawn: Sequence[tuple[float, ...]], at: XY, spacing: float, name: str, fps: float, aspect: float
) -> tuple[Knots, TrackSet]:
    """A box of (milliseconds, left, top, right, bottom) whose thing is at `at`: knots in seconds, and tracks.

    Raises:
        ValueError: a box that cannot be.
    """
    # looked at as it was drawn: the errors name that
    rows = [[(row[0] - drawn[0][0]) / 1000, *row[1:]] for row in _rising(drawn)]
    Box(torch.tensor(rows, dtype=torch.float64))
    way = _unhurried(_knots_from(drawn, at), fps)
    return way, Box(torch.tensor(way, dtype=torch.float64), name).tracks(fps, spacing, aspect)


def camera_tracks(move: Camera, seconds: float, fps: float, aspect: float) -> TrackSet:
    """A camera move of so many seconds.

    Raises:
        ValueError: faster than tracks can tell.
    """
    return camera(
        frames=max(2, round(seconds * fps)),
        pan=(move.pan[0] * seconds, move.pan[1] * seconds),
        zoom=move.zoom**seconds,
        rotate=move.rotate * seconds,
        aspect=aspect,
    )


def _knots_from(points: Sequence[tuple[float, ...]], at: XY) -> list[tuple[float, ...]]:
    """Knots in seconds from rows of (milliseconds, x, y) or (milliseconds, left, top, right, bottom).

    The way begins where the thing itself is, `at`, and ends where it was drawn to.
    """
    rows = _rising(points)
    began, length = rows[0][0], max(rows[-1][0] - rows[0][0], 1.0)
    first = rows[0][1:]
    half = len(first) // 2
    # the middle of a box, or the point itself
    middle = [(first[i] + first[i + len(first) - 2]) / 2 for i in range(2)]
    off = (at[0] - middle[0], at[1] - middle[1])
    knots: list[tuple[float, ...]] = []
    for time, *values in rows:
        left = 1 - (time - began) / length
        moved = [value + left * off[i % 2] for i, value in enumerate(values)]
        knots.append(((time - began) / 1000, *moved))
    if len(knots) < 2 and half == 1:
        knots = [(0.0, *at), (1e-3, *points[-1][1:])]
    return knots


def _rising(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The rows whose times are apart."""
    rows = [points[0]]
    for row in points[1:]:
        if row[0] - rows[-1][0] >= 1.0:
            rows.append(row)
    return rows


def _unhurried(knots: Sequence[tuple[float, ...]], fps: float) -> list[tuple[float, ...]]:
    """Knots in drawn time, or slower where that is faster than things can be pulled."""
    elapsed, slower = knots[0][0], [knots[0]]
    for (t0, *before), (t1, *after) in itertools.pairwise(knots):
        corners = range(0, len(before), 2)
        farthest = max(math.dist(before[i : i + 2], after[i : i + 2]) for i in corners)
        elapsed += max(t1 - t0, farthest / (MAX_STEP * fps))
        slower.append((elapsed, *after))
    return slower


def clamped(value: float) -> float:
    """The nearest number in 0..1."""
    return min(max(value, 0.0), 1.0)


def ways_of(kind: str, tracks: TrackSet, fps: float) -> list[Knots]:
    """Tracks as they would have been drawn: knots in seconds since their frame 0, of each way one list.

    Args:
        kind: box: rows of (seconds, left, top, right, bottom); pins: a row of (0, x, y) for each; camera: how
            long it takes; else rows of (seconds, x, y), one way for tracks that go together.
    """
    if kind == "camera":
        return [[(tracks.num_frames / fps,)]]
    said = tracks.state != UNSPECIFIED
    frames = said.any(0).nonzero().flatten().tolist()
    if not frames:
        return []
    if kind == "pins":
        firsts = said.int().argmax(1)
        points = tracks.points[torch.arange(len(firsts)), firsts][said.any(1)]
        return [[(0.0, *point) for point in points[:_MOST_PINS].tolist()]]
    if len(frames) > _MOST_KNOTS:
        frames = [frames[round(i * (len(frames) - 1) / (_MOST_KNOTS - 1))] for i in range(_MOST_KNOTS)]
    if kind == "box":
        return [[(frame / fps, *_around(tracks.points[said[:, frame], frame])) for frame in frames]]
    together = _middle(tracks, said, frames)
    if together is not None:
        return [[(frame / fps, *at) for frame, at in zip(frames, together, strict=True)]]
    chosen = range(0, tracks.num_tracks, -(-tracks.num_tracks // _MOST_WAYS))
    ways = [[(f / fps, *tracks.points[i, f].tolist()) for f in frames if said[i, f]] for i in chosen]
    return [way for way in ways if way]


def _middle(tracks: TrackSet, said: Tensor, frames: Sequence[int]) -> list[list[float]] | None:
    """Where the middle of tracks that go together is in some frames; None where they do not."""
    full = max(frames, key=lambda frame: int(said[:, frame].sum()))
    seen = said[:, full]
    points, said = tracks.points[seen], said[seen]
    offsets = points[:, full] - points[:, full].mean(0)
    middles: list[Tensor] = []
    for frame in frames:
        each = (points[:, frame] - offsets)[said[:, frame]]
        middle = each.mean(0) if len(each) else middles[-1] if middles else points[:, full].mean(0)
        if bool(((each - middle).abs() > _TOGETHER).any()):
            return None
        middles.append(middle)
    return [middle.tolist() for middle in middles]


def _around(points: Tensor) -> tuple[float, ...]:
    """Edges of the box over which points (N, 2) are spread evenly, each in the middle of its part."""
    low, high = points.amin(0), points.amax(0)
    counts = [len(torch.unique((1000 * points[:, axis]).round())) for axis in (0, 1)]
    past = (high - low) / (2 * (torch.tensor(counts) - 1).clamp(min=1))
    return (*(low - past).tolist(), *(high + past).tolist())
