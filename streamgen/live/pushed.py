"""Input that is pushed from any thread: a camera, a program. What is too old is dropped, nobody waits
long.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..suggest import shorten
from .taken import Order, Taken, checked_frames

# a gap of more than this (s) in the times of frames begins the clock anew
_GAP = 1.0
# frames that a rate is told from
_RATE_FRAMES = 33
# of a time of a frame (s): far beyond, frames that follow each other would be at one time
_LATEST = 1e12
# clocks are rounded
_EARLY = 1e-6


@dataclass(frozen=True)
class Fed:
    """What became of frames that were pushed.

    Attributes:
        first: number of the first one.
        frames: how many they are.
        dropped: older ones that gave way to them.
        rate: frames a second that come in of late; None before it can be told.
    """

    first: int
    frames: int
    dropped: int
    rate: float | None


@dataclass(frozen=True, eq=False)
class _Item:
    """One frame of the stream's rate, its number in the input, and when it came."""

    frame: Tensor
    number: int
    arrived: float


@dataclass(frozen=True, eq=False)
class _Lane:
    """All that a pushed input is. A value: every change makes another one, so none is seen half made.

    Attributes:
        items: what waits, oldest first; of them the first `kept` are promised to a chunk.
        promise: that chunk's order and what it takes.
        fed: frames that came, ever.
        dropped: items let go of since the last chunk.
        clock: origin and number of the next tick, for frames with times.
        latest: time of the last frame, and when it came.
        times: of the last frames, to tell their rate.
        over: why nothing comes any more.
        stalled: whether a chunk has waited in vain since the last frame.
        adopted: what was restored last.
    """

    items: tuple[_Item, ...] = ()
    kept: int = 0
    promise: tuple[Order, Taken] | None = None
    fed: int = 0
    dropped: int = 0
    clock: tuple[float, int] | None = None
    latest: float | None = None
    came: float = -math.inf
    times: tuple[float, ...] = ()
    over: str | None = None
    stalled: bool = False
    adopted: Any = None

    @property
    def rate(self) -> float | None:
        """Frames a second."""
        span = self.times[-1] - self.times[0] if len(self.times) > 1 else 0.0
        return (len(self.times) - 1) / span if span > 0 else None


