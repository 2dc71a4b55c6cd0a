"""Motion of a stream: tracks of points over frames, and the ways to make them.

A `TrackSet` is what MotionStream (arXiv 2511.01266) calls 2-D track conditioning: N tracks over T pixel
frames. Drags, pins, paths and camera moves all become one. TrackSets are host data: their tensors live on
the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

UNSPECIFIED, VISIBLE, OCCLUDED = 0, 1, 2

# Tracks x frames beyond which a motion file or a camera move is refused: 128 MiB of coordinates.
MAX_POINTS = 2**24

Point = Sequence[float]
Ease = Literal["linear", "smooth"]

# A camera field is sown anew once a point has gone this far (of the frame), or parts of the picture would
# be left without tracks: with 0.5, a zoom by 3 keeps 4 of 16 points for half of its time.
_RESOW_DISTANCE = 0.25


@dataclass(frozen=True, eq=False)
class TrackSet:
    """N tracks over T pixel frames; `TrackSet.empty(T)` is the null motion.

    Attributes:
        points: float32 (N, T, 2), normalised (x, y) in [0, 1], x right, y down; 0 where unspecified.
        state: int8 (N, T): 0 unspecified, 1 visible, 2 occluded.
        pinned: bool (N,), true for tracks that hold a place still, false for free ones.
        ids: int64 (N,), distinct and >= 0.

    Raises:
        ValueError: wrong shapes, a state other than 0, 1, 2, repeated ids, or a specified point that is NaN,
            infinite or outside [0, 1]. Coordinates of unspecified points are not looked at.
    """

    points: Tensor
    state: Tensor
    pinned: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        points = torch.as_tensor(self.points, dtype=torch.float32).detach().cpu()
        if points.dim() != 3 or points.shape[-1] != 2:
            raise ValueError(f"tracks: points must be (tracks, frames, 2), found {tuple(points.shape)}")
        count, frames = points.shape[:2]
        state = _checked(self.state, "state", (count, frames), torch.int8)
        pinned = _checked(self.pinned, "pinned", (count,), torch.bool)
        ids = _checked(self.ids, "ids", (count,), torch.int64)
        if bool(((state < UNSPECIFIED) | (state > OCCLUDED)).any()):
            raise ValueError("tracks: state must be 0 (unspecified), 1 (visible) or 2 (occluded)")
        if ids.unique().numel() != count or bool((ids < 0).any()):
            raise ValueError("tracks: ids must be distinct and not negative")
        specified = (state != UNSPECIFIED)[..., None]
        _check_coordinates(points, specified)
        object.__setattr__(self, "points", torch.where(specified, points, torch.zeros(())))
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "pinned", pinned)
        object.__setattr__(self, "ids", ids)

    @staticmethod
    def empty(frames: int) -> TrackSet:
        """No tracks over `frames` frames (>= 0): the null motion."""
        return TrackSet.from_points(torch.zeros(0, frames, 2))

    @staticmethod
    def from_points(
        points: Tensor, state: Tensor | None = None, pinned: Tensor | bool = False, ids: Tensor | None = None
    ) -> TrackSet:
        """Tracks from `points` (N, T, 2): by default all visible, free, with ids 0 to N - 1.

        Raises:
            ValueError: as for `TrackSet`.
        """
        points = torch.as_tensor(points, dtype=torch.float32)
        count = points.shape[0] if points.dim() else 0
        if state is None:
            state = torch.full(points.shape[:2], VISIBLE, dtype=torch.int8)
        if isinstance(pinned, bool):
            pinned = torch.full((count,), pinned)
        return TrackSet(points, state, pinned, torch.arange(count) if ids is None else ids)

    @property
    def num_tracks(self) -> int:
        """N."""
        return self.points.shape[0]

    @property
    def num_frames(self) -> int:
        """T, in pixel frames."""
        return self.points.shape[1]

    @property
    def is_empty(self) -> bool:
        """Whether no point is specified anywhere: to a model this is the null motion."""
        return not bool((self.state != UNSPECIFIED).any())

    def slice(self, start: int, stop: int) -> TrackSet:
        """Frames `start` to `stop` (exclusive) with all tracks and ids kept; frames outside are unspecified.

        `start` may be negative: `tracks.slice(-8, tracks.num_frames)` begins 8 frames later.

        Raises:
            ValueError: stop < start.
        """
        if stop < start:
            raise ValueError(f"tracks: slice needs start <= stop, found {start} and {stop}")
        points = torch.zeros(self.num_tracks, stop - start, 2)
        state = torch.zeros(self.num_tracks, stop - start, dtype=torch.int8)
        first, last = max(start, 0), min(stop, self.num_frames)
        if first < last:
            points[:, first - start : last - start] = self.points[:, first:last]
            state[:, first - start : last - start] = self.state[:, first:last]
        return TrackSet(points, state, self.pinned, self.ids)

    def select(self, chosen: Tensor) -> TrackSet:
        """The tracks that `chosen` (N,) bool says, all frames and ids kept."""
        return TrackSet(self.points[chosen], self.state[chosen], self.pinned[chosen], self.ids[chosen])


def drag(start_xy: Point, end_xy: Point, frames: int, hold: int = 0, ease: Ease = "linear") -> TrackSet:
    """One free track from `start_xy` (frame 0) to `end_xy`, where it stays for the last `hold` frames.

    Args:
        start_xy: normalised (x, y).
        end_xy: normalised (x, y).
        frames: total frames, at least `hold` + 2.
        hold: frames that stay at the end after the one that reaches it, >= 0.
        ease: "linear" (even speed) or "smooth" (starts and stops gently, 3u^2 - 2u^3).

    Raises:
        ValueError: too few frames, an unknown ease, or points outside the frame.
    """
    if hold < 0 or frames < hold + 2:
        raise ValueError(f"drag: frames must be at least hold + 2, found frames {frames} and hold {hold}")
    if ease not in ("linear", "smooth"):
        raise ValueError(f"drag: ease must be 'linear' or 'smooth', found {ease!r}")
    progress = torch.cat([torch.linspace(0, 1, frames - hold, dtype=torch.float64), torch.ones(hold)])
    if ease == "smooth":
        progress = progress * progress * (3 - 2 * progress)
    ends = _points((start_xy, end_xy), "drag")
    return TrackSet.from_points(torch.lerp(ends[0], ends[1], progress[:, None])[None].float())


def path(points_xy_with_times: Sequence[Point], fps: float) -> TrackSet:
    """One free track through (seconds, x, y) knots, straight in between.

    Frames are sampled at k / fps up to the frame of the last knot; before the first knot they are
    unspecified.

    Raises:
        ValueError: fewer than two knots, times that are negative or do not rise, points outside the frame.
    """
    if len(points_xy_with_times) < 2 or any(len(knot) != 3 for knot in points_xy_with_times):
        raise ValueError("path: expected at least two (seconds, x, y) points")
    knots = torch.tensor([list(map(float, knot)) for knot in points_xy_with_times], dtype=torch.float64)
    _check_times(knots[:, 0], "path")
    _check_coordinates(knots[None, :, 1:], torch.ones(1, 1, 1, dtype=torch.bool))
    points, first = sampled(knots, fps, "path")
    state = torch.full((1, len(points)), VISIBLE, dtype=torch.int8)
    state[:, :first] = UNSPECIFIED
    return TrackSet.from_points(points[None].float(), state)


def sampled(knots: Tensor, fps: float, name: str) -> tuple[Tensor, int]:
    """Values between knots of (seconds, values ...), straight in between, at each pixel frame.

    Args:
        knots: float64 (K, 1 + D), times rising.
        fps: frames are at k / fps up to the frame of the last knot.
        name: of what they are, for errors.

    Returns:
        float64 (T, D), and the frame of the first knot; frames before it repeat it.

    Raises:
        ValueError: times that are negative, not finite or do not rise.
    """
    times = knots[:, 0].contiguous()
    _check_times(times, name)
    first, last = frame_at(float(times[0]), fps), frame_at(float(times[-1]), fps)
    if len(knots) == 1:
        return knots[:, 1:].expand(last + 1, -1).clone(), first
    now = (torch.arange(last + 1, dtype=torch.float64) / fps).clamp(times[0], times[-1])
    index = torch.searchsorted(times, now, right=True).clamp(1, len(times) - 1)
    share = (now - times[index - 1]) / (times[index] - times[index - 1])
    return torch.lerp(knots[index - 1, 1:], knots[index, 1:], share[:, None]), first


def pins(points: Sequence[Point], frames: int) -> TrackSet:
    """A pinned track at each of the normalised `points`, still over all `frames` frames.

    Raises:
        ValueError: fewer than one frame, or points outside the frame.
    """
    if frames < 1:
        raise ValueError(f"pins: frames must be at least 1, found {frames}")
    where = _points(points, "pins").float()
    return TrackSet.from_points(where[:, None].expand(-1, frames, -1), pinned=True)


def camera(
    *,
    frames: int,
    pan: Point = (0.0, 0.0),
    zoom: float = 1.0,
    rotate: float = 0.0,
    grid: int = 4,
    aspect: float = 1.0,
) -> TrackSet:
    """A camera move as a field of tracks that the whole picture follows.

    The field is a `grid` x `grid` lattice, sown anew whenever a point has gone a quarter of a frame; points
    that leave the frame become unspecified.

    Args:
        frames: number of frames, >= 2, over which the move is spread evenly.
        pan: how far the camera goes right and down, in frame sizes: the picture goes the other way.
        zoom: how much larger things are at the end, > 0, about the centre (below 1: smaller).
        rotate: clockwise roll of the camera in degrees: the picture turns counter-clockwise.
        grid: points per side, 1 to 64.
        aspect: width / height of the frame, so that rotation keeps circles round.

    Raises:
        ValueError: values outside these ranges, or a move that takes more than `MAX_POINTS` points.
    """
    if frames < 2 or not 1 <= grid <= 64:
        raise ValueError(f"camera: expected frames >= 2 and grid in 1..64, found {frames} and {grid}")
    if len(pan) != 2 or not all(math.isfinite(value) for value in (*pan, zoom, rotate, aspect)):
        found = f"{pan}, {zoom}, {rotate}, {aspect}"
        raise ValueError(f"camera: pan, zoom, rotate and aspect must be finite, found {found}")
    if zoom <= 0 or aspect <= 0:
        raise ValueError(f"camera: zoom and aspect must be above 0, found {zoom} and {aspect}")
    moves = _camera_matrices(frames, pan, zoom, rotate, aspect)
    line = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    y, x = torch.meshgrid(line, line, indexing="ij")
    lattice = torch.stack([x.flatten(), y.flatten(), torch.ones(grid * grid)], dim=1)
    fields: list[tuple[int, Tensor]] = []
    sown = 0
    while sown < frames:
        if (len(fields) + 1) * grid * grid * frames > MAX_POINTS:
            raise ValueError(f"camera: too long or too fast a move for grid {grid} over {frames} frames")
        moved = moves[sown:] @ torch.linalg.inv(moves[sown]) @ lattice.T
        points = moved[:, :2].permute(2, 0, 1)
        far = (points - points[:, :1]).norm(dim=-1).amax(dim=0) > _RESOW_DISTANCE
        alive = int(far.int().argmax()) if bool(far.any()) else frames - sown
        if alive == 1 and sown + 1 < frames:
            raise ValueError(f"camera: too fast: more than {_RESOW_DISTANCE:g} of the frame in one frame")
        fields.append((sown, points[:, :alive]))
        sown += alive
    points = torch.full((len(fields), grid * grid, frames, 2), math.inf)
    for index, (sown, field) in enumerate(fields):
        points[index, :, sown : sown + field.shape[1]] = field.float()
    points = points.flatten(0, 1)
    return TrackSet.from_points(points, ((points >= 0) & (points <= 1)).all(dim=-1).to(torch.int8))


def merge(tracksets: Sequence[TrackSet]) -> TrackSet:
    """All tracks together over the longest of the sets; ids that are already taken get the next free number.

    Raises:
        ValueError: no sets.
    """
    if not tracksets:
        raise ValueError("merge: expected at least one TrackSet")
    frames = max(tracks.num_frames for tracks in tracksets)
    padded = [tracks.slice(0, frames) for tracks in tracksets]
    ids = torch.cat([tracks.ids for tracks in padded])
    free = int(ids.max()) + 1 if ids.numel() else 0
    taken: set[int] = set()
    distinct: list[int] = []
    for wanted in ids.tolist():
        if wanted in taken:
            wanted, free = free, free + 1
        taken.add(wanted)
        distinct.append(wanted)
    return TrackSet(
        torch.cat([tracks.points for tracks in padded]),
        torch.cat([tracks.state for tracks in padded]),
        torch.cat([tracks.pinned for tracks in padded]),
        torch.tensor(distinct, dtype=torch.int64),
    )


def frame_at(seconds: float, fps: float) -> int:
    """The pixel frame nearest to a time."""
    return math.floor(seconds * fps + 0.5)


def _checked(value: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    if tuple(tensor.shape) != shape:
        raise ValueError(f"tracks: {name} must have shape {shape}, found {tuple(tensor.shape)}")
    if tensor.is_floating_point() and tensor.numel():
        raise ValueError(f"tracks: {name} must hold {dtype}, found {tensor.dtype}")
    return tensor.to(dtype)


def _check_times(times: Tensor, name: str) -> None:
    if not bool(torch.isfinite(times).all()) or times[0] < 0 or bool((times.diff() <= 0).any()):
        raise ValueError(f"{name}: times must be finite, >= 0 and increase, found {times.tolist()}")


def _check_coordinates(points: Tensor, specified: Tensor) -> None:
    # Written so that NaN, which compares false with everything, counts as outside.
    bad = ~((points >= 0) & (points <= 1)) & specified
    if bool(bad.any()):
        track, frame, axis = bad.nonzero()[0].tolist()
        raise ValueError(
            f"tracks: track {track}, frame {frame}: {'xy'[axis]} must be a number in [0, 1], "
            f"found {float(points[track, frame, axis]):g}"
        )


def _points(points: Sequence[Point], name: str) -> Tensor:
    if any(len(point) != 2 for point in points):
        raise ValueError(f"{name}: every point must be (x, y)")
    return torch.tensor([list(map(float, point)) for point in points], dtype=torch.float64).reshape(-1, 2)


def _camera_matrices(frames: int, pan: Point, zoom: float, rotate: float, aspect: float) -> Tensor:
    """Homogeneous (frames, 3, 3) maps from places in the first frame to places in each frame."""
    progress = torch.linspace(0, 1, frames, dtype=torch.float64)
    scale, angle = zoom**progress, -math.radians(rotate) * progress
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrices = torch.zeros(frames, 3, 3, dtype=torch.float64)
    matrices[:, 0, 0], matrices[:, 0, 1] = cos, -sin / aspect
    matrices[:, 1, 0], matrices[:, 1, 1] = sin * aspect, cos
    centre = torch.full((2,), 0.5, dtype=torch.float64)
    shift = torch.tensor([float(pan[0]), float(pan[1])], dtype=torch.float64)
    matrices[:, :2, 2] = centre - matrices[:, :2, :2] @ centre - progress[:, None] * shift
    matrices[:, 2, 2] = 1
    return matrices
