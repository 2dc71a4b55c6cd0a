"""What the demo needs of a video generator, and streamgen behind it.

The two protocols are all that sessions, worker and server know; `fake_engine` has another implementation for
tests and measurements.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from streamgen import Pipeline, Session, Snapshot, StreamEvent
from streamgen.families import find_model
from streamgen.machine import device_name
from streamgen.stream.events import Receipt
from streamgen.stream.snapshot import read_snapshot, write_snapshot

from .history import Saved

CARD = "README.md"


@dataclass(frozen=True)
class ModelInfo:
    """What the page says about a model.

    Attributes:
        chunk_frames: pixel frames of every chunk but the first.
        settings: defaults by name.
        words: what the model knows, empty where it has no word list.
        card: the model card, Markdown.
    """

    name: str
    device: str
    width: int
    height: int
    fps: float
    chunk_frames: int
    settings: Mapping[str, Any]
    words: tuple[str, ...] = ()
    card: str = ""


@dataclass(frozen=True)
class Generated:
    """One chunk: uint8 frames `(T, H, W, 3)`, the first one's index, the chunk's, receipts of the events that
    took effect with it or were found impossible, seconds by part, and whether the cache was made anew.
    """

    frames: np.ndarray
    start: int
    index: int
    receipts: tuple[Receipt, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    recached: bool = False


class Stream(Protocol):
    """One stream. `submit` may be called from any thread, all else from one at a time."""

    @property
    def next_frame(self) -> int:
        """First frame of the next chunk."""
        ...

    @property
    def next_length(self) -> int:
        """Frames of the next chunk."""
        ...

    @property
    def seed(self) -> int:
        """What its draws come from."""
        ...

    @property
    def prompt(self) -> str:
        """The prompt now."""
        ...

    @property
    def unknown(self) -> tuple[str, ...]:
        """Words of the prompt now that mean nothing to the model."""
        ...

    @property
    def dropped(self) -> int:
        """How many tokens of the prompt now did not fit."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The settings now."""
        ...

    @property
    def cache_fill(self) -> tuple[int, int]:
        """Latent frames in the cache, and how many it holds."""
        ...

    def step(self) -> Generated:
        """Make the next chunk."""
        ...

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        """Ask for a change at the next chunk that has not begun."""
        ...

    def in_force(self, receipt: Receipt) -> bool:
        """Whether an event was applied in the stream as it is now."""
        ...

    def snapshot(self) -> Saved:
        """All state as of now."""
        ...

    def restore(self, saved: Any) -> None:
        """Go to a snapshot of this stream, or of another one of the same model; no event waits then."""
        ...

    def write(self, saved: Any, path: Path) -> None:
        """Write a snapshot to a file; may be called from any thread.

        Raises:
            StreamgenError: it cannot be written.
        """
        ...

    def timeline(self) -> dict[str, Any]:
        """What took effect where, as plain values."""
        ...


class Engine(Protocol):
    """Opens streams of one model; called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """What the page says about the model."""
        ...

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> Stream:
        """Begin a stream, from uint8 pictures `(T, H, W, 3)` where they are given.

        Raises:
            StreamgenError: what was asked for cannot be.
        """
        ...

    def resume(self, path: Path) -> Stream:
        """Go on with a stream that was written.

        Raises:
            StreamgenError: it cannot be read, or is of another model.
        """
        ...

    def timeline_of(self, path: Path) -> dict[str, Any]:
        """The timeline of a stream that was written; may be called from any thread.

        Raises:
            StreamgenError: it cannot be read.
        """
        ...


class PipelineEngine:
    """A loaded streamgen model.

    Args:
        deadline_ms: what a chunk may take, see `Pipeline.open`.
    """

    def __init__(self, pipeline: Pipeline, deadline_ms: float | None = None) -> None:
        self.pipeline, self.deadline_ms = pipeline, deadline_ms
        geometry, plan = pipeline.geometry, pipeline.plan
        card = find_model(pipeline.name) / CARD
        self._info = ModelInfo(
            name=Path(pipeline.name).name,
            device=device_name(pipeline.device),
            width=geometry.width,
            height=geometry.height,
            fps=float(geometry.fps),
            chunk_frames=geometry.temporal * plan.chunk_frames,
            settings=pipeline.settings.to_json(),
            words=tuple(pipeline.vocabulary.words),
            card=card.read_text(encoding="utf-8") if card.is_file() else "This checkpoint has no model card.",
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> "SessionStream":
        video = None if pictures is None else torch.from_numpy(np.ascontiguousarray(pictures))
        session = self.pipeline.open(
            prompt, seed, video=video, settings=settings, deadline_ms=self.deadline_ms
        )
        return SessionStream(session)

    def resume(self, path: Path) -> "SessionStream":
        return SessionStream(self.pipeline.resume(path, deadline_ms=self.deadline_ms))

    def timeline_of(self, path: Path) -> dict[str, Any]:
        return read_snapshot(path, torch.device("cpu")).log.timeline().to_json()


class SessionStream:
    """A streamgen session as a `Stream`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._told = False

    @property
    def next_frame(self) -> int:
        return self.session.next_frame

    @property
    def next_length(self) -> int:
        latents = self.session.state.latents
        return self.session.geometry.frames(latents.start + latents.length) - self.session.next_frame

    @property
    def seed(self) -> int:
        return self.session.seed

    @property
    def prompt(self) -> str:
        return self.session.controls.prompt

    @property
    def unknown(self) -> tuple[str, ...]:
        return self.session.controls.text.unknown

    @property
    def dropped(self) -> int:
        return self.session.controls.text.dropped

    @property
    def settings(self) -> dict[str, Any]:
        return self.session.controls.settings.to_json()

    @property
    def cache_fill(self) -> tuple[int, int]:
        latents = self.session.state.latents
        return latents.ring.context_frames(latents.cursor), latents.ring.plan.context_frames

    def step(self) -> Generated:
        chunk = next(self.session)
        note = self.session.deadline_note
        if note is not None and not self._told:
            self._told = True
            print(f"note: {note}", file=sys.stderr, flush=True)
        frames, told = chunk.frames.cpu().numpy(), (chunk.receipts, chunk.timings, chunk.recached)
        return Generated(frames, chunk.start_frame, chunk.index, *told)

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        return self.session.submit(event, at_frame)

    def in_force(self, receipt: Receipt) -> bool:
        return self.session.in_force(receipt)

    def snapshot(self) -> Snapshot:
        return self.session.snapshot()

    def restore(self, saved: Snapshot) -> None:
        self.session.restore(saved)
        # what waited at that moment was said to somebody who has seen what came of it
        for receipt in self.session.pending:
            self.session.withdraw(receipt)

    def write(self, saved: Snapshot, path: Path) -> None:
        write_snapshot(saved, path)

    def timeline(self) -> dict[str, Any]:
        return self.session.timeline.to_json()
