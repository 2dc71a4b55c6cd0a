"""What a viewer's hands say, as tracks of the next chunk: live drags, drawn paths, pins and camera moves.

Times of drawing become frames of video here. A live drag has no future, so its tracks reach to the end of the
next chunk only: what was drawn since the last boundary is spread over the chunk's frames. All else is planned
ahead and taken back when hands change.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamgen.motion.tracks import TrackSet, camera, merge, path, pins

from .messages import Camera

XY = tuple[float, float]

MAX_STROKES = 4
MAX_PATHS = 8
# Farthest a drag pulls per frame, in parts of the picture: faster tracks than the model knows break things.
MAX_STEP = 0.05
# Seconds that are planned ahead for pins, and for a camera move, which then begins anew.
_PIN_SECONDS = 10.0
_CAMERA_SECONDS = 3.0
# Seconds that a drag goes on after the hand let go, to bring the object where it was dropped.
_FINISH_SECONDS = 1.0
_FIRST_PATH_ID, _FIRST_PIN_ID, _FIRST_CAMERA_ID = 16, 64, 128


@dataclass
class _Stroke:
    """A live drag: where the object is now, and the points that it has still to go through."""

    track: int
    at: XY
    ahead: list[XY] = field(default_factory=list)
    ended: bool = False
    begun: bool = False
    frames_after_end: int = 0


@dataclass(frozen=True)
class _Planned:
    """Tracks that begin at a frame of the stream."""

    tracks: TrackSet
    start: int

    @property
    def end(self) -> int:
        return self.start + self.tracks.num_frames


class MotionDesk:
    """Collects gestures and says which tracks the next chunk gets. Not thread-safe.

    Args:
        fps: frames per second of the stream.
        aspect: width / height of the picture.
    """

    def __init__(self, fps: float, aspect: float = 1.0) -> None:
        self.fps, self.aspect = fps, aspect
        self._strokes: dict[int, _Stroke] = {}
        self._drawn: list[tuple[list[tuple[float, float, float]], int]] = []
        self._paths: list[_Planned] = []
        self._pins: tuple[XY, ...] = ()
        self._moving: Camera | None = None
        self._camera: _Planned | None = None
        self._made = 0
        self._changed = False
        self._until = 0
        self._holding = False

    @property
    def busy(self) -> bool:
        """Whether any gesture is in force."""
        return bool(self._strokes or self._drawn or self._paths or self._pins or self._moving)

    def begin_stroke(self, number: int, at: XY, points: Sequence[XY]) -> bool:
        """A drag begins on the thing that is at `at` now. False when there are too many."""
        if number not in self._strokes and len(self._strokes) >= MAX_STROKES:
            return False
        self._made += 1
        self._strokes[number] = _Stroke(self._made % _FIRST_PATH_ID, at, list(points))
        return True

    def move_stroke(self, number: int, points: Sequence[XY], end: bool = False) -> bool:
        """A drag goes on, or ends. False for one that is not known."""
        stroke = self._strokes.get(number)
        if stroke is None:
            return False
        stroke.ahead.extend(points)
        # a hand that went far ahead of the picture: what matters is where it is, and roughly how it got there
        if len(stroke.ahead) > 256:
            stroke.ahead = stroke.ahead[::2] + stroke.ahead[-1:]
        stroke.ended = stroke.ended or end
        return True

    def add_path(self, points: Sequence[tuple[float, float, float]], at: XY) -> bool:
        """A drawn path of (milliseconds, x, y) on the thing that is at `at` now; begins with the next chunk.

        False when too many are under way.
        """
        if len(self._paths) + len(self._drawn) >= MAX_PATHS:
            return False
        self._made += 1
        self._drawn.append((_path_knots(points, at, self.fps), _FIRST_PATH_ID + self._made % 48))
        self._changed = True
        return True

    def set_pins(self, points: Sequence[XY]) -> None:
        """All points that hold still from now on."""
        self._pins = tuple(points)
        self._changed = True

    def move_camera(self, move: Camera) -> None:
        """Begin or end a camera move."""
        self._moving = None if move.at_rest else move
        self._camera = None
        self._changed = True

    def end_strokes(self) -> None:
        """The hand is gone (a lost connection)."""
        for stroke in self._strokes.values():
            stroke.ended = True
        if self._moving is not None:
            self.move_camera(Camera((0.0, 0.0), 1.0, 0.0))

    def clear(self) -> None:
        """Let go of everything."""
        self._strokes.clear()
        self._drawn.clear()
        self._paths.clear()
        self._pins, self._moving, self._camera = (), None, None
        self._changed = True

    def let_go(self) -> None:
        """As `clear`, and also end tracks that the stream itself brought along (after a rewind)."""
        self.clear()
        self._holding = True

    def plan(self, start: int, frames: int) -> TrackSet | None:
        """The motion to submit for the chunk of `frames` frames from frame `start` of the stream on.

        Returns:
            Tracks from `start` on, an empty set to let go, or None when what was submitted still holds.
        """
        self._paths = [planned for planned in self._paths if planned.end > start]
        if not (self._strokes or self._changed or (self._holding and start >= self._until)):
            return None
        self._changed = False
        for knots, track in self._drawn:
            made = path(knots, self.fps)
            self._paths.append(_Planned(_named(made, track), start))
        self._drawn.clear()
        if self._moving is not None and (self._camera is None or self._camera.end <= start):
            self._camera = _Planned(self._camera_move(self._moving), start)
        live = [self._advance(number, frames) for number in list(self._strokes)]
        parts = [_named(TrackSet.from_points(points[None]), track) for points, track in live]
        planned = [*self._paths, *([self._camera] if self._camera is not None else [])]
        ends = [item.end for item in planned]
        if self._pins:
            ends.append(start + round(_PIN_SECONDS * self.fps))
        horizon = frames if live else max([min(ends) - start, frames]) if ends else frames
        parts += [item.tracks.slice(start - item.start, start - item.start + horizon) for item in planned]
        if self._pins:
            parts.append(_named(pins(self._pins, horizon), _FIRST_PIN_ID))
        held, self._holding, self._until = self._holding, bool(parts), start + horizon
        if parts:
            return merge(parts)
        return TrackSet.empty(0) if held else None

    def _advance(self, number: int, frames: int) -> tuple[Tensor, int]:
        """Places `(frames, 2)` of a dragged thing in the next chunk, and its track's id."""
        stroke = self._strokes[number]
        line = [stroke.at, *stroke.ahead]
        lengths = [math.dist(a, b) for a, b in itertools.pairwise(line)]
        reach = min(sum(lengths), MAX_STEP * frames)
        steps = frames if stroke.begun or frames == 1 else frames - 1
        first = 1 if stroke.begun else 0
        places = [_along(line, lengths, reach * (first + k) / steps) for k in range(frames)]
        stroke.begun, stroke.at = True, places[-1]
        stroke.ahead = _rest(line, lengths, reach)
        stroke.frames_after_end += frames if stroke.ended else 0
        done = not stroke.ahead or stroke.frames_after_end >= _FINISH_SECONDS * self.fps
        if stroke.ended and done:
            del self._strokes[number]
            self._changed = True
        return torch.tensor(places).clamp(0, 1), stroke.track

    def _camera_move(self, move: Camera) -> TrackSet:
        seconds = _CAMERA_SECONDS
        made = camera(
            frames=round(seconds * self.fps),
            pan=(move.pan[0] * seconds, move.pan[1] * seconds),
            zoom=move.zoom**seconds,
            rotate=move.rotate * seconds,
            aspect=self.aspect,
        )
        return _named(made, _FIRST_CAMERA_ID)


