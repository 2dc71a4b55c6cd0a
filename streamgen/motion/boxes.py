"""Boxes and grids: many tracks from a few numbers.

A box says where a thing is and which place and size it comes to, as in GVDIFF (arXiv 2407.01921), whose
grounding is a phrase and a box a frame. Here it becomes tracks spread over the box, so any model that follows
tracks follows boxes, and no dense strokes are needed. A grid is a patch of tracks that go together, which
users of MotionStream (arXiv 2511.01266) lay by spacing and size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tracks import OCCLUDED, UNSPECIFIED, VISIBLE, Point, TrackSet, sampled

#: Between neighbouring tracks, in frame widths.
SPACING = 0.1
#: A box that is narrower or lower than this has no size, in parts of the frame.
LEAST_SIDE = 0.02
#: Tracks per side at most.
MOST_PER_SIDE = 32
# Boxes may lie beyond the frame by so many frames.
_BEYOND = 2.0
# Two boxes that share this much of what they cover together name the same place.
_SAME_PLACE = 0.8
_EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, eq=False)
class Box:
    """A box with a way.

    Attributes:
        knots: float64 (K, 5), rows of (seconds, left, top, right, bottom), normalised; straight in between.
        name: what the box holds, for whoever reads of it; "" for none.

    Raises:
        ValueError: no rows, times that do not rise, edges that cross, a box without size or far from the
            frame.
    """

    knots: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        rows = torch.as_tensor(self.knots, dtype=torch.float64)
        if rows.dim() != 2 or rows.shape[1] != 5 or not len(rows):
            raise ValueError(f"box: expected (seconds, left, top, right, bottom) rows, found {_shape(rows)}")
        for row in rows.tolist():
            _check_edges(row[1:], row[0])
        object.__setattr__(self, "knots", rows)

    @staticmethod
    def to(begin: Point, end: Point, seconds: float, name: str = "") -> Box:
        """From one place and size to another, at even speed.

        Args:
            begin: (left, top, right, bottom) at first.
            end: and after so many `seconds`.
        """
        return Box(torch.tensor([[0.0, *begin], [seconds, *end]], dtype=torch.float64), name)

    def edges(self, fps: float) -> Tensor:
        """float64 (T, 4): left, top, right, bottom in each pixel frame; NaN before the first knot."""
        edges, first = sampled(self.knots, fps, "box")
        edges[:first] = math.nan
        return edges

    def tracks(self, fps: float, spacing: float = SPACING, aspect: float = 1.0) -> TrackSet:
        """Free tracks spread over the box: they go where it goes, and apart as it grows.

        Args:
            fps: frames per second of the stream.
            spacing: between neighbours at first, in frame widths; a side has 2 at least and 32 at most.
            aspect: width / height of the frame, so that spacing is the same across and down.

        Raises:
            ValueError: a spacing that is not above 0, times that cannot be, or a box that is never in the
                frame.
        """
        edges, at = self.edges(fps), self.shares(spacing, aspect)
        low, high = edges[None, :, :2], edges[None, :, 2:]
        return _inside(torch.lerp(low, high, at[:, None]), "box: lies outside of the frame all the time")

    def shares(self, spacing: float = SPACING, aspect: float = 1.0) -> Tensor:
        """Where in the box its tracks are, float64 (N, 2) shares of its width and height.

        Raises:
            ValueError: a spacing that is not above 0.
        """
        left, top, right, bottom = self.knots[0, 1:].tolist()
        lines = []
        for side, apart in ((right - left, spacing), (bottom - top, spacing * aspect)):
            _check_spacing(apart, "box")
            count = min(max(round(side / apart), 2), MOST_PER_SIDE)
            lines.append((torch.arange(count, dtype=torch.float64) + 0.5) / count)
        y, x = torch.meshgrid(lines[1], lines[0], indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)


def grid(
    knots: Sequence[Point],
    fps: float,
    size: Point = (0.0, 0.0),
    spacing: float = SPACING,
    aspect: float = 1.0,
) -> TrackSet:
    """A patch of free tracks that go along one path together.

    Args:
        knots: (seconds, x, y) of its middle, straight in between.
        fps: frames per second of the stream.
        size: (width, height) of the patch, in parts of the frame; 0 is a single row or column.
        spacing: between neighbours, in frame widths.
        aspect: width / height of the frame, so that spacing is the same across and down.

    Raises:
        ValueError: sizes or a spacing out of range, times that cannot be, or a patch that is never in the
            frame.
    """
    offsets = patch(size, spacing, aspect)
    if not len(knots) or any(len(knot) != 3 for knot in knots):
        raise ValueError("grid: expected (seconds, x, y) points")
    rows = torch.tensor([list(map(float, knot)) for knot in knots], dtype=torch.float64)
    if bool((~(rows[:, 1:].abs() <= _BEYOND)).any()):
        raise ValueError("grid: a point is far outside of the frame")
    middle, first = sampled(rows, fps, "grid")
    middle[:first] = math.nan
    return together(middle, offsets)


def together(way: Tensor, offsets: Tensor) -> TrackSet:
    """Free tracks that go one way, each at its place beside it; those outside of the frame are unspecified.

    Args:
        way: (T, 2), a row of NaN where nothing is said.
        offsets: (N, 2), see `patch`.

    Raises:
        ValueError: none of them is ever in the frame.
    """
    return _inside(way[None] + offsets[:, None], "grid: lies outside of the frame all the time")


def held_grid(centre: Point, frames: int, size: Point, spacing: float, aspect: float = 1.0) -> TrackSet:
    """A patch of pinned tracks about `centre` that hold still for `frames` frames.

    Raises:
        ValueError: as `grid`, or fewer than one frame.
    """
    if frames < 1:
        raise ValueError(f"grid: frames must be at least 1, found {frames}")
    if len(centre) != 2:
        raise ValueError("grid: expected (x, y)")
    where = torch.tensor(list(map(float, centre)), dtype=torch.float64) + patch(size, spacing, aspect)
    still = _inside(where[:, None].expand(-1, frames, -1), "grid: lies outside of the frame")
    return TrackSet(still.points, still.state, torch.ones(still.num_tracks, dtype=torch.bool), still.ids)


def patch(size: Point, spacing: float, aspect: float = 1.0) -> Tensor:
    """Places of a grid's tracks about its middle, float64 (N, 2).

    Raises:
        ValueError: sizes outside of 0 to 2 frames, a spacing that is not above 0, or more than 32 tracks a
            side.
    """
    if len(size) != 2 or not all(0 <= side <= _BEYOND for side in size):
        raise ValueError(f"grid: size must be (width, height) in 0..{_BEYOND:g}, found {tuple(size)}")
    lines = []
    for side, apart in zip(size, (spacing, spacing * aspect), strict=True):
        _check_spacing(apart, "grid")
        count = math.floor(side / apart + 1e-6) + 1
        if count > MOST_PER_SIDE:
            raise ValueError(f"grid: {count} tracks a side, at most {MOST_PER_SIDE} (spacing {spacing:g})")
        lines.append((torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * apart)
    y, x = torch.meshgrid(lines[1], lines[0], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def layered(boxes: Sequence[Box], tracks: Sequence[TrackSet], fps: float) -> list[TrackSet]:
    """Tracks of boxes whose ways may cross: a later box is in front, and what it covers is occluded.

    Args:
        boxes: from behind to the front.
        tracks: of each, beginning with the same frame.

    Raises:
        ValueError: two boxes of which one begins on the place of the other: nobody could tell which thing is
            meant.
    """
    edges = [box.edges(fps) for box in boxes]
    for front in range(1, len(boxes)):
        for behind in range(front):
            _check_apart(boxes, edges, behind, front, fps)
    return [_under(own, edges[index + 1 :]) for index, own in enumerate(tracks)]


def covers_alike(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two (left, top, right, bottom) boxes are of the same place."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if not (width > 0 and height > 0):
        return False
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (first, second)]
    return width * height > _SAME_PLACE * (sum(areas) - width * height)


def _under(tracks: TrackSet, fronts: Sequence[Tensor]) -> TrackSet:
    """Tracks of which those points are occluded that lie in one of the boxes in front."""
    state = tracks.state.clone()
    for edges in fronts:
        frames = min(len(edges), tracks.num_frames)
        at, box = tracks.points[:, :frames], edges[:frames]
        covered = (at > box[:, :2]).all(-1) & (at < box[:, 2:]).all(-1)
        part = state[:, :frames]
        part[covered & (part == VISIBLE)] = OCCLUDED
    return TrackSet(tracks.points, state, tracks.pinned, tracks.ids)


def _check_apart(boxes: Sequence[Box], edges: Sequence[Tensor], behind: int, front: int, fps: float) -> None:
    """Refuse two boxes of one place at the frame where the later one begins."""
    begins = max(int(torch.isfinite(edges[i][:, 0]).int().argmax()) for i in (behind, front))
    if begins >= min(len(edges[behind]), len(edges[front])):
        return
    if covers_alike(edges[behind][begins].tolist(), edges[front][begins].tolist()):
        names = [boxes[i].name or f"box {i + 1}" for i in (behind, front)]
        raise ValueError(f"{names[0]} and {names[1]} are boxes of the same place at {begins / fps:g} s")


def _inside(points: Tensor, nowhere: str) -> TrackSet:
    """Free tracks whose points outside of the frame, NaN too, are unspecified."""
    shown = ((points >= 0) & (points <= 1)).all(-1)
    if not bool(shown.any()):
        raise ValueError(nowhere)
    state = torch.where(shown, VISIBLE, UNSPECIFIED).to(torch.int8)
    return TrackSet.from_points(points.float(), state)


def _check_spacing(apart: float, what: str) -> None:
    if not (math.isfinite(apart) and apart > 0):
        raise ValueError(f"{what}: spacing must be above 0, found {apart:g}")


def _check_edges(edges: Sequence[float], seconds: float) -> None:
    """Refuse a box that is none, at a time."""
    at = f"box at {seconds:g} s"
    for name, value in zip(_EDGES, edges, strict=True):
        if not abs(value) <= _BEYOND:
            raise ValueError(f"{at}: {name} must be within {_BEYOND:g} frames, found {value:g}")
    left, top, right, bottom = edges
    for low, high, first, second in (("left", "right", left, right), ("top", "bottom", top, bottom)):
        if first > second:
            raise ValueError(f"{at}: its edges cross, {low} {first:g} must be below {high} {second:g}")
    if min(right - left, bottom - top) < LEAST_SIDE - 1e-9:
        found = f"{right - left:g} x {bottom - top:g}"
        raise ValueError(f"{at}: has no size, expected {LEAST_SIDE:g} of the frame a side, found {found}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
