"""An injected clock, and a viewer with a link of its own, for tests of the demo's protocol."""

from collections import deque
from collections.abc import Callable
from typing import Any

from demo.fake_engine import FakeEngine
from demo.limits import Limits
from demo.live import LiveSession
from demo.messages import Ack, Start
from demo.outgoing import Outgoing
from demo.pictures import OutFrame
from demo.worker import Worker

STEP = 0.005


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Room:
    """A worker and its sessions on one clock; `run` lets time pass for all of them."""

    def __init__(self, **engine: Any) -> None:
        self.clock = Clock()
        self.engine = FakeEngine(**({"seconds": 0.05} | engine), wait=self._work)
        self.worker = Worker(self.clock)
        self.viewers: list[Viewer] = []

    def join(self, start: bool = True, limits: Limits | None = None, **link: float) -> "Viewer":
        """A new viewer whose stream has been started."""
        viewer = Viewer(self, limits or Limits(recording_bytes=2**24), **link)
        self.viewers.append(viewer)
        self.worker.add(viewer.session)
        if start:
            viewer.session.handle(Start("a red ball", 0))
        return viewer

    def run(self, seconds: float, every: Callable[[], None] = lambda: None) -> None:
        """Let time pass; `every` is called at each of its steps."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            every()
            for viewer in self.viewers:
                viewer.look()
            if self.worker.run_once(self.clock.now) > 0:
                self.clock.sleep(STEP)

    def _work(self, seconds: float) -> None:
        """The engine works; meanwhile viewers go on."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.sleep(min(STEP, end - self.clock.now))
            for viewer in self.viewers:
                viewer.look()


class Viewer:
    """A page with a playing clock as the browser's, behind a link of a delay and a rate.

    Args:
        limits: what the session may take.
        delay: seconds from server to viewer, and back.
        seconds_per_frame: the link's time for one frame.
    """

    def __init__(
        self, room: Room, limits: Limits, delay: float = 0.0, seconds_per_frame: float = 0.0
    ) -> None:
        self.room, self.delay, self.seconds_per_frame = room, delay, seconds_per_frame
        self.outgoing = Outgoing()
        self.session = LiveSession(room.engine, self.outgoing, room.clock, room.worker.poke, limits)
        self.heard: list[dict[str, Any]] = []
        self.shown: list[tuple[float, OutFrame]] = []
        self.latencies: list[float] = []
        self.answering = True
        self.most_under_way = 0
        self._way: deque[tuple[float, int | None, Any]] = deque()
        self._back: deque[tuple[float, Ack]] = deque()
        self._link_free = 0.0
        self._arrived: dict[int, OutFrame] = {}
        self._made: dict[int, float] = {}
        self._head, self._end, self._rate, self._epoch, self._seq = 0.0, 0, 0.0, 0, 0
        self._playing = False
        self._last = room.clock.now

    def look(self) -> None:
        """Everything that happens at this moment: sending, arriving, showing, acknowledging."""
        now = self.room.clock.now
        self._send(now)
        while self._way and self._way[0][0] <= now:
            _, seq, item = self._way.popleft()
            if seq is None:
                self._message(item)
            else:
                self._frame(seq, item, now)
        self._play(now)
        while self._back and self._back[0][0] <= now:
            ack = self._back.popleft()[1]
            if self.session.state != "ended":
                self.session.handle(ack)

    def states(self) -> list[str]:
        """All states told so far."""
        return [m["state"] for m in self.heard if m["type"] == "state"]

    def receipts(self, status: str) -> list[dict[str, Any]]:
        """Receipts of one status."""
        return [m for m in self.heard if m["type"] == "receipt" and m["status"] == status]

    def _send(self, now: float) -> None:
        for message in self.outgoing.take():
            if message["type"] == "chunk":
                self._made |= dict.fromkeys(range(message["start"], message["end"]), now)
            self._way.append((max(now, self._link_free) + self.delay, None, message))
        while (item := self.session.next_frame()) is not None:
            self._link_free = max(now, self._link_free) + self.seconds_per_frame
            self._way.append((self._link_free + self.delay, item[0], item[1]))
            window = self.session.window
            self.most_under_way = max(self.most_under_way, window.sent - window.acked)

    def _message(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        if message["type"] == "state":
            self._playing = message["state"] == "playing"
        elif message["type"] == "place":
            self._epoch, self._end, self._head = message["epoch"], message["frame"], float(message["frame"])
            self._arrived.clear()
        elif message["type"] == "chunk" and message["epoch"] == self._epoch:
            self._end, self._rate = message["end"], message["rate"]

    def _frame(self, seq: int, frame: OutFrame, now: float) -> None:
        self._seq = seq
        if frame.epoch == self._epoch:
            self._arrived[frame.frame] = frame
        self._acknowledge(now)

    def _play(self, now: float) -> None:
        elapsed, self._last = now - self._last, now
        if self._playing:
            self._head = min(self._head + elapsed * self._rate, max(float(self._end), self._head))
        due = [number for number in self._arrived if number <= self._head]
        if due:
            frame = self._arrived[max(due)]
            self.shown.append((now, frame))
            self.latencies.append(now - self._made.get(frame.frame, now))
            self._arrived = {n: f for n, f in self._arrived.items() if n > frame.frame}
            self._acknowledge(now)

    def _acknowledge(self, now: float) -> None:
        if self.answering and self._seq:
            shown = self.shown[-1][1].frame if self.shown else 0
            self._back.append((now + self.delay, Ack(self._seq, self._epoch, shown, self._head)))
