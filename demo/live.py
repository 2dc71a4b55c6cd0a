"""One viewer's live session: the stream, what it owes to the viewer, and what the viewer asked of it.

Two threads meet here, the web loop (messages in, frames out) and the engine's worker (`due`, `work`); a lock
guards what they share and is never held while a chunk is made. Everything that waits is bounded.
"""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamgen import StreamEvent, StreamgenError
from streamgen.motion.tracks import TrackSet

from . import pictures
from .answers import Answers
from .commands import Commands
from .engine import Engine, Generated, Stream
from .follow import follow
from .history import Marks, Take, Takes
from .messages import (
    Ack,
    BadMessage,
    Camera,
    Event,
    Message,
    Path,
    Pins,
    Rewind,
    Simple,
    Start,
    Step,
    Stroke,
)
from .messages import Take as TakeUp
from .motion_desk import MotionDesk
from .pacing import LATE, AckWindow, GenerationTimes, Outbox, Playhead, start_time
from .pictures import OutFrame
from .recording import Lineage, Recording
from .voice import Voice

# Between marks, and of pictures kept for following what a stroke was drawn on.
_MARK_SECONDS, _SEEN_SECONDS = 1.0, 2.0


@dataclass(frozen=True)
class Limits:
    """What one session may take: bytes of snapshots in memory, bytes of recorded frames on disk."""

    snapshot_bytes: int = 96 * 2**20
    recording_bytes: int = 512 * 2**20


@dataclass
class Counters:
    """Frames made for and sent to the viewer."""

    sent: int = 0
    generated: int = 0


