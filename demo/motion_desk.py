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

from streamgen.motion.boxes import covers_alike, held_grid, patch, together
from streamgen.motion.gestures import Gesture
from streamgen.motion.tracks import TrackSet, merge, pins

from .drawn_tracks import MAX_STEP, XY, box_tracks, camera_tracks, path_tracks
from .held import Held, HeldList
from .messages import Camera, Grid

Changes = dict[str, TrackSet | None]

MAX_STROKES = 4
MAX_PATHS = 8
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
    grid: Grid | None = None
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
        self.held = HeldList(fps)
        self._strokes: dict[int, _Stroke] = {}
        self._pins: tuple[XY, ...] = ()
        self._grids: tuple[Grid | None, ...] = ()
        self._moving: Camera | None = None
        # what the next chunk changes, and the frame where each gesture in force is over
        self._changes: Changes = {}
        self._ends: dict[str, int] = {}

    @property
    def pins(self) -> tuple[XY, ...]:
        """The points that hold still."""
        return self._pins

    @property
    def pin_rows(self) -> list[list[float]]:
        """Them as the page says them: (x, y), or with a grid (x, y, width, height, spacing)."""
        grids = self._grids or (None,) * len(self._pins)
        return [
            [*at, *(() if own is None else (*own.size, own.spacing))]
            for at, own in zip(self._pins, grids, strict=True)
        ]

    def begin_stroke(
        self, number: int, at: XY, points: Sequence[XY], own: Grid | None = None, label: str = ""
    ) -> int | None:
        """A drag begins on the thing that is at `at` now: the gesture's number, None when there are too many.

        Args:
            own: tracks about the hand in place of one.
            label: what it says, for the page.
        """
        if number not in self._strokes and len(self._strokes) >= MAX_STROKES:
            return None
        held = self.held.add("drag", number, label, (), own)
        self._strokes[number] = _Stroke(held.gesture, at, own, list(points))
        return held.number

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

    def add_path(
        self,
        points: Sequence[tuple[float, float, float]],
        at: XY,
        own: Grid | None = None,
        label: str = "",
        number: int = 0,
    ) -> int | None:
        """A drawn path of (milliseconds, x, y) on the thing that is at `at` now; begins with the next chunk.

        Args:
            own, label, number: see `begin_stroke`.

        Returns:
            The gesture's number, None when too many are under way.
        """
        if self._full:
            return None
        knots, tracks = path_tracks(points, at, own, self.fps, self.aspect)
        held = self.held.add("path", number, label, knots, own)
        self._changes[held.gesture] = tracks
        return held.number

    def add_box(
        self,
        knots: Sequence[tuple[float, ...]],
        at: XY,
        spacing: float,
        name: str = "",
        label: str = "",
        number: int = 0,
    ) -> int | None:
        """A box of (milliseconds, left, top, right, bottom) whose thing is at `at` now.

        One that has the name of a box in force takes its place.

        Returns:
            The gesture's number, None when too many are under way.

        Raises:
            ValueError: a box that cannot be, or one that begins on the place of another.
        """
        way, tracks = box_tracks(knots, at, spacing, name, self.fps, self.aspect)
        before = None
        for other in self.held.in_force("box"):
            if name and other.name == name:
                before = other
            elif covers_alike(self.held.place(other), way[0][1:]):
                raise ValueError(f"box {other.number} is at that place: nobody could tell which is meant")
        if before is not None:
            self.remove(before.number)
        if self._full:
            return None
        held = self.held.add("box", number, label, way, None, name)
        self._changes[held.gesture] = tracks
        return held.number

    @property
    def _full(self) -> bool:
        """Whether as many paths and boxes are under way as may be."""
        under_way = {**dict.fromkeys(self._ends, True), **self._changes}
        return (
            sum(bool(on) and name.startswith(("path", "box")) for name, on in under_way.items()) >= MAX_PATHS
        )

    def remove(self, number: int) -> Held | None:
        """Let go of one gesture with the next chunk; None where nothing has that number."""
        held = self.held.find(number)
        if held is None:
            return None
        for key, stroke in list(self._strokes.items()):
            if stroke.name == held.gesture:
                del self._strokes[key]
        if held.kind == "camera":
            self._moving = None
        self._changes.pop(held.gesture, None)
        if held.start is None and held.gesture not in self._ends:
            self.held.forget(held)
        else:
            self._changes[held.gesture] = None
        return held

    def set_pins(self, points: Sequence[XY], grids: Sequence[Grid | None] = ()) -> None:
        """All points that hold still from now on; `grids` has a patch for each, or is empty."""
        self._pins, self._grids = tuple(points), tuple(grids)
        self._changes["pins"] = self._still() if points else None

    def move_camera(self, move: Camera, label: str = "") -> None:
        """Begin or end a camera move; one with `seconds` ends by itself.

        Raises:
            ValueError: faster than tracks can tell.
        """
        self._changes["camera"] = None if move.at_rest else self._travel(move)
        self._moving = None if move.at_rest or move.seconds else move
        if not move.at_rest:
            self.held.camera(move.id, label, move.seconds)
        elif "camera" not in self._ends:
            self.held.end("camera", None)

    def bring(self, gestures: Sequence[Gesture], frame: int) -> None:
        """Of the gestures in force in the chunk from a frame on, others than these hands' are shown, too.

        One of theirs ends where they have said; a timeline may have another of the same name.
        """
        self.held.bring([one for one in gestures if self._ends.get(one.name) != one.end], frame)

    def end_strokes(self) -> None:
        """The hand is gone (a lost connection)."""
        for stroke in self._strokes.values():
            stroke.ended = True
        if self._moving is not None:
            self.move_camera(Camera((0.0, 0.0), 1.0, 0.0))

    def clear(self) -> None:
        """Let go of everything."""
        self._strokes.clear()
        self._pins, self._grids, self._moving = (), (), None
        for held in self.held.in_force():
            if held.start is None and held.gesture not in self._ends:
                self.held.forget(held)
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
        goes = {*self._ends, *self.held.brought(start)}
        changes = {name: t for name, t in self._changes.items() if t is not None or name in goes}
        self._changes = {}
        live = {stroke.name for stroke in self._strokes.values()}
        for name, tracks in changes.items():
            self._ends[name] = start if tracks is None else start + tracks.num_frames
            if tracks is None:
                self.held.end(name, start)
            elif name not in live and not (name == "camera" and self._moving):
                self.held.begin(name, start, self._ends[name])
            else:
                self.held.begin(name, start, None)
        self.held.tidy(start)
        return changes or None

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
        way = torch.tensor(places).clamp(0, 1)
        tracks = TrackSet.from_points(way[None])
        if stroke.grid is not None:
            tracks = together(way, patch(stroke.grid.size, stroke.grid.spacing, self.aspect))
        if stroke.ended and (not stroke.ahead or stroke.frames_after_end >= _FINISH_SECONDS * self.fps):
            del self._strokes[number]
            return tracks
        # in force, without a word, until it is moved: a gesture that is over would not keep its id
        return tracks.slice(0, frames + 1)

    def _still(self) -> TrackSet:
        frames = round(_PIN_SECONDS * self.fps)
        if not self._grids:
            return pins(self._pins, frames)
        # a grid of no size is a point
        patches = [own or Grid((0.0, 0.0), 1.0) for own in self._grids]
        return merge(
            [
                held_grid(at, frames, own.size, own.spacing, self.aspect)
                for at, own in zip(self._pins, patches, strict=True)
            ]
        )

    def _travel(self, move: Camera) -> TrackSet:
        return camera_tracks(move, move.seconds or _CAMERA_SECONDS, self.fps, self.aspect)


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