class PushedInput:
    """A bounded queue of frames at a stream's size and rate.

    Args:
        size: height and width of the stream's pictures.
        fps: its frames a second.
        capacity: frames that wait at most; older ones are dropped.
        patience: seconds that a chunk waits for a frame before it holds the last one.
        clock: tells the time, `time.monotonic`.
    """

    name = "what is fed"

    def __init__(
        self,
        size: tuple[int, int],
        fps: float,
        capacity: int,
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= patience < math.inf:
            raise InputError(f"input: patience: expected seconds of at least 0, found {shorten(patience)}")
        self.size, self.fps, self.capacity, self.patience = size, fps, max(1, capacity), patience
        self._clock, self._changed, self._lane = clock, threading.Condition(), _Lane()

    @property
    def rate(self) -> float | None:
        """Frames a second that come in of late; None before it can be told."""
        return self._lane.rate

    @property
    def stalled(self) -> bool:
        """Whether a chunk has waited in vain since the last frame."""
        return self._lane.stalled

    def feed(self, frames: Any, at: Sequence[float] | None = None, fps: float | None = None) -> Fed:
        """Push frames; returns at once.

        Args:
            frames: uint8 `(T, H, W, 3)` or `(H, W, 3)`, a tensor or array of any size; they are scaled to
                cover the stream's pictures and cropped at the centre.
            at: when each was taken, in seconds of any clock; frames are repeated or left out so that they
                play at their own pace.
            fps: their rate, instead of `at`; with neither, each is a frame of the stream.

        Raises:
            InputError: frames of another form, times that fall, or a rate that is none.
        """
        made = checked_frames(frames, *self.size)
        now = self._clock()
        with self._changed:
            lane = self._lane
            times = _times(lane, len(made), at, fps)
            first, dropped, items = lane.fed, lane.dropped, list(lane.items)
            clock, before = lane.clock if times is not None else None, lane.latest
            for i, frame in enumerate(made):
                ticks = 1
                if times is not None:
                    ticks, clock = self._ticks(clock, times[i], before)
                    before = times[i]
                items += [_Item(frame, first + i, now)] * ticks
            lost = max(0, len(items) - lane.kept - self.capacity)
            del items[lane.kept : lane.kept + lost]
            seen = [now] * len(made) if times is None else times
            self._lane = replace(
                lane,
                items=tuple(items),
                fed=first + len(made),
                dropped=dropped + lost,
                clock=clock,
                latest=before if times is not None else None,
                came=now,
                times=(*lane.times, *seen)[-_RATE_FRAMES:],
                over=None,
                stalled=False,
            )
            self._changed.notify_all()
            return Fed(first, len(made), lost, self._lane.rate)

    def end(self, reason: str = "it was ended") -> None:
        """Nothing comes any more, until more is fed."""
        with self._changed:
            self._lane = replace(self._lane, over=reason, clock=None, latest=None, times=())
            self._changed.notify_all()

    def take(self, order: Order) -> Taken | None:
        """See `InputSource`; waits for what is missing, but never longer than its patience after the last
        frame.
        """
        if order.exact is not None:
            raise InputError(
                "input: a timeline takes frames by their number, which what is fed does not have: give the "
                "input as a whole (listen, --input)"
            )
        with self._changed:
            if self._lane.promise is not None and self._lane.promise[0] == order:
                return self._lane.promise[1]
            if not order.begun and not self._lane.items:
                return None
            while len(self._lane.items) < order.count and self._lane.over is None and not self._lane.stalled:
                left = self._lane.came + self.patience - self._clock()
                if left <= 0:
                    break
                self._changed.wait(left)
            lane = self._lane
            items = lane.items[: order.count]
            missing = order.count - len(items)
            taken = _taken(order, items, lane.dropped, lane.over if missing else None)
            if taken is not None:
                stalled = lane.stalled or (missing > 0 and lane.over is None)
                self._lane = replace(lane, promise=(order, taken), kept=len(items), stalled=stalled)
            return taken

    def done(self, order: Order) -> None:
        """See `InputSource`."""
        with self._changed:
            lane = self._lane
            if lane.promise is not None and lane.promise[0] == order:
                gone = lane.promise[1].dropped
                self._lane = replace(
                    lane, items=lane.items[lane.kept :], kept=0, promise=None, dropped=lane.dropped - gone
                )

    def over(self, following: int) -> bool:
        """See `InputSource`."""
        lane = self._lane
        return lane.over is not None and len(lane.items) == lane.kept

    @property
    def waits(self) -> int:
        """How many frames came and were not taken."""
        return len(self._lane.items)

    def waiting(self) -> tuple[Tensor, tuple[int, ...]]:
        """See `InputSource`."""
        items = self._lane.items
        frames = torch.stack([item.frame for item in items]) if items else torch.empty(0, *self.size, 3)
        return frames.to(torch.uint8), tuple(item.number for item in items)

    def restored(self, frames: Tensor, numbers: tuple[int, ...]) -> None:
        """See `InputSource`; what came since is dropped, and later frames go on counting."""
        with self._changed:
            if self._lane.adopted is frames:
                return
            now = self._clock()
            items = tuple(_Item(f, n, now) for f, n in zip(frames.cpu().clone(), numbers, strict=True))
            fed = max(self._lane.fed, 1 + max(numbers, default=-1))
            self._lane = _Lane(items, fed=fed, over=self._lane.over, adopted=frames)
            self._changed.notify_all()

    def twin(self) -> "PushedInput":
        """See `InputSource`: an empty one, which a fork is fed by itself."""
        return PushedInput(self.size, self.fps, self.capacity, self.patience, self._clock)

    def _ticks(
        self, clock: tuple[float, int] | None, time_: float, before: float | None
    ) -> tuple[int, tuple[float, int]]:
        """How many frames of the stream a frame of this time is, and the clock after it."""
        if clock is None or (before is not None and time_ - before > _GAP):
            return 1, (time_, 1)
        origin, following = clock
        until = math.floor((time_ - origin) * self.fps + _EARLY) + 1
        return max(0, until - following), (origin, max(until, following))


def _times(lane: _Lane, count: int, at: Any, fps: Any) -> list[float] | None:
    """The times of frames that are fed, where they have any.

    Raises:
        InputError: see `PushedInput.feed`.
    """
    if at is not None and fps is not None:
        raise InputError("feed: expected at or fps, found both")
    if fps is not None:
        number = isinstance(fps, int | float) and not isinstance(fps, bool)
        if not number or not 0 < fps <= 1000:
            raise InputError(f"feed: fps: expected above 0 and at most 1000, found {shorten(fps)}")
        begin = 0.0 if lane.latest is None else lane.latest + 1 / fps
        return [begin + i / fps for i in range(count)]
    if at is None:
        return None
    values = [at] if isinstance(at, int | float) else list(at)
    numbers = all(isinstance(x, int | float) and abs(x) <= _LATEST for x in values)
    if len(values) != count or not numbers:
        raise InputError(f"feed: at: expected {count} times in seconds, found {shorten(at)}")
    before = lane.latest
    for value in values:
        if before is not None and value < before:
            raise InputError(f"feed: at: expected times that rise, found {value:g} after {before:g}")
        before = value
    return [float(value) for value in values]


def _taken(order: Order, items: tuple[_Item, ...], dropped: int, over: str | None) -> Taken | None:
    """What a chunk gets of what there is: what is missing is the last frame once more."""
    if not items and (over is not None or order.last is None):
        size = order.last.shape if order.last is not None else (0, 0, 3)
        return Taken(torch.empty(0, *size, dtype=torch.uint8), (), dropped=dropped, over=over)
    frames, numbers = [item.frame for item in items], [item.number for item in items]
    held = order.count - len(items)
    last, number = (frames[-1], numbers[-1]) if items else (order.last, max(0, order.following - 1))
    assert last is not None
    frames += [last] * held
    arrived = items[0].arrived if items else None
    return Taken(torch.stack(frames), tuple(numbers + [number] * held), held, dropped, arrived, over)
