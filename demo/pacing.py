"""When to make the next chunk and which frame to send next: pure arithmetic on times that are passed in.

The viewer's clock rules. A chunk is begun just in time, when what the viewer still has to play lasts about as
long as making and sending the next chunk takes; so a change meets a boundary near what the viewer sees (after
the pacing of vllm-omni RFC 6646). Frames are sent while few are under way; those that would come too late are
left out, so that a slow link shows fewer frames and never older ones.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from streamgen.stream.prompts import recaches_that_fit

T = TypeVar("T")

# Seconds of play kept in hand beyond what generation and transport take.
MARGIN = 0.05
# A frame that would be shown later than this after its time gives way to a newer one.
LATE = 0.06
# Frames under way: bounds, and what is allowed beyond the link's capacity, so that a growing one is noticed.
_MIN_WINDOW, _MAX_WINDOW, _SPARE = 3, 16, 0.3
_MAX_TRANSIT = 0.3
_REMEMBERED = 60.0
# Seconds that the viewer's clock is trusted to have gone on by itself.
_MAX_SILENCE = 0.5
# Share of the engine's time that playing may ask for; the rest absorbs jitter.
_FULL_LOAD = 0.95


@dataclass
class AckWindow:
    """Frames under way to a viewer: sent and not yet acknowledged.

    The window is 3 frames until the link's round trip asks for more at the rate at which frames go through.

    Args:
        fps: frames per second offered.
    """

    fps: float
    sent: int = 0
    acked: int = 0
    _times: deque[tuple[int, float]] = field(default_factory=deque)
    _trips: deque[tuple[float, float]] = field(default_factory=deque)
    _arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    _delay: float = 0.0

    @property
    def open(self) -> bool:
        """Whether one more frame may be sent."""
        return self.sent - self.acked < self.size

    @property
    def size(self) -> int:
        """Frames that may be under way."""
        wanted = math.ceil(self.round_trip * min(self.fps, self._rate()) + _SPARE)
        return min(max(wanted, _MIN_WINDOW), _MAX_WINDOW)

    @property
    def round_trip(self) -> float:
        """Shortest time from sending to acknowledgement of the last minute: the link without queues."""
        return self._trips[0][1] if self._trips else 0.0

    @property
    def transit(self) -> float:
        """Seconds that a frame sent now is expected to take, queues included."""
        return min(max(self._delay - self.round_trip / 2, self.round_trip / 2), _MAX_TRANSIT)

    def send(self, now: float) -> int:
        """Count a frame as sent; returns its sequence number, from 1."""
        self.sent += 1
        self._times.append((self.sent, now))
        return self.sent

    def acknowledge(self, seq: int, now: float) -> bool:
        """All frames up to `seq` have arrived. False for a number that was never sent."""
        if seq > self.sent:
            return False
        if seq <= self.acked:
            return True
        self.acked = seq
        while self._times and self._times[0][0] <= seq:
            trip = now - self._times.popleft()[1]
        # only what may yet become the shortest is kept
        while self._trips and self._trips[-1][1] >= trip:
            self._trips.pop()
        self._trips.append((now, trip))
        while now - self._trips[0][0] > _REMEMBERED:
            self._trips.popleft()
        self._delay = trip if self._delay == 0 else 0.8 * self._delay + 0.2 * trip
        self._arrivals.append(now)
        return True

    def forget(self) -> None:
        """A new connection: nothing is under way, and the link has to be measured again."""
        self.acked = self.sent
        self._times.clear()
        self._trips.clear()
        self._arrivals.clear()
        self._delay = 0.0

    def _rate(self) -> float:
        if len(self._arrivals) < 8 or self._arrivals[-1] <= self._arrivals[0]:
            return self.fps
        return max((len(self._arrivals) - 1) / (self._arrivals[-1] - self._arrivals[0]), 1.0)


@dataclass
class Playhead:
    """Where the viewer is, in frames: last reported, and carried on at the playing rate while heard of."""

    frame: float = 0.0
    since: float = 0.0
    rate: float = 0.0
    heard: float = -math.inf

    def report(self, frame: float, now: float) -> None:
        """The viewer says that it plays `frame` (fractions included)."""
        self.frame, self.since, self.heard = frame, now, now

    def at(self, now: float, end: float) -> float:
        """The position now; frames from `end` on do not exist yet."""
        trusted = max(_MAX_SILENCE, 1.5 / self.rate) if self.rate else 0.0
        elapsed = max(min(now, self.heard + trusted) - self.since, 0.0)
        return min(self.frame + elapsed * self.rate, max(end, self.frame))

    def stood(self, now: float, end: float) -> float:
        """Seconds that a viewer who was heard of, and is there, has had nothing to play; frames from `end` on
        do not exist yet.
        """
        if self.rate <= 0 or self.heard == -math.inf:
            return 0.0
        return max((self.frame - end) / self.rate + now - self.since, 0.0)

    def settle(self, now: float, end: float, rate: float) -> None:
        """Until now the viewer had frames up to `end`; from now on they play at `rate`, 0 while paused."""
        self.frame, self.since, self.rate = self.at(now, end), now, rate


@dataclass
class GenerationTimes:
    """How long chunks take: the last 16."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    def add(self, seconds: float) -> None:
        """A chunk took this long."""
        self.seconds.append(seconds)

    @property
    def expected(self) -> float:
        """What the next one should be given: nine of ten were done within it."""
        if not self.seconds:
            return 0.0
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]

    @property
    def mean(self) -> float:
        """Average of the last ones, without the slowest eighth: a single pause is no reason to slow down."""
        if not self.seconds:
            return 0.0
        ordered = sorted(self.seconds)
        kept = ordered[: max(1, len(ordered) - len(ordered) // 8)]
        return sum(kept) / len(kept)


@dataclass
class RecacheTimes:
    """How long it takes to make the cache anew, and how often a way from words to words may do so."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    commit: float = 0.0

    def add(self, timings: Mapping[str, float], recached: bool) -> None:
        """A chunk was made, its parts took this long."""
        self.commit = max(timings.get("commit", 0.0), 0.8 * self.commit)
        if recached:
            self.seconds.append(timings.get("event", 0.0))

    def every(self, over: float, chunk_seconds: float, work: float, context: int) -> int:
        """With every how many-th chunk of a passage a recache fits, so that no chunk comes late.

        Args:
            over: seconds of the passage.
            chunk_seconds: that a chunk plays.
            work: seconds that one takes to make without a recache, others' work included.
            context: chunks in the cache at most.
        """
        chunks = max(1, round(over / chunk_seconds))
        return recaches_that_fit(chunks, chunk_seconds, work, self.expected(context), MARGIN)

    def expected(self, context: int) -> float:
        """Seconds of the next one; one that was never seen is taken for so many commits."""
        return max(self.seconds) if self.seconds else self.commit * context


def start_time(now: float, frames_left: float, rate: float, work: float, transit: float) -> float:
    """When to begin the next chunk.

    Args:
        frames_left: frames that the viewer still has to play.
        rate: at which it plays them, per second.
        work: seconds until the chunk is expected to be made, waiting for others included.
        transit: seconds to the viewer.
    """
    if rate <= 0:
        return math.inf
    return now + frames_left / rate - (work + transit + MARGIN)


def playing_rate(fps: float, load: float) -> float:
    """Frames per second that can be kept up evenly.

    Args:
        fps: of the model.
        load: seconds of generation per second of play at `fps`, over all viewers of the engine.
    """
    return fps if load <= _FULL_LOAD else fps * _FULL_LOAD / load


@dataclass
class Outbox(Generic[T]):
    """Frames that wait to be sent, oldest first; `room` at most, the oldest give way."""

    room: int
    dropped: int = 0
    _frames: deque[tuple[int, T]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: int, item: T) -> None:
        """Add frame number `frame`."""
        self._frames.append((frame, item))
        while len(self._frames) > self.room:
            self._frames.popleft()
            self.dropped += 1

    def take(self, late: Callable[[int], bool]) -> T | None:
        """The next frame to send: the first that is not `late`, else the newest; None without any."""
        while len(self._frames) > 1 and late(self._frames[0][0]):
            self._frames.popleft()
            self.dropped += 1
        return self._frames.popleft()[1] if self._frames else None

    def clear(self) -> None:
        """Forget all of them: they belong to a past that was left."""
        self._frames.clear()
