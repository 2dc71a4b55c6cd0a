"""What of a viewer's hands is in force, numbered, as the page draws and lists it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .messages import Grid

# What is over stays listed for so long: a page shows frames later than they are made.
_LISTED_SECONDS = 4.0
_MOST = 64


@dataclass(frozen=True)
class Held:
    """One gesture.

    Attributes:
        number: what the page calls it.
        kind: drag, path, box or camera.
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

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._all.values()))

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
        kept = [held for held in self if held.end is None or held.end >= least]
        self._all = {held.gesture: held for held in kept[-_MOST:]}

    def _over(self, held: Held) -> bool:
        return held.end is not None and held.end <= self._now
