"""One live stream: a lock, a reference to its state, and a queue of events."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..engine.budget import StepBudget
from ..engine.noise import NoiseSource
from ..engine.overlap.wave import WaveRunner
from ..engine.quantize import keeps_cache
from ..engine.runner import Runner
from ..errors import InputError
from ..live.open import RawFrames, open_input
from ..live.pushed import Fed, PushedInput
from ..live.taken import InputSource
from ..suggest import shorten
from .conditioning import Controls
from .events import Receipt, StreamEvent
from .log import LogFile
from .model import StreamModel
from .overlap import wave
from .queue import EventQueue
from .snapshot import Restored, Snapshot, decode, encode, write_snapshot
from .state import FrameChunk, StreamState
from .step import (
    Decision,
    admitted,
    conclude,
    decide,
    hearing,
    ordered,
    paced,
    settled,
    step,
    with_input,
)
from .timeline import Timeline


@dataclass(frozen=True, eq=False)
class _Moment:
    """A state, the chunk that led there, what its events came to, what a restore has brought, and what chunks
    have taken where there is a deadline.
    """

    state: StreamState
    chunk: FrameChunk | None = None
    decision: Decision | None = None
    brought: Restored | None = None
    budget: StepBudget | None = None

    def on_the_way(self, state: StreamState, decision: Decision | None = None) -> "_Moment":
        """A later moment before the next chunk is there."""
        return _Moment(state, self.chunk, decision, None, self.budget)


class Session:
    """Iterate for pictures, `submit` to steer; made by `Pipeline.open`.

        for chunk in session:
            show(chunk.frames)
            session.submit(StreamEvent(prompt="a blue star"))

    A chunk and its events become visible together, when the one reference to the moment is replaced. After an
    exception at any line the session is as it was before, pending events still pending, and the next chunk is
    what it would have been; a chunk that was made and not handed over is handed over next. `submit` may be
    called from any thread; generation is serialised.
    """

    def __init__(
        self,
        model: StreamModel,
        state: StreamState,
        runner: Runner | None = None,
        log: Path | None = None,
        budget: StepBudget | None = None,
    ) -> None:
        self.model = model
        self.runner: Runner = runner or model.plain_runner()
        if budget is not None and isinstance(self.runner, WaveRunner):
            raise InputError(f"deadline: not on runner {self.runner.name}, whose chunks overlap")
        self.geometry, self.seed = model.geometry, state.log.header.seed
        self.log_file = None if log is None else LogFile(log, state.log)
        self._queue, self._now, self._owed = EventQueue(), _Moment(state, budget=budget), False
        self._generating = threading.RLock()
        self._source: InputSource | None = None
        self._attaching = threading.RLock()

    @property
    def state(self) -> StreamState:
        """Everything the stream is."""
        return self._now.state

    @property
    def controls(self) -> Controls:
        """What steers it."""
        return self.state.controls

    @property
    def epoch(self) -> int:
        """How often the stream went to a snapshot."""
        return self.state.epoch

    @property
    def next_frame(self) -> int:
        """First pixel frame of the next chunk."""
        return self.state.next_frame(self.geometry)

    @property
    def timeline(self) -> Timeline:
        """What took effect where."""
        return self.state.log.timeline()

    @property
    def pending(self) -> tuple[Receipt, ...]:
        """Receipts of the events that wait, in order of submission."""
        return tuple(item.receipt for item in self._queue.items)

    @property
    def deadline_note(self) -> str | None:
        """One line where no number of steps meets the deadline."""
        return None if self._now.budget is None else self._now.budget.note

    def in_force(self, receipt: Receipt) -> bool:
        """Whether an event was applied in the stream as it is now: not in a future that a rewind undid."""
        return receipt.status == "applied" and self.state.log.has_receipt(receipt.number)

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        """Ask for a change at the next chunk that has not begun, or at the first from `at_frame` on.

        Returns at once, but for encoders that are quick. A prompt for now takes effect when it is encoded,
        and no chunk waits for it; one with `at_frame` is encoded ahead, and its chunk waits. A change that
        cannot be, alone or with the others of its chunk, is refused in the receipt.
        """
        receipt = self._queue.receipt(self.epoch)
        try:
            item = admitted(self.model, self.state, event, receipt, at_frame)
        except InputError as error:
            return receipt.refuse(str(error))
        self._queue.put(item, self.controls.settings)
        return receipt

    def listen(
        self,
        source: "str | Path | Tensor | np.ndarray | InputSource | None" = None,
        *,
        raw: RawFrames | None = None,
        patience: float = 1.0,
        capacity: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> InputSource:
        """Take live input from the next chunk on that finds some.

        Args:
            source: None for frames that `feed` brings; or a clip, `-` for standard input or a named pipe
                (Y4M, or with `raw` raw RGB), or frames `(T, H, W, 3)` of the stream's rate, of which nothing
                is dropped. A stream that was resumed or is a replay takes the same input again.
            patience: seconds that a chunk waits for a frame that is fed, before it holds the last one.
            capacity: frames that wait at most, by default two chunks'; older ones are dropped.
            stopped: asked while a pipe keeps the stream waiting.

        Raises:
            InputError: it cannot be read, the model has no picture encoder, or no noise level of the model is
                at or under the strength that is set.
        """
        self._check_listening()
        geometry = self.geometry
        chunk = geometry.temporal * max(self.model.plan.chunk_frames, self.model.plan.first_chunk_frames)
        made: InputSource
        if source is None:
            size = (geometry.height, geometry.width)
            made = PushedInput(
                size, geometry.fps, max(8, 2 * chunk) if capacity is None else capacity, patience
            )
        elif isinstance(source, str | Path | Tensor | np.ndarray):
            made = open_input(source, geometry, chunk, raw, stopped)
        elif callable(getattr(source, "take", None)):
            made = source
        else:
            raise InputError(f"input: expected a path, - or frames, found {shorten(source)}")
        with self._attaching:
            self._source = made
        return made

    def feed(self, frames: Any, at: Sequence[float] | None = None, fps: float | None = None) -> Fed:
        """Push frames of live input, from any thread; returns at once. See `PushedInput.feed`.

        Raises:
            InputError: frames or times that cannot be, or a stream that reads its input itself.
        """
        with self._attaching:
            source = self._source or self.listen()
        if not isinstance(source, PushedInput):
            raise InputError(f"feed: this stream reads its input from {source.name}")
        return source.feed(frames, at, fps)

    def end_input(self, reason: str = "it was ended") -> None:
        """No frames come any more, until more are fed: the stream goes on by itself."""
        with self._attaching:
            heard = self.state.heard
            if self._source is None and heard is not None and heard.on:
                # a resumed stream whose input nobody has any more
                self.listen()
            if isinstance(self._source, PushedInput):
                self._source.end(reason)

    @property
    def source(self) -> InputSource | None:
        """Where its live input comes from."""
        return self._source

    @property
    def input_over(self) -> bool:
        """Whether its live input has begun and nothing comes of it any more; may wait for that."""
        source, heard = self._source, self.state.heard
        if source is None or heard is None:
            return False
        return not heard.on or source.over(heard.following)

    def withdraw(self, receipt: Receipt) -> None:
        """Take back an event that waits; InputError where it does not, or is not of this stream."""
        self._queue.withdraw(receipt)

    def __iter__(self) -> Iterator[FrameChunk]:
        return self

    def __next__(self) -> FrameChunk:
        before, owed = None, False
        try:
            with self._generating:
                before, owed = self._now, self._owed
                self._conclude(before)
                if not owed:
                    self._now = self._next()
                    self._conclude(self._now)
                chunk = self._now.chunk
                assert chunk is not None
                self._owed = False
                return chunk
        except BaseException:
            # a chunk that was made and not handed over is what the next call returns
            made = before is not None and self._now.chunk is not before.chunk
            self._owed = self._owed or owed or made
            raise

    def snapshot(self, outline: bool = False) -> Snapshot:
        """All state as of now, bounded in size; pending events included.

        Args:
            outline: without cache and decoder, a small part of it: a stream that is restored from one goes on
                as after a recache of its past under the words it was made with, not bit for bit.
        """
        with self._generating:
            self._conclude(self._now)
            if self.state.flight:
                raise InputError(
                    f"snapshot: chunks of this stream overlap (runner {self.runner.name}), and those that "
                    "have begun cannot be kept; expected another runner"
                )
            owed = self._now.chunk if self._owed else None
            waiting = (self._queue.items, self._queue.numbers)
            return encode(self.model, self.runner, self.state, waiting, owed, self._source, outline)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or forth) to a snapshot of this or a like session; raises the epoch.

        Events that wait now and did not wait then are refused.

        Raises:
            InputError: the snapshot is of another model, size or dtype, or damaged.
        """
        with self._generating:
            self._conclude(self._now)
            same = self.state.noise.identity == snapshot.meta.get("noise")
            noise = self.state.noise if same else None
            eight_bits = keeps_cache(self.runner.quantize)
            self._go(decode(snapshot, self.model, noise, self.epoch + 1, eight_bits))

    def fork(self) -> "Session":
        """A second stream that continues from here, independent of this one, on a cache of its own."""
        source = None if self._source is None else self._source.twin()
        noise, budget = self.state.noise, self._now.budget
        return Session.of(self.model, self.snapshot(), self.runner, noise, budget, source)

    @classmethod
    def of(
        cls,
        model: StreamModel,
        snapshot: Snapshot,
        runner: Runner | None = None,
        noise: NoiseSource | None = None,
        budget: StepBudget | None = None,
        source: InputSource | None = None,
    ) -> "Session":
        """A session that goes on where a snapshot was taken; raises as `restore` and `Pipeline.open` do."""
        bits = None if runner is None else runner.quantize
        restored = decode(snapshot, model, noise, eight_bits=keeps_cache(bits))
        session = cls(model, restored.state, runner, budget=budget)
        session._source = source
        session._go(restored)
        return session

    def save(self, path: str | Path) -> None:
        """Write a snapshot to a file that `Pipeline.resume` opens; its log inside, or the log file's name."""
        with self._generating:
            write_snapshot(self.snapshot(), Path(path), None if self.log_file is None else self.log_file.path)

    def _next(self) -> _Moment:
        """The moment behind the next chunk."""
        if isinstance(self.runner, WaveRunner):
            return self._overlapped(self.runner)
        return self._one_by_one()

    def _overlapped(self, runner: WaveRunner) -> _Moment:
        """The moment behind the next chunk that is finished, of a stream whose chunks overlap. What has begun
        on the way stays so if the rest fails.
        """
        spent: dict[str, float] = {}
        while True:
            begun, decision = self.state, decide(self.model, self.state, self._queue.due(self.next_frame))
            if not begun.flight and (begun.given() is not None or decision.picture is not None):
                # latents that are given take no steps
                return self._one_by_one()
            if wave.may_begin(runner, begun, decision):
                place = (begun.begins.chunk, self.next_frame)
                begun = wave.begin(self.model, runner, begun, decision)
                self._now = self._now.on_the_way(begun, replace(decision, place=place))
                self._conclude(self._now)
            add = lambda part, seconds: spent.update({part: spent.get(part, 0.0) + seconds})  # noqa: E731
            state, chunk = wave.tick(self.model, runner, begun, add)
            if chunk is not None:
                return _Moment(state, replace(chunk, timings=chunk.timings | spent), budget=self._now.budget)
            self._now = self._now.on_the_way(state)

    def _one_by_one(self) -> _Moment:
        """The moment behind the next chunk of a stream that makes one after the other."""
        timings: dict[str, float] = {}
        decision, budget = decide(self.model, self.state, self._queue.due(self.next_frame)), self._now.budget
        if budget is not None:
            decision = paced(self.model, self.state, decision, budget)
        decision = self._listened(decision)
        state = settled(self.runner, self.state, decision, timings.__setitem__)
        # the same stream with its last chunk committed, which stays if the rest fails
        self._now = replace(self._now, state=state)
        state, chunk = step(self.model, self.runner, state, decision, timings)
        if budget is not None:
            budget = budget.after(chunk.timings, chunk.steps, decision.rebuilds)
        return _Moment(state, with_input(chunk, decision), decision, budget=budget)

    def _listened(self, decision: Decision) -> Decision:
        """The decision with the frames of the input that its chunk takes."""
        order, source = ordered(self.model, self.state, decision), self._source
        if source is None:
            if order.begun or order.exact:
                taken = f"frame {(order.exact or (order.following,))[0]}"
                raise InputError(
                    f"input: this stream takes {taken} of its live input next: expected it (listen, "
                    "--input), found none"
                )
            return hearing(self.state, decision, order, None)
        # where a log is followed, it says when the input begins
        told = any(item.event.input is not None for item in self._queue.items)
        if told and not order.begun and order.exact is None:
            return decision
        return hearing(self.state, decision, order, source.take(order))

    def _check_listening(self) -> None:
        _ = self.model.tokenizer
        if self.model.mesh is not None:
            raise InputError(f"input: not over {self.model.mesh.size} processes")
        if isinstance(self.runner, WaveRunner):
            raise InputError(f"input: not on runner {self.runner.name}, whose chunks overlap")
        self.controls.settings.check_strength(self.model.settings)

    def _go(self, restored: Restored) -> None:
        """Become what a snapshot says."""
        self.seed = restored.state.log.header.seed
        self._now = _Moment(restored.state, restored.owed, brought=restored, budget=self._now.budget)
        self._owed = restored.owed is not None
        self._conclude(self._now)

    def _conclude(self, moment: _Moment) -> None:
        """Tell receipts, queue and log file what a moment has come to. May be cut short and done again."""
        if moment.brought is not None:
            self._queue.adopt(moment.brought.pending, moment.brought.receipts)
            if self._source is None and moment.brought.numbers:
                self._source = self.listen()
            if self._source is not None:
                self._source.restored(moment.brought.frames, moment.brought.numbers)
        decision, chunk, geometry = moment.decision, moment.chunk, self.geometry
        if decision is not None and (chunk is not None or decision.place is not None):
            place = decision.place
            if place is None and chunk is not None:
                place = (chunk.index, chunk.start_frame)
            assert place is not None
            conclude(decision, place, geometry.fps, moment.state.epoch)
            self._queue.remove(decision.taken)
            if self._source is not None and decision.order is not None:
                self._source.done(decision.order)
        if self.log_file is not None:
            self.log_file.write(moment.state.log)
