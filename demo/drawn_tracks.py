"""What was drawn on the picture as tracks: paths and boxes with their own timing, moves of the camera."""

import itertools
import math
from collections.abc import Sequence

import torch

from streamgen.motion.boxes import Box, grid
from streamgen.motion.tracks import TrackSet, camera, path

from .messages import Camera, Grid

XY = tuple[float, float]
Knots = list[tuple[float, ...]]

# Farthest a thing is pulled per frame, of the picture: tracks faster than the model knows break things.
MAX_STEP = 0.05


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
