"""A generator without a model, for tests and measurements of everything around it.

Its pictures are a moving texture in a colour that names the prompt, so that a viewer's pixels tell which
prompt they were made under; it takes as long per chunk as it is told to.
"""

import pickle
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from streamgen import InputError, StreamEvent
from streamgen.live.taken import InputReceipt
from streamgen.motion.gestures import Gesture, changed, released
from streamgen.stream.events import Receipt
from streamgen.stream.prompts import blend_name
from streamgen.stream.queue import EventQueue, Pending, failed, merged
from streamgen.stream.settings import StreamSettings
from streamgen.stream.timeline import Applied, Timeline

from .engine import Generated, Loading, ModelInfo
from .webcam import room

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 220)}
_GREY = (128, 128, 128)
# Words of a prompt that fit.
_LENGTH = 12
SNAPSHOT_BYTES = 1_000_000


def colour_of(prompt: str) -> tuple[int, int, int]:
    """The colour that a prompt names."""
    return next((rgb for name, rgb in COLOURS.items() if name in prompt), _GREY)


def _texture(height: int, width: int) -> np.ndarray:
    """Smooth noise, uint8 `(height, width, 3)`: at 832 x 480 a picture of it takes about 48 kB as JPEG, as
    one of a real video does; plain noise would take three times that.
    """
    grain = max(1, height // 48)
    shape = (-(-height // grain), -(-width // grain), 3)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class FakeSaved:
    """A snapshot of a fake stream."""

    values: dict[str, Any]

    def size_bytes(self) -> int:
        return SNAPSHOT_BYTES


class FakeEngine:
    """Opens fake streams.

    Args:
        seconds: how long a chunk takes.
        recache: how much longer one takes before which the cache is made anew.
        wait: how that time passes; an injected clock is moved on here.

    Attributes:
        slow_words: whether prompts are encoded only when `finish_encoding` is called.
        refuses: why changes of settings are refused, "" where they are not.
        loading, failure: see `Engine`.
        refuse_open: raised when a stream is to be opened.
    """

    def __init__(
        self,
        fps: float = 16.0,
        size: tuple[int, int] = (64, 64),
        chunk_frames: int = 4,
        seconds: float = 0.05,
        wait: Callable[[float], None] = time.sleep,
        recache: float = 0.0,
    ) -> None:
        height, width = size
        self.seconds, self.wait, self.recache = seconds, wait, recache
        self.fail_next: Exception | None = None
        self.slow_words = False
        self.refuses = ""
        self._encoding: list[tuple[Future[Any], str]] = []
        self.opened: list[FakeStream] = []
        settings = {"steps": 4, "text_guidance": 3.0, "motion_guidance": 1.5}
        self._info = ModelInfo("fake", "none", width, height, fps, chunk_frames, settings, card="# fake")
        self.texture = _texture(height, width * 2)
        self.loading: Loading | None = None
        self.failure: Exception | None = None
        self.refuse_open: Exception | None = None

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(self, prompt: str, settings: Mapping[str, Any]) -> tuple[Future[Any], ...]:
        return (self.words(prompt),) if self.slow_words else ()

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> "FakeStream":
        if self.refuse_open is not None:
            raise self.refuse_open
        stream = FakeStream(self, prompt, seed, dict(self._info.settings) | dict(settings))
        self.opened.append(stream)
        return stream

    def replay(self, opening: Timeline, pictures: np.ndarray | None) -> "FakeStream":
        if opening.start is not None and pictures is None:
            raise InputError("the timeline began with a picture")
        first = opening.events[0].event
        return self.open(first.prompt or blend_name(first.parts), opening.seed, first.settings or {}, None)

    def resume(self, path: Path) -> "FakeStream":
        saved: FakeSaved = pickle.loads(path.read_bytes())
        stream = self.open(saved.values["prompt"], saved.values["seed"], {}, None)
        stream.restore(saved)
        return stream

    def timeline_of(self, path: Path) -> dict[str, Any]:
        return self.resume(path).timeline()

    def words(self, prompt: str) -> "Future[Any]":
        """What is unknown (words that begin with an x) and dropped of a prompt."""
        future: Future[Any] = Future()
        if self.slow_words:
            self._encoding.append((future, prompt))
        else:
            future.set_result(_notes(prompt))
        return future

    def finish_encoding(self, error: Exception | None = None) -> None:
        """Finish the prompts that are being encoded, or fail at it."""
        for future, prompt in self._encoding:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(_notes(prompt))
        self._encoding.clear()


def _notes(prompt: str) -> SimpleNamespace:
    words = prompt.split()
    unknown = tuple(word for word in words if word.startswith("x"))
    return SimpleNamespace(unknown=unknown, dropped=max(0, len(words) - _LENGTH))


@dataclass
class FakeStream:
    """A fake stream; `motions` has the changes of gestures it was given, by the frame where they took effect,
    `gestures` what is in force.
    """

    engine: FakeEngine
    prompt: str
    seed: int
    settings: dict[str, Any]
    next_frame: int = 0
    index: int = 0
    motions: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    gestures: tuple[Gesture, ...] = ()
    applied: tuple[int, ...] = ()
    way: tuple[tuple[float, ...], int, int] | None = None
    steps: tuple[int, int, int] = (0, 0, 1)
    input_frames: list[int] = field(default_factory=list)
    input_count: int = 0
    listens: bool = False
    _queue: EventQueue = field(default_factory=EventQueue)

    def __post_init__(self) -> None:
        self._log = Timeline(self.engine.info.fps, self.seed)
        self._log.record(0, 0, StreamEvent(self.prompt, None, self.settings))

    @property
    def next_length(self) -> int:
        return self.engine.info.chunk_frames if self.next_frame else 1

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(_notes(self.prompt).unknown)

    @property
    def dropped(self) -> int:
        return int(_notes(self.prompt).dropped)

    @property
    def note(self) -> str | None:
        return None

    @property
    def cache_fill(self) -> tuple[int, int]:
        return min(self.index, 9), 9

    @property
    def snapshot_bytes(self) -> int:
        return SNAPSHOT_BYTES

    def step(self) -> Generated:
        if self.engine.fail_next is not None:
            error, self.engine.fail_next = self.engine.fail_next, None
            raise error
        start, count = self.next_frame, self.next_length
        due = self._queue.due(start)
        self.engine.wait(self.engine.seconds)
        self.gestures = released(self.gestures, start)
        for item, superseded in zip(due, merged(due)[1], strict=True):
            item.receipt.superseded = superseded
            self._apply(item, start)
        self._queue.remove(due)
        recached = self._recaches(any(item.event.changes_text for item in due))
        self.engine.wait(self.engine.recache if recached else 0.0)
        frames = np.stack([self._picture(start + i) for i in range(count)])
        self.next_frame, self.index = start + count, self.index + 1
        heard, self.input_frames = self._heard(count)
        timings = {"commit": self.engine.recache / 9, "event": self.engine.recache if recached else 0.0}
        receipts = tuple(p.receipt for p in due)
        return Generated(frames, start, self.index - 1, receipts, timings, recached, heard)

    @property
    def input_waiting(self) -> int:
        return len(self.input_frames)

    def feed(self, picture: np.ndarray, seconds: float) -> int:
        number = self.input_count
        self.input_count += 1
        self.input_frames = [*self.input_frames, number][-room(self.engine.info.chunk_frames) :]
        self.listens = True
        return number

    def end_input(self, reason: str) -> None:
        self.listens = False

    def _heard(self, count: int) -> tuple[InputReceipt | None, list[int]]:
        """The receipt of a chunk of so many frames, and what waits behind it."""
        if not self.listens:
            return None, []
        taken, rest = self.input_frames[:count], self.input_frames[count:]
        return InputReceipt(tuple(taken), held=count - len(taken), delay=0.1), rest

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        receipt = self._queue.receipt(0)
        for name, value in (event.settings or {}).items():
            if self.engine.refuses:
                return receipt.refuse(f"setting {name}: {self.engine.refuses}")
            if str(value) == "13":
                return receipt.refuse(f"setting {name}: 13 is unlucky")
        text = None if not event.changes_text else self.engine.words(" ".join(event.prompts))
        if text is not None and text.done():
            receipt.unknown, receipt.dropped = text.result().unknown, text.result().dropped
        self._queue.put(Pending(event, receipt, at_frame or 0, at_frame is None, text), StreamSettings())
        return receipt

    def in_force(self, receipt: Receipt) -> bool:
        return receipt.status == "applied" and receipt.number in self.applied

    def withdraw(self, receipt: Receipt) -> None:
        self._queue.withdraw(receipt)

    @property
    def events(self) -> list[Applied]:
        return list(self._log.events)

    def snapshot(self) -> FakeSaved:
        names = ("prompt", "seed", "next_frame", "index", "gestures", "applied", "way")
        values = {name: getattr(self, name) for name in names}
        return FakeSaved(values | {"settings": dict(self.settings), "events": list(self._log.events)})

    def outline(self) -> FakeSaved:
        return self.snapshot()

    def restore(self, saved: FakeSaved) -> None:
        values = dict(saved.values)
        self._log = Timeline(self.engine.info.fps, values["seed"], list(values.pop("events")))
        for name, value in values.items():
            setattr(self, name, value)
        self._queue.adopt([], self._queue.numbers)

    def write(self, saved: FakeSaved, path: Path) -> None:
        path.write_bytes(pickle.dumps(saved))

    def timeline(self) -> dict[str, Any]:
        return self._log.to_json()

    def _apply(self, item: Pending, frame: int) -> None:
        event, receipt = item.event, item.receipt
        changes = event.gesture_changes
        try:
            if (reason := failed(item)) is not None:
                raise InputError(reason)
            before = () if event.lets_go_of_all else self.gestures
            self.gestures = changed(before, changes, frame)
        except InputError as error:
            receipt.refuse(str(error))
            return
        if changes or event.lets_go_of_all:
            self.motions.append((frame, changes))
        if event.changes_text:
            self._words(event, receipt, frame)
        self.settings |= dict(event.settings or {})
        self._log.record(self.index, frame, event)
        self.applied = (*self.applied, receipt.number)
        if item.text is not None and item.text.done():
            receipt.unknown, receipt.dropped = item.text.result().unknown, item.text.result().dropped
        receipt.chunk, receipt.frame = self.index, frame
        receipt.seconds, receipt.status = frame / self.engine.info.fps, "applied"

    def _recaches(self, new_words: bool) -> bool:
        """Whether the cache is made anew before the chunk that is being made."""
        done, length, every = self.steps
        if done == length:
            return new_words
        self.steps = done + 1, length, every
        return (done + 1) % every == 0 or done + 1 == length

    def _words(self, event: StreamEvent, receipt: Receipt, frame: int) -> None:
        before, fps = self._colour(frame), self.engine.info.fps
        self.prompt = event.prompt if event.prompt is not None else blend_name(event.parts)
        over = event.passage
        self.way = None
        if over is not None:
            chunk = self.engine.info.chunk_frames
            count = over.realised(chunk / fps).chunks or 1
            self.way = (before, frame, frame + (count - 1) * chunk)
            receipt.until = self.way[2]
            self.steps = 0, count, over.every

    def _colour(self, frame: int) -> tuple[float, ...]:
        """The prompt's colour, or what lies on the way to it."""
        goal = colour_of(self.prompt)
        if self.way is None or frame >= self.way[2]:
            return goal
        before, start, end = self.way
        share = (frame - start) / max(1, end - start)
        return tuple(a + share * (b - a) for a, b in zip(before, goal, strict=True))

    def _picture(self, frame: int) -> np.ndarray:
        """Three quarters are the prompt's colour, one a texture that moves by two columns a frame."""
        width = self.engine.info.width
        shift = 2 * frame % width
        texture = self.engine.texture[:, shift : shift + width]
        picture = texture // 4 + np.array(self._colour(frame), np.uint8) // 4 * 3
        return picture.astype(np.uint8)
