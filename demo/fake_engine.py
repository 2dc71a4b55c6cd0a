"""A generator without a model, for tests and measurements of everything around it.

Its pictures are a moving texture in a colour that names the prompt, so that a viewer's pixels tell which
prompt they were made under; it takes as long per chunk as it is told to.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from streamgen import StreamEvent
from streamgen.stream.events import Receipt
from streamgen.stream.queue import Pending
from streamgen.stream.timeline import Timeline

from .engine import Generated, ModelInfo

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 220)}
_GREY = (128, 128, 128)


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
        return 1_000_000


class FakeEngine:
    """Opens fake streams.

    Args:
        seconds: how long a chunk takes.
        wait: how that time passes; an injected clock is moved on here.
    """

    def __init__(
        self,
        fps: float = 16.0,
        size: tuple[int, int] = (64, 64),
        chunk_frames: int = 4,
        seconds: float = 0.05,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        height, width = size
        self.seconds, self.wait = seconds, wait
        self.fail_next: Exception | None = None
        self.opened: list[FakeStream] = []
        settings = {"steps": 4, "text_guidance": 3.0, "motion_guidance": 1.5}
        self._info = ModelInfo("fake", "none", width, height, fps, chunk_frames, settings, card="# fake")
        self.texture = _texture(height, width * 2)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> "FakeStream":
        stream = FakeStream(self, prompt, seed, dict(self._info.settings) | dict(settings))
        self.opened.append(stream)
        return stream

    def notes(self, prompt: str) -> list[str]:
        return [word for word in prompt.split() if word.startswith("x")]


@dataclass
class FakeStream:
    """A fake stream; `motions` has the tracks it was given, by the frame where they took effect."""

    engine: FakeEngine
    prompt: str
    seed: int
    settings: dict[str, Any]
    next_frame: int = 0
    index: int = 0
    motions: list[tuple[int, Any]] = field(default_factory=list)
    _pending: list[Pending] = field(default_factory=list)
    _receipts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _log: Timeline | None = None

    def __post_init__(self) -> None:
        self._log = Timeline(self.engine.info.fps, self.seed)
        self._log.record(0, 0, StreamEvent(self.prompt, None, self.settings))

    @property
    def next_length(self) -> int:
        return self.engine.info.chunk_frames if self.next_frame else 1

    @property
    def cache_fill(self) -> tuple[int, int]:
        return min(self.index, 9), 9

    def step(self) -> Generated:
        if self.engine.fail_next is not None:
            error, self.engine.fail_next = self.engine.fail_next, None
            raise error
        with self._lock:
            due = [p for p in self._pending if p.at_frame <= self.next_frame]
            self._pending = [p for p in self._pending if p not in due]
        self.engine.wait(self.engine.seconds)
        start, count = self.next_frame, self.next_length
        for item in due:
            self._apply(item, start)
        frames = np.stack([self._picture(start + i) for i in range(count)])
        self.next_frame, self.index = start + count, self.index + 1
        return Generated(frames, start, self.index - 1, tuple(p.receipt for p in due))

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        with self._lock:
            receipt = Receipt(self._receipts)
            self._receipts += 1
            if event.settings and event.settings.get("steps") == 13:
                receipt.status, receipt.reason = "refused", "setting steps: 13 is unlucky"
            else:
                self._pending.append(Pending(event, receipt, at_frame or 0))
            return receipt

    def snapshot(self) -> FakeSaved:
        assert self._log is not None
        values = {"prompt": self.prompt, "settings": dict(self.settings), "next_frame": self.next_frame}
        return FakeSaved(values | {"index": self.index, "events": list(self._log.events)})

    def restore(self, saved: FakeSaved) -> None:
        assert self._log is not None
        values = dict(saved.values)
        self._log.events = list(values.pop("events"))
        for name, value in values.items():
            setattr(self, name, value)
        self._pending = []

    def timeline(self) -> dict[str, Any]:
        assert self._log is not None
        return self._log.to_json()

    def _apply(self, item: Pending, frame: int) -> None:
        assert self._log is not None
        event = item.event
        self.prompt = event.prompt if event.prompt is not None else self.prompt
        self.settings |= dict(event.settings or {})
        if event.motion is not None:
            self.motions.append((frame, event.motion))
        self._log.record(self.index, frame, event)
        item.receipt.chunk, item.receipt.frame = self.index, frame
        item.receipt.seconds, item.receipt.status = frame / self.engine.info.fps, "applied"

    def _picture(self, frame: int) -> np.ndarray:
        """Three quarters are the prompt's colour, one a texture that moves by two columns a frame."""
        width = self.engine.info.width
        shift = 2 * frame % width
        texture = self.engine.texture[:, shift : shift + width]
        picture = texture // 4 + np.array(colour_of(self.prompt), np.uint8) // 4 * 3
        return picture.astype(np.uint8)