class LiveSession:
    """A viewer's session.

    Args:
        engine: makes the stream.
        voice: carries messages to the viewer.
        clock: seconds, monotonic.
        wake_worker: called when there may be work.
    """

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        clock: Callable[[], float] = time.monotonic,
        wake_worker: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        info = engine.info
        limits = limits or Limits()
        self.engine, self.voice, self.clock, self.wake_worker = engine, voice, clock, wake_worker
        self.state, self.epoch = "ready", 0
        self.rate = info.fps
        self.pictures: np.ndarray | None = None
        self.window = AckWindow(info.fps)
        self.head = Playhead()
        self.times = GenerationTimes()
        self.outbox: Outbox[OutFrame] = Outbox(room=2 * info.chunk_frames + 1)
        self.desk = self._new_desk()
        self.recording = Recording(info.height, info.width, limits.recording_bytes)
        self.marks = Marks(round(_MARK_SECONDS * info.fps), limits.snapshot_bytes)
        self.takes = Takes(limits.snapshot_bytes)
        self.answers = Answers(voice, info.fps)
        self.strip = self.answers.strip
        self.counters = Counters()
        self.stream: Stream | None = None
        self.shown = 0
        self._made_end = 0
        self._announced = (0, 0.0)
        self._wanted = -1
        self._seen: deque[tuple[int, np.ndarray]] = deque(maxlen=round(_SEEN_SECONDS * info.fps))
        self._commands = Commands()
        self._lock = threading.RLock()

    # -- from the web loop ---------------------------------------------------------------------------------

    def handle(self, message: Message) -> None:
        """Do what a viewer says.

        Raises:
            BadMessage: it makes no sense now.
        """
        with self._lock:
            if self.state == "ended":
                raise BadMessage("the session has ended")
            if isinstance(message, Ack):
                self._acknowledged(message)
            elif isinstance(message, Start):
                self._start(message)
            elif isinstance(message, Rewind):
                self._command(lambda: self._rewind(message.mark))
            elif isinstance(message, TakeUp):
                self._command(lambda: self._take_up(message.take))
            elif self.stream is None:
                raise BadMessage("no stream has been started")
            else:
                self._steer(message)
        self.wake_worker()

    def next_frame(self) -> tuple[int, OutFrame] | None:
        """The next frame to send and its sequence number; None while the window is closed."""
        with self._lock:
            if not self.window.open:
                return None
            now = self.clock()
            arrival = self.head.at(now, self._made_end) + self.window.transit * self.head.rate
            # the viewer's clock waited for the newest chunk's announcement, which took the same way
            start, said = self._announced
            arrival = min(arrival, start + (now - said) * self.head.rate)
            late = LATE * self.rate
            item = self.outbox.take(lambda frame: frame < arrival - late)
            if item is None:
                return None
            self.counters.sent += 1
            return self.window.send(now), item

    def connected(self) -> None:
        """A viewer has (re)connected: nothing is under way any more, and they are told where things stand."""
        with self._lock:
            self.window.forget()
            self.outbox.clear()
            self.voice.clear()
            self._say_state()
            if self.stream is not None:
                self._wanted = -1
                self._say_place(self._made_end, self._last_picture())
                self.head = Playhead(float(self._made_end), self.clock(), self._moving())
        self.wake_worker()

    def disconnected(self) -> None:
        """The viewer's connection is gone; the stream waits until they are back or the session ends."""
        with self._lock:
            self.desk.end_strokes()
            self.head.settle(self.clock(), self._made_end, 0.0)

    def close(self) -> None:
        """End the session and give everything back."""
        with self._lock:
            self.state = "ended"
            self._commands.clear()
            self.stream = None
            self.outbox.clear()
            self.takes.clear()
            self.marks.cut(-1)
            self._seen.clear()
        self.recording.close()

    def slow_to(self, rate: float) -> None:
        """Play at another rate, as the engine can keep up with."""
        with self._lock:
            if abs(rate - self.rate) > 0.02 * self.rate:
                self.rate = rate
                self.head.settle(self.clock(), self._made_end, self._moving())

    # -- from the worker -----------------------------------------------------------------------------------

    def due(self, now: float, others: float = 0.0) -> float:
        """When there is work: a time, infinity for none.

        Args:
            others: seconds that chunks of other sessions may take before this one's turn comes.
        """
        with self._lock:
            if self._commands.due:
                return -math.inf
            if self.stream is None or self.state not in ("playing", "paused"):
                return math.inf
            if self.state == "paused":
                return now if self._made_end <= self._wanted else math.inf
            left = self._made_end - self.head.at(now, self._made_end)
            if len(self.outbox) > self.outbox.room - self.engine.info.chunk_frames and left > 0:
                return math.inf
            return start_time(now, left, self._moving(), self.times.expected + others, self.window.transit)

    def work(self) -> None:
        """Do what is due: a command, or the next chunk. An error of the engine ends in state `failed`."""
        with self._lock:
            command = self._commands.take()
        try:
            if command is not None:
                command()
            elif self.stream is not None:
                self._generate(self.stream)
        except StreamgenError as error:
            self._fail(str(error))
        except Exception as error:  # whatever it is, the viewer is told, and other sessions go on
            traceback.print_exc()
            reason = str(error).splitlines()[0] if str(error) else ""
            self._fail(f"the engine failed: {type(error).__name__}{': ' if reason else ''}{reason[:200]}")

    # -- messages ------------------------------------------------------------------------------------------

    def _steer(self, message: Message) -> None:
        if isinstance(message, Event):
            self._event(message)
        elif isinstance(message, Stroke):
            self._stroke(message)
        elif isinstance(message, Path):
            if self._fresh(message.epoch, message.id, "path"):
                at = self._now_at(message.frame, message.points[0][1:])
                if not self.desk.add_path(message.points, at):
                    raise BadMessage("path: too many paths are under way")
                self.answers.gesture("path", message.id)
        elif isinstance(message, Pins):
            self.desk.set_pins(message.points)
            self.answers.gesture("pins" if message.points else "release")
        elif isinstance(message, Camera):
            try:
                self.desk.move_camera(message)
            except ValueError as error:
                raise BadMessage(str(error)) from None
            if not message.at_rest:
                self.answers.gesture("camera")
        elif isinstance(message, Step):
            self._wanted = min(message.frame, self._made_end)
        elif isinstance(message, Simple):
            self._simple(message.kind)

    def _simple(self, kind: str) -> None:
        if kind == "clear":
            self.desk.clear()
            self.answers.gesture("release")
        elif kind == "pause" and self.state == "playing":
            self._turn("paused")
        elif kind == "resume" and self.state in ("paused", "failed"):
            self._turn("playing")

    def _event(self, message: Event) -> None:
        number, kind = message.id, message.kind
        if not self._fresh(message.epoch, number, kind):
            return
        if self.answers.full:
            self.answers.refuse(number, kind, "too many changes wait already")
            return
        assert self.stream is not None
        try:
            receipt = self.stream.submit(message.stream_event())
        except StreamgenError as error:
            self.answers.refuse(number, kind, str(error))
            return
        self.answers.submitted(number, kind, message.label, receipt)

    def _stroke(self, message: Stroke) -> None:
        if message.phase == "begin":
            if not self._fresh(message.epoch, message.id, "drag"):
                return
            first = message.points[0][1:]
            rest = [(x, y) for _, x, y in message.points]
            if not self.desk.begin_stroke(message.id, self._now_at(message.frame, first), rest):
                raise BadMessage("stroke: too many drags at once")
            self.answers.gesture("drag", message.id)
        elif message.epoch == self.epoch:
            points = [(x, y) for _, x, y in message.points]
            self.desk.move_stroke(message.id, points, message.phase == "end")

    def _acknowledged(self, message: Ack) -> None:
        now = self.clock()
        if not self.window.acknowledge(message.seq, now):
            raise BadMessage(f"ack: seq: {message.seq} was never sent")
        if message.epoch == self.epoch:
            self.shown = min(message.shown, self._made_end)
            self.head.report(min(message.head, float(self._made_end)), now)

    def _fresh(self, epoch: int, number: int, kind: str) -> bool:
        """Refuse what was said about a past that has been left meanwhile."""
        if epoch == self.epoch:
            return True
        self.answers.refuse(number, kind, "the stream went elsewhere before this arrived")
        return False

    def _now_at(self, frame: int, point: tuple[float, ...]) -> tuple[float, float]:
        """Where the thing at `point` of picture `frame` is in the newest picture."""
        x, y = point
        return follow([picture for number, picture in self._seen if number >= frame], (x, y))

    def _command(self, run: Callable[[], None], waits: tuple[Future[Any], ...] = ()) -> None:
        if not self._commands.add(run, waits):
            raise BadMessage("too many commands wait already")

    def _start(self, message: Start) -> None:
        """Begin a stream once its words are encoded: no stream of another viewer waits for them."""
        coming = self.engine.encode(message.prompt, message.settings)
        self._command(lambda: self._open(message), coming)
        pending = [future for future in coming if not future.done()]
        self._turn("opening", "encoding the words" if pending else "")
        for future in pending:
            future.add_done_callback(lambda _: self._words_are_there())

    def _words_are_there(self) -> None:
        with self._lock:
            if self.state == "opening" and not self._commands.waits:
                self._turn("opening")
        self.wake_worker()

    # -- work ----------------------------------------------------------------------------------------------

    def _open(self, message: Start) -> None:
        """Begin a stream. What plays goes on if it cannot be."""
        pictures_ = self.pictures if message.picture else None
        stream = self.engine.open(message.prompt, message.seed, message.settings, pictures_)
        with self._lock:
            if self.state == "ended":
                return
            self.stream = stream
            self.recording.restart()
            self.takes.clear()
            self.marks.cut(-1)
            self.strip.clear()
            self.strip.add(0, "prompt", message.prompt)
            self._go_to(0)
            self._turn("playing")

    def _rewind(self, number: int) -> None:
        mark = self.marks.find(number)
        stream = self.stream
        if mark is None or stream is None:
            self.voice.say({"type": "error", "code": "gone", "text": "this moment is not kept any more"})
            return
        with self._lock:
            left = self._branch(stream) if self._made_end > mark.frame else None
            stream.restore(mark.snapshot)
            if left is not None:
                self.takes.add(left)
            self.recording.go_to(self.recording.lineage(), mark.frame)
            self.marks.cut(mark.frame)
            self.takes.fit(self.marks)
            self.strip.cut(mark.frame)
            self._go_to(mark.frame, mark.picture)

    def _take_up(self, number: int) -> None:
        stream = self.stream
        take = self.takes.remove(number)
        if take is None or stream is None:
            self.voice.say({"type": "error", "code": "gone", "text": "this branch is not kept any more"})
            return
        with self._lock:
            left = self._branch(stream)
            stream.restore(take.snapshot)
            self.takes.add(left)
            self.recording.go_to(take.lineage)
            self.marks.put_back(take.marks)
            self.strip.put_back(take.strip)
            self._go_to(take.frame, take.picture)

    def _branch(self, stream: Stream) -> Take:
        """The branch that plays, to come back to."""
        lineage: Lineage = self.recording.lineage()
        return Take(
            self.takes.next_id(),
            self._made_end,
            stream.prompt,
            stream.snapshot(),
            self._last_picture(),
            lineage,
            self.strip.rows(),
            tuple(self.marks),
        )

    def _go_to(self, frame: int, picture: str = "") -> None:
        """A new epoch begins at a frame; the lock is held."""
        self.epoch += 1
        self._made_end, self._wanted, self.shown = frame, -1, max(frame - 1, 0)
        self.outbox.clear()
        self._seen.clear()
        self.answers.refuse_all("the stream went elsewhere before this took effect")
        self.desk = self._new_desk()
        if frame and self.stream is not None:
            # what the stream brought along from then is nobody's any more
            self.stream.submit(StreamEvent(motion=TrackSet.empty(0)))
        if self.state == "failed":
            self.state = "playing"
        self.head = Playhead(float(frame), self.clock(), self._moving())
        self._say_place(frame, picture)
        self._say_state()

    def _generate(self, stream: Stream) -> None:
        began = self.clock()
        with self._lock:
            epoch = self.epoch
            changes = self.desk.plan(stream.next_frame, stream.next_length)
            receipt = None if changes is None else stream.submit(StreamEvent(gestures=changes))
            self.answers.begin(receipt)
            if receipt is not None and receipt.status == "refused":
                self.desk = self._new_desk()
        made = stream.step()
        with self._lock:
            if self.state == "ended" or epoch != self.epoch:
                return
            self.times.add(self.clock() - began)
            self._publish(stream, made, self.clock() - began)
        self._keep(stream, made)

    def _publish(self, stream: Stream, made: Generated, seconds: float) -> None:
        count, now = len(made.frames), self.clock()
        # a viewer who ran out of frames has not gone beyond them
        self.head.settle(now, self._made_end, self._moving())
        self._made_end, self._announced = made.start + count, (made.start, now)
        self.counters.generated += count
        self._say_chunk(made, seconds)
        moment = time.time()
        for offset, picture in enumerate(made.frames):
            frame = made.start + offset
            self.outbox.put(frame, OutFrame(self.epoch, frame, made.index, moment, picture))
            self._seen.append((frame, picture))
        self.answers.settle(made, self.epoch, stream.in_force)
        self.voice.wake()

    def _keep(self, stream: Stream, made: Generated) -> None:
        self.recording.add(made.start, made.frames)
        if self.marks.wants(self._made_end) and self.marks.affords(stream.snapshot_bytes):
            before = {mark.id for mark in self.marks}
            mark = self.marks.add(self._made_end, stream.snapshot(), self._last_picture())
            self.takes.fit(self.marks)
            gone = sorted(before - {mark.id for mark in self.marks})
            self.voice.say({"type": "mark", **mark.row(), "gone": gone})

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self.state != "ended":
                # where nothing plays there is nothing to go on with
                self._turn("ready" if self.stream is None else "failed", reason)

    # -- telling -------------------------------------------------------------------------------------------

    def _new_desk(self) -> MotionDesk:
        info = self.engine.info
        return MotionDesk(info.fps, info.width / info.height)

    def _moving(self) -> float:
        return self.rate if self.state == "playing" else 0.0

    def _turn(self, state: str, text: str = "") -> None:
        self.state = state
        self.head.settle(self.clock(), self._made_end, self._moving())
        self._say_state(text)
        self.voice.wake()

    def _say_state(self, text: str = "") -> None:
        self.voice.say({"type": "state", "state": self.state, "text": text, "epoch": self.epoch})

    def _say_chunk(self, made: Generated, seconds: float) -> None:
        end = made.start + len(made.frames)
        row = {"type": "chunk", "epoch": self.epoch, "index": made.index, "start": made.start, "end": end}
        self.voice.say({**row, "rate": round(self.rate, 3), "gen_ms": round(seconds * 1000, 1)})

    def _say_place(self, frame: int, picture: str) -> None:
        """Everything a page needs to draw the session as it is; the lock is held."""
        assert self.stream is not None
        stream = self.stream
        row = {"type": "place", "epoch": self.epoch, "frame": frame, "picture": picture}
        words = {"prompt": stream.prompt, "unknown": list(stream.unknown), "dropped": stream.dropped}
        words["note"] = stream.note
        now = {"settings": stream.settings, "strip": self.strip.rows()}
        kept = {"marks": [mark.row() for mark in self.marks], "takes": [take.row() for take in self.takes]}
        self.voice.say(row | words | now | kept | {"no_rewind": self.marks.why_none(stream.snapshot_bytes)})

    def stats(self) -> dict[str, Any]:
        """Figures for the page."""
        with self._lock:
            used, room = self.stream.cache_fill if self.stream is not None else (0, 0)
            return {
                "type": "stats",
                "state": self.state,
                "rate": round(self.rate, 2),
                "generation_ms": round(self.times.mean * 1000, 1),
                "round_trip_ms": round(self.window.round_trip * 1000, 1),
                "window": self.window.size,
                "skipped": self.outbox.dropped,
                "sent": self.counters.sent,
                "cache": [used, room],
                "buffered": max(0, self._made_end - self.shown - 1) if self.stream is not None else 0,
                "recorded": self.recording.frames,
                "recording_full": self.recording.full,
            }

    def _last_picture(self) -> str:
        return pictures.data_url(self._seen[-1][1]) if self._seen else ""
