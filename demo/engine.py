"""What the demo needs of a video generator, and streamgen behind it.

The two protocols are all that sessions, worker and server know; `fake_engine` has another implementation for
tests and measurements.
"""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from streamgen import InputError, Pipeline, Session, Snapshot, StreamEvent, StreamgenError
from streamgen.engine.decoder import at_rest
from streamgen.families import Description, find_model
from streamgen.live.pushed import PushedInput
from streamgen.live.taken import InputReceipt
from streamgen.machine import device_name
from streamgen.motion.gestures import Gesture
from streamgen.stream.events import Receipt
from streamgen.stream.snapshot import read_snapshot, write_snapshot
from streamgen.stream.timeline import Applied, Timeline

from .history import Saved
from .webcam import Listening, room
from .word_kinds import drawn_by, kinds_of

CARD = "README.md"
# What a model with a word list is asked for by the page; of the shipped one's words.
EXAMPLES = (
    "a small red circle moves right over the sea",
    "a large blue star stays over sand",
    "a medium yellow star moves left over the grass",
    "a large purple diamond moves up over snow",
    "a medium orange circle stays over the night sky",
)
# And one that reads any text.
ANY_TEXT_EXAMPLES = (
    "A red sailing boat on a stormy sea, waves break over its bow, dark clouds, cinematic",
    "A fox runs through a snowy forest at dawn, the camera follows it, soft light between the trees",
    "A steam train crosses a stone bridge in autumn hills, smoke drifts in the wind, aerial view",
    "A busy street market at night in the rain, neon signs mirrored in puddles, people with umbrellas",
    "An astronaut walks over red dunes, dust behind every step, two moons in the sky",
)


