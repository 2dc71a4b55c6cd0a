"""What is in force, of a viewer's hands and of a timeline, numbered, as the page draws and lists it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamgen.motion.gestures import Gesture

from .drawn_tracks import ways_of
from .messages import Grid
from .score import kind_of

# What is over stays listed for so long: a page shows frames later than they are made.
_LISTED_SECONDS = 4.0
_MOST = 64
# Knots of a way that goes on, chunk by chunk; what those say that no hand has drawn here.
_MOST_KNOTS = 256
_BROUGHT = "from the timeline"


@dataclass(frozen=True)
class Held:
    """One gesture.

    Attributes:
        number: what the page calls it.
        kind: drag, path, box or camera; pins where a timeline brought them.
        gesture: its name in the stream.
        id: the viewer's number of the message that asked for it.
        label: what it says in words.
        knots: its way, rows of (seconds, x, y) or (seconds, left, top, right, bottom).
        grid: the patch of tracks that goes along, if it is one.
        name: what is in a box.
        start: the frame where it begins; None: with the next chunk.
        end: the frame where it is over; None: when it is let go of.
    """

    number: int
    kind: str
    gesture: str
    id: int
    label: str
    knots: tuple[tuple[float, ...], ...]
    grid: Grid | None = None
    name: str = ""
    start: int | None = None
    end: int | None = None

    def row(self, fps: float) -> dict[str, Any]:
        """For the page; times are in frames."""
        knots = [[round(knot[0] * fps, 2), *(round(value, 4) for value in knot[1:])] for knot in self.knots]
        row = {"number": self.number, "kind": self.kind, "id": self.id, "label": self.label}
        grid = None if self.grid is None else [*self.grid.size, self.grid.spacing]
        return row | {"name": self.name, "knots": knots, "grid": grid, "start": self.start, "end": self.end}


class HeldList:
    """All of them, in the order in which they were asked for.

    Args:
        fps: of the stream.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._made = 0
        self._now = 0
        self._all: dict[str, Held] = {}
        # what no hand holds, by gesture: one for each way, with the frame where its tracks begin
        self._brought: dict[str, tuple[int, list[Held]]] = {}

    def __iter__(self) -> Iterator[Held]:
        brought = [held for _, ways in self._brought.values() for held in ways]
        return iter((*self._all.values(), *brought))

    def brought(self, frame: int | None = None) -> list[str]:
        """The gestures in force at a frame, or with the last chunk, that no hand holds."""
        at = self._now if frame is None else frame
        return [name for name, (_, ways) in self._brought.items() if (ways[0].end or 0) > at]

    def bring(self, gestures: Sequence[Gesture], frame: int) -> None:
        """What is in force in the chunk that begins at a frame and is held by no hand: a timeline brought it.

        One that is moved, as drags are with every chunk, keeps its number and its way until there.
        """
        now = {gesture.name: gesture for gesture in gestures if gesture.end > frame}
        for name, (start, ways) in self._brought.items():
            if name not in now and ways[0].end is not None and ways[0].end > frame:
                self._brought[name] = start, [replace(held, end=frame) for held in ways]
        for name, gesture in now.items():
            start, ways = self._brought.get(name, (-1, []))
            goes_on = bool(ways) and (ways[0].end or 0) >= gesture.start
            if start == gesture.start:
                continue
            found = self._ways(gesture)
            if goes_on and len(ways) == len(found):
                found = [_longer(held, new, self.fps) for held, new in zip(ways, found, strict=True)]
            elif found:
                found = [replace(held, number=self._made + i) for i, held in enumerate(found, 1)]
                self._made += len(found)
            if found:
                self._brought[name] = gesture.start, found

    def _ways(self, gesture: Gesture) -> list[Held]:
        kind = kind_of(gesture.name)
        span = gesture.start, gesture.end
        ways = ways_of(kind, gesture.tracks, self.fps)
        return [Held(0, kind, gesture.name, 0, _BROUGHT, tuple(way), None, "", *span) for way in ways]

    def rows(self) -> list[dict[str, Any]]:
        """For the page."""
        return [held.row(self.fps) for held in self]

    def add(
        self,
        kind: str,
        number: int,
        label: str,
        knots: Sequence[tuple[float, ...]],
        grid: Grid | None = None,
        name: str = "",
    ) -> Held:
        """A gesture that begins with the next chunk."""
        self._made += 1
        while f"{kind} {self._made}" in self._brought:
            self._made += 1
        gesture = f"{kind} {self._made}"
        held = Held(self._made, kind, gesture, number, label, tuple(knots), grid, name)
        self._all[gesture] = held
        return held

    def camera(self, number: int, label: str, seconds: float) -> None:
        """The one camera move; a new one takes the place of another."""
        before = self._all.pop("camera", None)
        self._made += before is None
        mine = self._made if before is None else before.number
        knots = ((seconds,),) if seconds else ()
        self._all["camera"] = Held(mine, "camera", "camera", number, label, knots)

    def in_force(self, kind: str | None = None) -> list[Held]:
        """Those that are asked for or in force, of a kind or all."""
        return [held for held in self if not self._over(held) and kind in (None, held.kind)]

    def place(self, held: Held) -> tuple[float, ...]:
        """Where it is with the next chunk: (x, y), or (left, top, right, bottom)."""
        seconds = 0.0 if held.start is None else (self._now - held.start) / self.fps
        for (t0, *before), (t1, *after) in itertools.pairwise(held.knots):
            if seconds <= t1:
                share = max(0.0, (seconds - t0) / (t1 - t0))
                return tuple(a + share * (b - a) for a, b in zip(before, after, strict=True))
        return held.knots[-1][1:]

    def find(self, number: int) -> Held | None:
        """The one of that number, while it is in force."""
        return next((held for held in self.in_force() if held.number == number), None)

    def relabel(self, number: int, label: str) -> None:
        """It says something else now."""
        for gesture, held in self._all.items():
            if held.number == number:
                self._all[gesture] = replace(held, label=label)

    def begin(self, gesture: str, start: int, end: int | None) -> None:
        """It is in force from a frame on, or goes on."""
        held = self._all.get(gesture)
        if held is not None:
            self._all[gesture] = replace(held, start=start if held.start is None else held.start, end=end)

    def end(self, gesture: str, frame: int | None) -> None:
        """It is let go of at a frame; None: before it began."""
        held = self._all.get(gesture)
        if held is None:
            return
        if frame is None:
            del self._all[gesture]
        else:
            self._all[gesture] = replace(held, end=frame)

    def forget(self, held: Held) -> None:
        """It has never been."""
        self._all.pop(held.gesture, None)

    def tidy(self, frame: int) -> None:
        """Forget what has been over for a while at a frame."""
        self._now = frame
        least = frame - _LISTED_SECONDS * self.fps
        kept = [held for held in self._all.values() if held.end is None or held.end >= least]
        self._all = {held.gesture: held for held in kept[-_MOST:]}
        brought = self._brought.items()
        self._brought = {name: own for name, own in brought if (own[1][0].end or 0) >= least}

    def _over(self, held: Held) -> bool:
        return held.end is not None and held.end <= self._now


def _longer(held: Held, new: Held, fps: float) -> Held:
    """A way that is moved on from a frame on."""
    assert held.start is not None
    assert new.start is not None
    if held.kind in ("pins", "camera"):
        return replace(new, number=held.number, start=held.start)
    after = (new.start - held.start) / fps
    before = [knot for knot in held.knots if knot[0] < after]
    knots = (*before, *((knot[0] + after, *knot[1:]) for knot in new.knots))
    return replace(held, knots=knots[-_MOST_KNOTS:], end=new.end)
