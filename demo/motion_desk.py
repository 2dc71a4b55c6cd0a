"""What a viewer's hands say, as changes of the stream's gestures: live drags, drawn paths, pins and camera.

Times of drawing become frames of video here. Each thing a hand does is a gesture of its own, so none of them
has to know of the others. A live drag has no future: it is moved with every chunk, and says what was drawn
since the last boundary, spread over the chunk's frames.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from streamgen.motion.tracks import TrackSet, camera, path, pins

from .messages import Camera

XY = tuple[float, float]
Changes = dict[str, TrackSet | None]

MAX_STROKES = 4
MAX_PATHS = 8
# Farthest a drag pulls per frame, in parts of the picture: faster tracks than the model knows break things.
MAX_STEP = 0.05
# Seconds that pins are planned ahead, and a camera move.
_PIN_SECONDS = 10.0
_CAMERA_SECONDS = 3.0
# Seconds that a drag goes on after the hand let go, to bring the object where it was dropped.
_FINISH_SECONDS = 1.0


@dataclass
class _Stroke:
    """A live drag: where the object is now, and the points that it has still to go through."""

    name: str
    at: XY
    ahead: list[XY] = field(default_factory=list)
    ended: bool = False
    begun: bool = False
    frames_after_end: int = 0


class MotionDesk:
    """Collects what hands do and says what it changes with the next chunk. Not thread-safe.

    Args:
        fps: frames per second of the stream.
        aspect: width / height of the picture.
    """

    def __init__(self, fps: float, aspect: float = 1.0) -> None:
        self.fps, self.aspect = fps, aspect
        self._strokes: dict[int, _Stroke] = {}
        self._pins: tuple[XY, ...] = ()
        self._moving: Camera | None = None
        self._made = 0
        # what the next chunk changes, and the frame where each gesture in force is over
        self._changes: Changes = {}
        self._ends: dict[str, int] = {}

    @property
    def pins(self) -> tuple[XY, ...]:
        """The points that hold still."""
        return self._pins

    def begin_stroke(self, number: int, at: XY, points: Sequence[XY]) -> bool:
        """A drag begins on the thing that is at `at` now. False when there are too many."""
        if number not in self._strokes and len(self._strokes) >= MAX_STROKES:
            return False
        self._strokes[number] = _Stroke(self._name("drag"), at, list(points))
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
        under_way = {**dict.fromkeys(self._ends, True), **self._changes}
        if sum(bool(on) and name.startswith("path") for name, on in under_way.items()) >= MAX_PATHS:
            return False
        self._changes[self._name("path")] = path(_path_knots(points, at, self.fps), self.fps)
        return True

    def set_pins(self, points: Sequence[XY]) -> None:
        """All points that hold still from now on."""
        self._pins = tuple(points)
        self._changes["pins"] = self._still() if points else None

    def move_camera(self, move: Camera) -> None:
        """Begin or end a camera move.

        Raises:
            ValueError: faster than tracks can tell.
        """
        self._changes["camera"] = None if move.at_rest else self._travel(move)
        self._moving = None if move.at_rest else move

    def end_strokes(self) -> None:
        """The hand is gone (a lost connection)."""
        for stroke in self._strokes.values():
            stroke.ended = True
        if self._moving is not None:
            self.move_camera(Camera((0.0, 0.0), 1.0, 0.0))

    def clear(self) -> None:
        """Let go of everything."""
        self._strokes.clear()
        self._pins, self._moving = (), None
        self._changes = dict.fromkeys(self._ends)

    def plan(self, start: int, frames: int) -> Changes | None:
        """The changes to submit for the chunk of `frames` frames from frame `start` of the stream on.

        Returns:
            By gesture, tracks that begin at `start`, or None to let go; None where nothing changes.
        """
        self._ends = {name: end for name, end in self._ends.items() if end > start}
        if self._pins and self._ends.get("pins", start) <= start + frames:
            self._changes["pins"] = self._still()
        if self._moving is not None and self._ends.get("camera", start) < start + frames:
            self._changes["camera"] = self._travel(self._moving)
        for number, stroke in list(self._strokes.items()):
            self._changes[stroke.name] = self._advance(number, frames)
        changes = {name: t for name, t in self._changes.items() if t is not None or name in self._ends}
        self._changes = {}
        for name, tracks in changes.items():
            self._ends[name] = start if tracks is None else start + tracks.num_frames
        return changes or None

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind} {self._made}"

    def _advance(self, number: int, frames: int) -> TrackSet:
        """The track of a dragged thing in the next chunk."""
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
        tracks = TrackSet.from_points(torch.tensor(places).clamp(0, 1)[None])
        if stroke.ended and (not stroke.ahead or stroke.frames_after_end >= _FINISH_SECONDS * self.fps):
            del self._strokes[number]
            return tracks
        # in force, without a word, until it is moved: a gesture that is over would not keep its id
        return tracks.slice(0, frames + 1)

    def _still(self) -> TrackSet:
        return pins(self._pins, round(_PIN_SECONDS * self.fps))

    def _travel(self, move: Camera) -> TrackSet:
        seconds = _CAMERA_SECONDS
        return camera(
            frames=round(seconds * self.fps),
            pan=(move.pan[0] * seconds, move.pan[1] * seconds),
            zoom=move.zoom**seconds,
            rotate=move.rotate * seconds,
            aspect=self.aspect,
        )


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