@dataclass(frozen=True)
class ModelInfo:
    """What the page says about a model.

    Attributes:
        chunk_frames: pixel frames of every chunk but the first.
        settings: defaults by name.
        words: what the model knows, empty where it has no word list.
        card: the model card, Markdown.
        tracks: whether it follows what is drawn on the picture.
        loras: live LoRAs by name, with the strength they have until a viewer changes it.
        examples: prompts that it is asked for, the first one when the page opens.
        draws: what it draws and follows, in one line.
        kinds: words by kind, where they are known.
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
    tracks: bool = True
    loras: Mapping[str, float] = field(default_factory=dict)
    examples: tuple[str, ...] = EXAMPLES
    draws: str = ""
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Loading:
    """How far loading is: what is being done, and which share in 0..1 of it is; None where nobody knows."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Generated:
    """One chunk: uint8 frames `(T, H, W, 3)`, the first one's index, the chunk's, receipts of the events that
    took effect with it or were found impossible, seconds by part, whether the cache was made anew, and what
    it heard of a camera.
    """

    frames: np.ndarray
    start: int
    index: int
    receipts: tuple[Receipt, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    recached: bool = False
    heard: InputReceipt | None = None


class Stream(Listening, Protocol):
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
    def note(self) -> str | None:
        """What else is worth saying of the prompt now."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The settings now."""
        ...

    @property
    def gestures(self) -> Sequence[Gesture]:
        """The gestures in force in the last chunk."""
        ...

    @property
    def cache_fill(self) -> tuple[int, int]:
        """Latent frames in the cache, and how many it holds."""
        ...

    @property
    def snapshot_bytes(self) -> int:
        """About what a snapshot takes, told before one is made."""
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

    def withdraw(self, receipt: Receipt) -> None:
        """Take back an event that waits."""
        ...

    @property
    def events(self) -> list[Applied]:
        """What took effect where; the first one is the opening."""
        ...

    def snapshot(self) -> Saved:
        """All state as of now."""
        ...

    def outline(self) -> Saved:
        """Nearly all state as of now, in a small part of the room: the stream goes on much alike from it."""
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


def place_of(stream: Stream) -> dict[str, Any]:
    """What a page is told of a stream's words, settings and seed as they are now."""
    words = {"prompt": stream.prompt, "unknown": list(stream.unknown), "dropped": stream.dropped}
    return words | {"note": stream.note, "settings": stream.settings, "seed": stream.seed}


class Engine(Protocol):
    """Opens streams of one model; called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """What the page says about the model."""
        ...

    @property
    def loading(self) -> Loading | None:
        """How far loading is; None once streams can be opened."""
        ...

    @property
    def failure(self) -> Exception | None:
        """Why the model could not be loaded; None where it is, or may yet be."""
        ...

    def encode(self, prompt: str, settings: Mapping[str, Any]) -> tuple[Future[Any], ...]:
        """What a stream with these words has to wait for, on its way; `open` finds it ready, and tells what
        has failed. Called from any thread.
        """
        ...

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> Stream:
        """Begin a stream, from uint8 pictures `(T, H, W, 3)` where they are given.

        Raises:
            StreamgenError: what was asked for cannot be.
        """
        ...

    def replay(self, opening: Timeline, pictures: np.ndarray | None) -> Stream:
        """Begin a stream as a timeline begins, of which only the opening is looked at.

        Raises:
            StreamgenError: it cannot be, or began with other pictures.
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


def info_of(name: str, description: Description, device: torch.device) -> ModelInfo:
    """What the page says about a model, by its config and where it runs."""
    config = description.config
    geometry = config.geometry()
    card = find_model(name) / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else _plain_card(name, description)
    return ModelInfo(
        name=Path(name).name,
        device=device_name(device),
        width=geometry.width,
        height=geometry.height,
        fps=float(geometry.fps),
        chunk_frames=geometry.temporal * config.plan.chunk_frames,
        settings={**config.sampling.to_json(), "strength": config.sampling.strength},
        words=description.words or (),
        card=text,
        tracks=description.tracks,
        examples=EXAMPLES if description.words is not None else ANY_TEXT_EXAMPLES,
        draws=drawn_by(description.words, description.tracks),
        kinds=kinds_of(description.words or ()),
    )


def _plain_card(name: str, description: Description) -> str:
    """What a config tells of a model that has no card."""
    plan, settings, geometry = (
        description.config.plan, description.config.sampling, description.config.geometry()
    )  # fmt: skip
    reads = "any text" if description.words is None else f"{len(description.words)} words"
    return (
        f"**{Path(name).name}** has no model card. {geometry.width}x{geometry.height} at {geometry.fps} "
        f"frames per second; chunks of {plan.chunk_frames} latent frames in {settings.steps} steps, behind "
        f"a sink of {plan.sink_frames} and a window of {plan.window_frames}. It reads {reads} and "
        f"{'follows tracks' if description.tracks else 'knows no tracks: drags, pins and camera are off'}."
    )


class PipelineEngine:
    """A loaded streamgen model.

    Args:
        deadline_ms: what a chunk may take, see `Pipeline.open`.
    """

    loading: Loading | None = None
    failure: Exception | None = None

    def __init__(self, pipeline: Pipeline, deadline_ms: float | None = None) -> None:
        self.pipeline, self.deadline_ms = pipeline, deadline_ms
        vocabulary = pipeline.prompts.vocabulary
        words = None if vocabulary is None else vocabulary.words
        tracks = pipeline.motion_encoder is not None
        description = Description(pipeline.config, words, tracks)
        live = pipeline.parts.live
        loras = {} if live is None else dict(zip(live.names, live.defaults, strict=True))
        self._info = replace(info_of(pipeline.name, description, pipeline.device), loras=loras)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(self, prompt: str, settings: Mapping[str, Any]) -> tuple[Future[Any], ...]:
        if self.pipeline.prompts.quick:
            return ()
        try:
            merged = self.pipeline.settings.updated(settings)
            coming = (self.pipeline.coming_text(StreamEvent(prompt)), self.pipeline.coming_null(merged))
        except StreamgenError:
            # said when the stream is opened
            return ()
        return tuple(future for future in coming if future is not None)

    def open(
        self, prompt: str, seed: int, settings: Mapping[str, Any], pictures: np.ndarray | None
    ) -> "SessionStream":
        start = _start(pictures)
        session = self.pipeline.open(prompt, seed, settings=settings, deadline_ms=self.deadline_ms, **start)
        return SessionStream(session)

    def replay(self, opening: Timeline, pictures: np.ndarray | None) -> "SessionStream":
        # what chunks may take is in the timeline's own steps, and has no say in how it begins
        started = opening.start is not None
        if started and pictures is None:
            raise InputError("the timeline began with a picture or clip: choose the same to start from")
        return SessionStream(self.pipeline.replay(opening, **(_start(pictures) if started else {})))

    def resume(self, path: Path) -> "SessionStream":
        return SessionStream(self.pipeline.resume(path, deadline_ms=self.deadline_ms))

    def timeline_of(self, path: Path) -> dict[str, Any]:
        return read_snapshot(path, torch.device("cpu")).log.timeline().to_json()


def _start(pictures: np.ndarray | None) -> dict[str, Any]:
    """The pictures that a stream starts from, as a pipeline takes them."""
    if pictures is None:
        return {}
    frames = torch.from_numpy(np.ascontiguousarray(pictures))
    return {"image": frames[0]} if len(frames) == 1 else {"video": frames}


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
    def note(self) -> str | None:
        return self.session.controls.text.note

    @property
    def settings(self) -> dict[str, Any]:
        return self.session.controls.settings.to_json()

    @property
    def gestures(self) -> tuple[Gesture, ...]:
        return self.session.controls.gestures

    @property
    def cache_fill(self) -> tuple[int, int]:
        latents = self.session.state.latents
        return latents.ring.context_frames(latents.cursor), latents.ring.plan.context_frames

    @property
    def snapshot_bytes(self) -> int:
        state = self.session.state
        decoder = {} if state.decoder is None else at_rest(state.decoder).tokenizer.tensors()
        held = sum(x.numel() * x.element_size() for x in decoder.values())
        return state.latents.ring.allocated_bytes() + held

    def step(self) -> Generated:
        chunk = next(self.session)
        note = self.session.deadline_note
        if note is not None and not self._told:
            self._told = True
            print(f"note: {note}", file=sys.stderr, flush=True)
        frames, told = chunk.frames.cpu().numpy(), (chunk.receipts, chunk.timings, chunk.recached)
        return Generated(frames, chunk.start_frame, chunk.index, *told, chunk.input)

    @property
    def input_waiting(self) -> int:
        source = self.session.source
        return source.waits if isinstance(source, PushedInput) else 0

    def feed(self, picture: np.ndarray, seconds: float) -> int:
        if self.session.source is None:
            # who waits for a camera is the session in front of the engine
            frames = self.session.geometry.temporal * self.session.model.plan.chunk_frames
            self.session.listen(patience=0.0, capacity=room(frames))
        return self.session.feed(picture, at=[seconds]).first

    def end_input(self, reason: str) -> None:
        self.session.end_input(reason)

    def submit(self, event: StreamEvent, at_frame: int | None = None) -> Receipt:
        return self.session.submit(event, at_frame)

    def in_force(self, receipt: Receipt) -> bool:
        return self.session.in_force(receipt)

    def withdraw(self, receipt: Receipt) -> None:
        self.session.withdraw(receipt)

    @property
    def events(self) -> list[Applied]:
        return self.session.timeline.events

    def snapshot(self) -> Snapshot:
        return self.session.snapshot()

    def outline(self) -> Snapshot:
        return self.session.snapshot(outline=True)

    def restore(self, saved: Snapshot) -> None:
        self.session.restore(saved)
        # what waited at that moment was said to somebody who has seen what came of it
        for receipt in self.session.pending:
            self.session.withdraw(receipt)

    def write(self, saved: Snapshot, path: Path) -> None:
        write_snapshot(saved, path)

    def timeline(self) -> dict[str, Any]:
        return self.session.timeline.to_json()
