"""One viewer's live session: the stream, what it owes to the viewer, and what the viewer asked of it.

Two threads meet here, the web loop (messages in, frames out) and the engine's worker (`due`, `work`); a lock
guards what they share and is never held while a chunk is made. Everything that waits is bounded.
"""

import math
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from streamgen import InputError, StreamEvent, StreamgenError
from streamgen.live.picture import Picture
from streamgen.motion.tracks import TrackSet

from . import pictures, session_rows
from .answers import Answers
from .branches import Branches
from .commands import Commands
from .engine import Engine, Generated, Stream
from .hands import HandMessage, Hands
from .history import Saved
from .limits import Counters, Limits
from .messages import Ack, BadMessage, Event, Message, Rewind, Simple, Start, Step
from .messages import Take as TakeUp
from .outgoing import Outgoing
from .pacing import LATE, AckWindow, GenerationTimes, Outbox, Playhead, RecacheTimes, start_time
from .pictures import OutFrame
from .plan import Plan
from .relay import Relay, for_watchers
from .shelf import Keeper, Kept
from .webcam import Webcam, WebcamFrame


class LiveSession:
    """A viewer's session.

    Args:
        engine: makes the stream.
        outgoing: carries messages to the viewer.
        clock: seconds, monotonic.
        wake_worker: called when there may be work.
        keeper: writes the stream to the shelf, where it is to outlive this process.
    """

    def __init__(
        self,
        engine: Engine,
        outgoing: Outgoing,
        clock: Callable[[], float] = time.monotonic,
        wake_worker: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        info, limits = engine.info, limits or Limits()
        self.engine, self.outgoing, self.clock, self.wake_worker = engine, outgoing, clock, wake_worker
        self.state, self.epoch = "ready", 0
        self.relay = Relay(clock)
        outgoing.also = self.relay.hear
        self.rate = info.fps
        self.pictures: np.ndarray | None = None
        self.window = AckWindow(info.fps)
        self.head = Playhead()
        self.times, self.recaches = GenerationTimes(), RecacheTimes()
        self._others, self._passing = 0.0, -1
        self.outbox: Outbox[OutFrame] = Outbox(room=2 * info.chunk_frames + 1)
        self.answers, self.keeper = Answers(outgoing, info.fps), keeper
        self.hands, self.plan = Hands(info, self.answers, self._fresh), Plan(self.answers, info.fps)
        self.strip = self.answers.strip
        folder = None if keeper is None else keeper.folder
        self.branches = Branches(info, limits.snapshot_bytes, limits.recording_bytes, self.strip, folder)
        self.recording, self.marks = self.branches.recording, self.branches.marks
        self.takes = self.branches.takes
        self.counters = Counters()
        self.stream: Stream | None = None
        self.shown = 0
        self._made_end = 0
        self._kept: Kept | None = None
        self._announced = (0, 0.0)
        self._wanted = -1
        self._commands = Commands()
        self.webcam = Webcam(clock, outgoing.say)
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

    def see(self, frame: WebcamFrame) -> None:
        """A picture of the viewer's camera.

        Raises:
            BadMessage: there is no stream, or it cannot hear.
        """
        with self._lock:
            if self.stream is None or self.state == "ended":
                raise BadMessage("camera frame: no stream has been started")
            try:
                self.webcam.hear(self.stream, frame)
            except StreamgenError as error:
                raise BadMessage(f"camera frame: {error}") from None
        self.wake_worker()

    def reopen(self, kept: Kept) -> None:
        """Go on with a stream from the shelf, once the viewer is there: what is said before would be lost."""
        with self._lock:
            self._kept = kept

    def next_frame(self) -> tuple[int, OutFrame] | None:
        """The next frame to send and its sequence number; None while the window is closed."""
        with self._lock:
            if not self.window.open:
                return None
            now, (start, said) = self.clock(), self._announced
            arrival = self.head.at(now, self._made_end) + self.window.transit * self.head.rate
            # the viewer's clock waited for the newest chunk's announcement, which took the same way
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
            self.outgoing.clear()
            self._say_state()
            if self.stream is not None:
                self._wanted = -1
                self._say_place(self._made_end, self._last_picture())
                self.head = Playhead(float(self._made_end), self.clock(), self._moving())
            kept, self._kept = self._kept, None
            if kept is not None:
                self._command(lambda: self._reopen(kept))
                self._turn("opening")
        self.wake_worker()

    def disconnected(self) -> None:
        """The viewer's connection is gone; the stream waits until they are back or the session ends."""
        with self._lock:
            self.hands.desk.end_strokes()
            self.webcam.end(self.stream, "the page with the camera is gone")
            self.head.settle(self.clock(), self._made_end, 0.0)

    def close(self) -> None:
        """End the session and give everything back."""
        with self._lock:
            if self.keeper is not None and self.stream is not None and self._made_end:
                about = self.branches.about(self._last_picture())
                snapshot = self.keeper.fitting(self.stream, None)
                self.keeper.keep(self.clock(), self.stream, snapshot, self._made_end, about)
            self.state = "ended"
            self._commands.clear()
            self.stream = None
            self.outbox.clear()
            self.hands.seen.clear()
        self.branches.close()

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
            self._others = others
            if self._commands.due:
                return -math.inf
            if self.stream is None or self.state not in ("playing", "paused"):
                return math.inf
            if self.state == "paused":
                return now if self._made_end <= self._wanted else math.inf
            left = self._made_end - self.head.at(now, self._made_end)
            if len(self.outbox) > self.outbox.room - self.engine.info.chunk_frames and left > 0:
                return math.inf
            # on the way from words to words the cache is made anew now and then
            passing = self._made_end <= self._passing
            recache = self.recaches.expected(self.stream.cache_fill[1]) if passing else 0.0
            work = self.times.expected + recache + others
            start = start_time(now, left, self._moving(), work, self.window.transit)
            return max(start, self.webcam.due(self.stream))

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
        elif isinstance(message, Step):
            self._wanted = min(message.frame, self._made_end)
        elif isinstance(message, Simple) and message.kind == "pause":
            if self.state == "playing":
                self._turn("paused")
        elif isinstance(message, Simple) and message.kind == "resume":
            if self.state in ("paused", "failed"):
                self._turn("playing")
        elif isinstance(message, Simple) and message.kind == "webcam_off":
            self.webcam.end(self.stream, "the camera is off")
        elif isinstance(message, HandMessage):
            self.plan.let_go(self.hands.leaves(message))
            self.hands.take(message)

    def _event(self, message: Event) -> None:
        number, kind = message.id, message.kind
        if not self._fresh(message.epoch, number, kind):
            return
        if self.answers.full:
            self.answers.refuse(number, kind, "too many changes wait already")
            return
        assert self.stream is not None
        try:
            every = self._recaches(self.stream, message.over)
            receipt = self.stream.submit(message.stream_event(every, self._picture_for(message)))
        except StreamgenError as error:
            self.answers.refuse(number, kind, str(error))
            return
        self.answers.submitted(number, kind, message.label, receipt)

    def _picture_for(self, message: Event) -> Picture | None:
        """What was uploaded, where a message asks for it."""
        if message.picture is None:
            return None
        if self.pictures is None:
            raise InputError("no picture has been uploaded")
        return Picture(torch.from_numpy(self.pictures[0].copy()), message.picture)

    def _recaches(self, stream: Stream, over: float) -> int:
        """With every how many-th chunk of a passage the cache may be made anew."""
        if not over:
            return 1
        playing = self.engine.info.chunk_frames / self.rate
        return self.recaches.every(over, playing, self.times.expected + self._others, stream.cache_fill[1])

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

    def _command(self, run: Callable[[], None], waits: tuple[Future[Any], ...] = ()) -> None:
        if not self._commands.add(run, waits):
            raise BadMessage("too many commands wait already")

    def _start(self, message: Start) -> None:
        """Begin a stream once its words are encoded: no stream of another viewer waits for them."""
        coming = self.engine.encode(message.prompt, message.settings)
        self._command(lambda: self._open(message), coming)
        self._turn("opening", "encoding the words" if self._commands.waits else "")
        for future in [future for future in coming if not future.done()]:
            future.add_done_callback(lambda _: self._words_are_there())

    def _words_are_there(self) -> None:
        with self._lock:
            if self.state == "opening" and not self._commands.waits:
                self._turn("opening")
        self.wake_worker()

    # -- work ----------------------------------------------------------------------------------------------

    def _open(self, message: Start) -> None:
        """Begin a stream. What plays goes on if it cannot be, and else becomes a branch."""
        pictures_ = self.pictures if message.picture else None
        stream = self.engine.open(message.prompt, message.seed, message.settings, pictures_)
        self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        with self._lock:
            if self.state == "ended":
                return
            self.branches.start(self.stream, self._made_end, self._last_picture())
            if self.stream is not None:
                self.plan.put((), self.stream)
            self.stream = stream
            self.strip.add(0, "prompt", stream.prompt)
            self._go_to(0)
            self._turn("playing")

    def _reopen(self, kept: Kept) -> None:
        """Go on with a stream from the shelf."""
        try:
            stream = self.engine.resume(kept.snapshot)
        except StreamgenError as error:
            self.outgoing.say({"type": "error", "code": "gone", "text": f"your stream cannot go on: {error}"})
            with self._lock:
                self._turn("ready")
            return
        with self._lock:
            if self.state == "ended":
                return
            self.branches.reopen(kept)
            self.stream = stream
            self._go_to(stream.next_frame, kept.picture)
            self.outgoing.say({"type": "reopened", "frame": stream.next_frame})
            self._turn("playing")

    def _rewind(self, number: int) -> None:
        mark = self.marks.find(number)
        stream = self.stream
        if mark is None or stream is None:
            self.outgoing.say({"type": "error", "code": "gone", "text": "this moment is not kept any more"})
            return
        with self._lock:
            waiting = self.plan.waiting
            self.branches.rewind(stream, mark, self._made_end, self._last_picture())
            self._go_to(mark.frame, mark.picture)
            self.plan.put(waiting, stream)

    def _take_up(self, number: int) -> None:
        stream = self.stream
        take = self.takes.remove(number)
        if take is None or stream is None:
            self.outgoing.say({"type": "error", "code": "gone", "text": "this branch is not kept any more"})
            return
        with self._lock:
            self.branches.take_up(stream, take, self._made_end, self._last_picture())
            self.plan.put((), stream)
            self._go_to(take.frame, take.picture)

    def _go_to(self, frame: int, picture: str = "", keep: bool = False) -> None:
        """A new epoch begins at a frame; the lock is held. With `keep` what is in force goes on there."""
        self.epoch += 1
        self._made_end, self._wanted, self.shown = frame, -1, max(frame - 1, 0)
        self._passing = -1
        self.outbox.clear()
        self.hands.seen.clear()
        self.answers.refuse_all("the stream went elsewhere before this took effect")
        self.hands.reset()
        if keep and self.stream is not None:
            self.hands.desk.bring(self.stream.gestures, frame)
        elif frame and self.stream is not None:
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
            self.plan.begin(stream)
            self.hands.begin(stream)
        made = stream.step()
        with self._lock:
            if self.state == "ended" or epoch != self.epoch:
                return
            self.hands.bring(stream, made.start)
            # what a recache takes is reckoned apart
            apart = made.timings.get("event", 0.0) if made.recached else 0.0
            self.times.add(self.clock() - began - apart)
            self.recaches.add(made.timings, made.recached)
            self.counters.chunk(self.clock() - began, self.head.stood(self.clock(), self._made_end))
            self._publish(stream, made, self.clock() - began)
        self._keep(stream, made)

    def _publish(self, stream: Stream, made: Generated, seconds: float) -> None:
        count, now = len(made.frames), self.clock()
        # a viewer who ran out of frames has not gone beyond them
        self.head.settle(now, self._made_end, self._moving())
        self._made_end, self._announced = made.start + count, (made.start, now)
        self.counters.generated += count
        self.outgoing.say(session_rows.chunk_row(made, self.epoch, self.rate, seconds))
        out = session_rows.out_frames(made, self.epoch)
        for frame in out:
            self.outbox.put(frame.frame, frame)
            self.hands.seen.append((frame.frame, frame.pixels))
        self.relay.show(out)
        self._passing = max([self._passing, *(r.until or -1 for r in made.receipts)])
        self.answers.settle(made, self.epoch, stream.in_force)
        self.webcam.made(made.heard)
        self.outgoing.wake()

    def _keep(self, stream: Stream, made: Generated) -> None:
        self.recording.add(made.start, made.frames)
        snapshot: Saved | None = None
        if self.marks.wants(self._made_end) and self.marks.affords(stream.snapshot_bytes):
            before = {mark.id for mark in self.marks}
            snapshot = stream.snapshot()
            mark = self.marks.add(self._made_end, snapshot, self._last_picture())
            self.takes.fit(self.marks)
            gone = before - {mark.id for mark in self.marks}
            self.outgoing.say({"type": "mark", **mark.row(), "gone": sorted(gone)})
        if self.keeper is not None and self.keeper.due(self.clock()):
            about, snapshot = self.branches.about(self._last_picture()), self.keeper.fitting(stream, snapshot)
            self.keeper.keep(self.clock(), stream, snapshot, self._made_end, about)

    def _fail(self, reason: str) -> None:
        with self._lock:
            if self.state != "ended":
                self._turn("ready" if self.stream is None else "failed", reason)

    # -- telling -------------------------------------------------------------------------------------------

    def _moving(self) -> float:
        return self.rate if self.state == "playing" else 0.0

    def _turn(self, state: str, text: str = "") -> None:
        self.state = state
        self.head.settle(self.clock(), self._made_end, self._moving())
        self._say_state(text)
        self.outgoing.wake()

    def _say_state(self, text: str = "") -> None:
        self.outgoing.say(session_rows.state_row(self.state, self.epoch, text))

    def _say_place(self, frame: int, picture: str) -> None:
        """Everything a page needs to draw the session as it is; the lock is held."""
        assert self.stream is not None
        held = self.hands.rows()
        self.outgoing.say(
            session_rows.place_row(self.stream, self.epoch, frame, picture, held, self.branches)
        )

    def standing(self) -> tuple[list[dict[str, Any]], int]:
        """Where the stream is, as rows for one who begins to watch, and the relay's next number."""
        with self._lock:
            rows = [session_rows.state_row(self.state, self.epoch)]
            if self.stream is not None:
                place = (self._made_end, self._last_picture(), self.hands.rows(), self.branches)
                rows.append(session_rows.place_row(self.stream, self.epoch, *place))
            return [row for row in map(for_watchers, rows) if row is not None], self.relay.end

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
                "watchers": self.relay.watchers,
            }

    def _last_picture(self) -> str:
        seen = self.hands.seen
        return pictures.data_url(seen[-1][1]) if seen else ""