def _named(tracks: TrackSet, first: int) -> TrackSet:
    ids = torch.arange(first, first + tracks.num_tracks)
    return TrackSet(tracks.points, tracks.state, tracks.pinned, ids)


def _path_knots(
    points: Sequence[tuple[float, float, float]], at: XY, fps: float
) -> list[tuple[float, float, float]]:
    """Knots of (seconds, x, y) whose start lies on the thing itself and whose end is where it was drawn to,
    in drawn time, or slower where that is faster than things can be pulled.
    """
    began, length = points[0][0], max(points[-1][0] - points[0][0], 1.0)
    off_x, off_y = at[0] - points[0][1], at[1] - points[0][2]
    knots: list[tuple[float, float, float]] = []
    for time, x, y in points:
        left = 1 - (time - began) / length
        knot = ((time - began) / 1000, _unit(x + left * off_x), _unit(y + left * off_y))
        if knots and knot[0] - knots[-1][0] < 1e-3:
            continue
        knots.append(knot)
    if len(knots) < 2:
        knots = [(0.0, _unit(at[0]), _unit(at[1])), (1 / fps, points[-1][1], points[-1][2])]
    elapsed, slower = 0.0, [knots[0]]
    for (t0, x0, y0), (t1, x1, y1) in itertools.pairwise(knots):
        elapsed += max(t1 - t0, math.dist((x0, y0), (x1, y1)) / (MAX_STEP * fps))
        slower.append((elapsed, x1, y1))
    return slower


def _along(line: list[XY], lengths: list[float], distance: float) -> XY:
    """The point at a distance along a line."""
    for (x0, y0), (x1, y1), length in zip(line, line[1:], lengths, strict=False):
        if distance <= length and length > 0:
            share = distance / length
            return x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        distance -= length
    return line[-1]


def _rest(line: list[XY], lengths: list[float], distance: float) -> list[XY]:
    """The points of a line that lie beyond a distance."""
    for index, length in enumerate(lengths):
        if distance < length - 1e-9:
            return line[index + 1 :]
        distance -= length
    return []


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
