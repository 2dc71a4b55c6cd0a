"""One live stream with all its state."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from models.causal_dit import TextContext
from models.kv_cache import CacheShape, KVCache
from models.motion_encoder import Tracks

from ..engine.decoder import DecoderState, StreamingDecoder
from ..engine.geometry import LatentGeometry
from ..engine.guidance import Conditioning
from ..engine.noise import NoiseSource, SeededNoise
from ..errors import InputError
from ..motion.tracks import TrackSet
from .model import StreamModel
from .rollout import LatentChunk, RolloutState, joint_recache, recache, rollout
from .settings import StreamSettings
from .snapshot import Snapshot, load_snapshot_state, take_snapshot, write_snapshot
from .timeline import (
    Pending,
    Receipt,
    SinkPolicy,
    Start,
    StreamEvent,
    Timeline,
    merge_events,
    possible_events,
)


@dataclass(frozen=True)
class FrameChunk:
    """Pictures of one chunk.

    Attributes:
        frames: uint8 `(T, H, W, 3)`.
        start_frame: index of the first one in the stream.
        fps: frames per second of the stream.
        index: the chunk's index.
        epoch: raised by every restore; output of an older epoch is not part of the stream any more.
        receipts: of the events that took effect with this chunk, or were found impossible at its start.
        timings: seconds spent per part (`event`, `denoise`, `commit`, `decode`).
    """

    frames: Tensor
    start_frame: int
    fps: float
    index: int
    epoch: int
    receipts: tuple[Receipt, ...]
    timings: dict[str, float]


@dataclass
class Controls:
    """What steers the stream now: the prompt and its text, the tracks and the frame where they began, the
    settings.
    """

    prompt: str
    settings: StreamSettings
    text: TextContext
    motion: TrackSet | None = None
    motion_start: int = 0


@dataclass
class Opening:
    """What a stream starts from: pictures `(T, H, W, 3)` uint8 encoded to `latents (1, T', C, h, w)`, with
    their fingerprint, or nothing.
    """

    latents: Tensor | None = None
    start: Start | None = None

    def chunk(self, start: int, length: int) -> Tensor | None:
        """The given latents of a chunk, None when they do not cover it whole."""
        if self.latents is None or start + length > self.latents.shape[1]:
            return None
        return self.latents[:, start : start + length]


@dataclass
class _Staged:
    """Results of a chunk in work, made visible together at its end.

    `taken` are the events due, `applied` and `refused` their receipts with superseded fields or the reason;
    `event` is what the timeline gets; `rebuilt` says what became of the sink if the cache was rebuilt for it.
    """

    taken: list[Pending] = field(default_factory=list)
    applied: list[tuple[Receipt, tuple[str, ...]]] = field(default_factory=list)
    refused: list[tuple[Receipt, str]] = field(default_factory=list)
    event: StreamEvent | None = None
    rebuilt: SinkPolicy | None = None
    controls: Controls | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Session:
    """Iterate for pictures, `submit` to steer; made by `Pipeline.open`.

        for chunk in session:
            show(chunk.frames)
            session.submit(StreamEvent(prompt="a blue star"))

    Generating a chunk is one transaction, applying an event another: after an exception the session is as it
    was before, pending events still pending, and the next chunk is what it would have been. `submit` may be
    called from any thread; generation is serialised.
    """

    def __init__(
        self,
        model: StreamModel,
        prompt: str,
        settings: StreamSettings,
        seed: int,
        opening: Opening | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.model, self.seed = model, seed
        self.epoch = 0
        self.opening = opening or Opening()
        self.controls = Controls(prompt, settings, model.text(prompt))
        self.timeline = Timeline(self.geometry.fps, seed, start=self.opening.start)
        # draws given from outside stay; those of a seed change with it
        self.given_noise = noise
        self.noise: NoiseSource = noise or SeededNoise(seed, model.device, model.dtype)
        self.decoder = StreamingDecoder(model.tokenizer)
        self.decoder_state: DecoderState = self.decoder.initial_state()
        self.state = RolloutState(self._new_cache(settings))
        self._pending: list[Pending] = []
        self._receipts = 0
        self._submitting = threading.Lock()
        self._generating = threading.RLock()
        self._staged = _Staged()

    @property
    def geometry(self) -> LatentGeometry:
        return self.model.geometry

    @property
    def next_frame(self) -> int:
        """First pixel frame of the next chunk."""
        return self.geometry.frames(self.state.start)

    def submit(self, event: StreamEvent, at_frame: int = 0) -> Receipt:
        """Ask for a change at the next chunk that has not begun, or at the first chunk that starts at
        `at_frame` or later.

        Returns at once. A change that cannot be (unknown setting, wrong value) is refused in the receipt; one
        that turns out not to fit the other settings of its chunk is refused there.
        """
        with self._submitting:
            receipt = Receipt(self._receipts)
            self._receipts += 1
            item = Pending(event, receipt, at_frame)
            # a change may be possible now, or once those that wait have been made
            settings = self.controls.settings
            tracks = event.motion is not None and not event.motion.is_empty
            if tracks and self.model.motion_encoder is None:
                receipt.reason = f"motion: {self.model.name} was not trained with tracks"
                receipt.status = "refused"
            elif (
                possible_events([item], settings)[0]
                or item in possible_events([*self._pending, item], settings)[0]
            ):
                self._pending.append(item)
            else:
                receipt.reason = possible_events([item], settings)[1][0][1]
                receipt.status = "refused"
            return receipt

    def __iter__(self) -> Iterator[FrameChunk]:
        return self

    def __next__(self) -> FrameChunk:
        with self._generating:
            return self._step()

    def snapshot(self) -> Snapshot:
        """All state as of now, bounded in size; pending events included."""
        with self._generating, self._submitting:
            return take_snapshot(self)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or forth) to a snapshot of this or a like session; raises the epoch.

        Events that wait now and did not wait then are refused.

        Raises:
            InputError: the snapshot is of another model or dtype, or damaged.
        """
        with self._generating, self._submitting:
            load_snapshot_state(self, snapshot)
            self.epoch += 1

    def fork(self) -> "Session":
        """A second stream that continues from here, independent of this one."""
        with self._generating:
            controls = self.controls
            twin = Session(self.model, controls.prompt, controls.settings, self.seed, noise=self.given_noise)
            load_snapshot_state(twin, self.snapshot())
        return twin

    def save(self, path: str | Path) -> None:
        """Write a snapshot and the timeline to a file that `Pipeline.resume` opens, in this or another
        process.
        """
        with self._generating:
            write_snapshot(self.snapshot(), self.timeline, Path(path))

    @torch.no_grad()
    def _step(self) -> FrameChunk:
        self._staged = staged = _Staged()
        loop = rollout(
            self.model.dit,
            self.state,
            self._conditioning_at,
            self.noise,
            lambda _: self._current().settings.sampling(),
            self._given,
            self._decode,
            self._measure,
        )
        start_frame, index = self.next_frame, self.state.chunk
        context, scene, recent = self.state.context, self.state.scene, self.state.recent
        try:
            frames, decoder_state = next(loop)
        except BaseException:
            if staged.rebuilt is not None:
                # the cache may stand for an event that has not happened, and that another may yet replace
                self.state.take_back(context, scene, recent, keep_sink=staged.rebuilt == "keep")
            raise
        # From here on nothing can fail: the chunk, its receipts and the cursors become visible together.
        self.decoder_state = decoder_state
        if staged.controls is not None:
            self.controls = staged.controls
        if staged.event is not None:
            self.timeline.record(index, start_frame, staged.event)
        for receipt, superseded in staged.applied:
            receipt.chunk, receipt.frame, receipt.superseded = index, start_frame, superseded
            receipt.seconds = start_frame / self.geometry.fps
            receipt.status = "applied"
        for receipt, reason in staged.refused:
            receipt.reason, receipt.status = reason, "refused"
        with self._submitting:
            self._pending = [p for p in self._pending if all(p is not t for t in staged.taken)]
        return FrameChunk(
            frames,
            start_frame,
            self.geometry.fps,
            index,
            self.epoch,
            tuple(p.receipt for p in staged.taken),
            dict(staged.timings),
        )

    def _conditioning_at(self, chunk: int) -> Conditioning:
        """Apply what is due, then say what steers the chunk."""
        started = time.perf_counter()
        self._apply_events()
        controls = self._current()
        cache = self.state.cache
        if not cache.fits(self.state.length):
            raise InputError(
                f"rope: absolute positions end after {cache.max_positions} latent frames; open the stream "
                "with rope relative for longer ones"
            )
        motion = self._motion(controls)
        self._staged.timings["event"] = time.perf_counter() - started
        guidance = controls.settings.guidance()
        off = guidance.is_off(motion is not None)
        null_text = controls.text if off else self.model.null_text
        return Conditioning(controls.text, null_text, motion, guidance)

    def _apply_events(self) -> None:
        staged, frame = self._staged, self.next_frame
        with self._submitting:
            staged.taken = [p for p in self._pending if p.at_frame <= frame]
        due, staged.refused = possible_events(staged.taken, self.controls.settings)
        if due:
            staged.event, superseded = merge_events(due)
            staged.applied = [(p.receipt, fields) for p, fields in zip(due, superseded, strict=True)]
            staged.controls = self._changed(staged.event, frame)
            if staged.event.sink is None:
                sink = staged.controls.settings.sink_policy
                staged.event = replace(staged.event, sink=sink)
        self._prepare_cache(staged.event, self._current())
        if not self.timeline.events:
            staged.event = self._opening_event()

    def _prepare_cache(self, event: StreamEvent | None, controls: Controls) -> None:
        """Do to the cache what a new prompt's policy says, or the rebuild that an earlier failure owes."""
        new_text = event is not None and controls.prompt != self.controls.prompt
        if event is not None and new_text and event.policy == "clear":
            self._staged.rebuilt = "refresh"
            self.state.clear()
        elif event is not None and new_text and event.policy == "recache":
            sink = event.sink or "refresh"
            self._staged.rebuilt = sink if self.state.sink_held else "refresh"
            if controls.settings.recache_mode == "joint" and not self.state.stale:
                self._joint_recache(controls, sink)
            else:
                self._recache(controls.text, sink, controls.settings)
        elif self.state.stale:
            # as it was: under the words of before, with the sink if that is still there
            self._recache(self.controls.text, "keep", self.controls.settings)

    def _changed(self, event: StreamEvent, frame: int) -> Controls:
        now = self.controls
        motion, motion_start = now.motion, now.motion_start
        if event.motion is not None:
            motion, motion_start = (None if event.motion.is_empty else event.motion), frame
        prompt = event.prompt if event.prompt is not None else now.prompt
        settings = now.settings.updated(event.settings or {}, live=True)
        return Controls(prompt, settings, self.model.text(prompt), motion, motion_start)

    def _opening_event(self) -> StreamEvent:
        """The first line of a timeline: everything that holds at frame 0."""
        controls = self._current()
        return StreamEvent(controls.prompt, controls.motion, controls.settings.to_json())

    def _recache(self, text: TextContext, sink: SinkPolicy, settings: StreamSettings) -> None:
        level, drawn = settings.context_noise, settings.commit_noise == "drawn"
        recache(self.model.dit, self.state, text, self.noise, level, sink, drawn)

    def _joint_recache(self, controls: Controls, sink: SinkPolicy) -> None:
        settings = controls.settings
        level, drawn = settings.context_noise, settings.commit_noise == "drawn"
        self._staged.rebuilt = "keep" if self.state.joint_keeps(sink) else "refresh"
        joint_recache(self.model.dit, self.state, controls.text, self.noise, level, sink, drawn)

    def _current(self) -> Controls:
        """Controls of the chunk in work."""
        return self._staged.controls or self.controls

    def _motion(self, controls: Controls) -> Tensor | None:
        """Motion latents of the next chunk; None where no track says anything."""
        if controls.motion is None:
            return None
        start, stop = self.geometry.frame_range(self.state.start, self.state.length)
        tracks = controls.motion.slice(start - controls.motion_start, stop - controls.motion_start)
        if tracks.is_empty:
            return None
        device = self.model.device
        batch = Tracks(
            *(x[None].to(device) for x in (tracks.points, tracks.state, tracks.pinned, tracks.ids))
        )
        grid = (self.geometry.latent_height, self.geometry.latent_width)
        encoder = self.model.motion_encoder
        assert encoder is not None, "tracks are refused where they come in"
        latents: Tensor = encoder(batch, grid, first=start == 0)
        return latents.to(self.model.dtype)

    def _given(self, chunk: int) -> Tensor | None:
        return self.opening.chunk(self.state.start, self.state.length)

    def _decode(self, chunk: LatentChunk) -> tuple[Tensor, DecoderState]:
        return self.decoder.decode(chunk.latents, self.decoder_state)

    def _measure(self, part: str, seconds: float) -> None:
        self._staged.timings[part] = seconds

    def _new_cache(self, settings: StreamSettings) -> KVCache:
        config = self.model.dit.config
        shape = CacheShape(config.layers, config.heads, config.head_dim, self.geometry.token_grid)
        plan = settings.plan(self.model.plan)
        return KVCache(shape, plan, self.model.dit.rope, self.model.device, self.model.dtype, settings.rope)
