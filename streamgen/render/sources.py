"""Clips: a session ready to go and the part of it that is wanted, of a job, a saved stream or a record.

Everything a clip needs is read and checked here, before its first frame.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.context import ChunkPlan
from models.kv_cache import MAX_POSITIONS, RopeMode

from ..engine.choice import Chosen, Recorded
from ..engine.runner import Runner
from ..errors import InputError
from ..motion.file import load_motion
from ..motion.gestures import MOTION, Gesture, changed, released
from ..motion.reach import beyond
from ..motion.tracks import TrackSet
from ..pipeline import Pipeline
from ..stream.events import Receipt, StreamEvent
from ..stream.model import StreamModel
from ..stream.recache import recache_of
from ..stream.session import Session
from ..stream.snapshot import read_meta
from ..stream.state import StreamState
from ..suggest import shorten
from ..video.outputs import Part
from .job import RenderJob
from .records import (
    NOTHING_ASKED,
    Asked,
    digest,
    file_digest,
    job_key,
    parts_of,
    read_record,
    read_timeline,
    sidecar_path,
)
from .shots import MAX_SECONDS, Motion, Shot

_TAIL_SECONDS = 2.0


@dataclass(frozen=True)
class Clip:
    """A session and the part of it that is wanted.

    Attributes:
        session: the stream; its events are submitted.
        path: the video file.
        first_frame: frame of the stream that the clip begins with.
        frames: length of the clip.
        job: what was asked for, as plain values.
        key: names the job's content and the weights; equal keys give equal clips.
        prompts: all prompts of the clip.
        receipts: of the events submitted so far.
        began: `time.perf_counter()` when it was asked for.
        origin: where it was asked for (job file, line), as plain values for the record.
        replays: the record or timeline this is made again from, and the digests its frames should have.
        head: a finished clip of ours, ending where this begins, that its frames are put behind.
        notes: what of its motion the clip does not show.
    """

    session: Session
    path: Path
    first_frame: int
    frames: int
    job: Mapping[str, Any]
    key: str
    prompts: tuple[str, ...]
    receipts: tuple[Receipt, ...]
    began: float
    origin: Mapping[str, Any] = field(default_factory=dict)
    replays: "Replayed | None" = None
    head: "Head | None" = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replayed:
    """What a replay should come to: the file it follows, and digests of raw frames where it has any."""

    file: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Head:
    """A finished clip and its record."""

    path: Path
    record: Mapping[str, Any]


def open_job(
    pipeline: Pipeline,
    job: RenderJob,
    path: Path,
    copy: int = 0,
    deadline_ms: float | None = None,
    *,
    asked: Asked = NOTHING_ASKED,
    runner: Runner | None = None,
) -> Clip:
    """A clip of a job; everything in it is checked before the first frame.

    Args:
        copy: how many jobs before this one ask for the very same clip; part of its key.
        deadline_ms: what a chunk may take, see `Pipeline.open`.
        asked: how it is to be computed; part of its key.
        runner: that its stream is given; by default the pipeline's.

    Raises:
        InputError: a setting, motion file, image, clip or length that cannot be, or a file that changed
            while it was read.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = job.length(fps)
    _check_size(pipeline, job)
    key = job_key(pipeline, job, copy, asked)
    opening, *later = changes = _changes(pipeline, job, frames)
    _check_releases(pipeline, pipeline.settings.updated(job.set).plan(pipeline.plan), changes)
    session = pipeline.open(
        opening.shot.prompt,
        job.seed,
        opening.motion,
        job.image,
        job.video,
        job.set,
        gestures=opening.gestures,
        blend=opening.shot.blend,
        runner=runner,
        deadline_ms=deadline_ms,
    )
    if job_key(pipeline, job, copy, asked) != key:
        raise InputError("a file of this job changed while it was read")
    _check_positions(session, frames)
    receipts = tuple(_submit(session, change.event(), change.frame) for change in later)
    prompts = tuple(words for shot in job.shots for words in shot.words)
    notes = (*pipeline.picture_notes(job.image), *_reach_notes(changes, frames, fps))
    values = job.to_json() | ({} if deadline_ms is None else {"deadline_ms": deadline_ms})
    return Clip(session, path, 0, frames, values, key, prompts, receipts, began, notes=notes)


def check_job(pipeline: Pipeline, job: RenderJob) -> tuple[str, ...]:
    """All of `open_job`'s checks without its work on the model.

    Returns:
        the clip's `notes`.

    Raises:
        InputError: as `open_job`.
    """
    frames = job.length(pipeline.geometry.fps)
    _check_size(pipeline, job)
    settings = pipeline.settings.updated(job.set)
    plan = settings.plan(pipeline.plan)
    recache_of(settings.recache_mode).check(plan, settings.sink_policy)
    changes = _changes(pipeline, job, frames)
    _check_releases(pipeline, plan, changes)
    job_key(pipeline, job)
    if job.image is not None or job.video is not None:
        pipeline.start_pictures(job.image, job.video)
    _check_length(pipeline, settings.rope, MAX_POSITIONS, frames)
    return (*pipeline.picture_notes(job.image), *_reach_notes(changes, frames, pipeline.geometry.fps))


def open_continuation(
    pipeline: Pipeline,
    state: Path,
    job: RenderJob,
    path: Path,
    new_prompt: bool,
    extend: Path | None = None,
    deadline_ms: float | None = None,
) -> Clip:
    """A clip that goes on where the saved stream's clip ended. All times of the job count from there.

    Args:
        state: what `write_clip` or `Session.save` wrote.
        new_prompt: whether the job's first prompt is a change; else the stream keeps its own, and any change
            it still waits for.
        extend: the clip that the stream was saved at the end of; the new frames are put behind its own.
        deadline_ms: what a chunk may take, see `Pipeline.resume`.

    Raises:
        InputError: a damaged state, one of another model, a setting or motion file that cannot be, or a clip
            to extend that ends elsewhere.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = job.length(fps)
    chosen = pipeline.choose(recorded=Recorded.of(read_meta(state)))
    session = pipeline.resume(state, runner=chosen.runner, deadline_ms=deadline_ms)
    first = _continues_at(session, state)
    head = None if extend is None else _head(extend, pipeline, first)
    _check_positions(session, first + frames)
    shots = job.shots if new_prompt else (replace(job.shots[0], prompt=None, blend=None), *job.shots[1:])
    changes = _changes(pipeline, replace(job, shots=shots), frames, first)
    if not session.pending:
        # what the stream still waits for may begin gestures, too
        _check_releases(pipeline, session.state.latents.ring.plan, changes, session.state)
    receipts = []
    if not changes[0].is_empty or job.set:
        receipts.append(_submit(session, changes[0].event(job.set), first))
    receipts += [_submit(session, change.event(), change.frame) for change in changes[1:]]
    key = digest({"job": job_key(pipeline, job), "state": file_digest(str(state)), "new_prompt": new_prompt})
    values = job.to_json() | {"continue_from": str(state)}
    values |= {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    prompts = tuple(words for shot in job.shots for words in shot.words)
    notes = _notes(chosen, _reach_notes(changes, first + frames, fps))
    return Clip(
        session, path, first, frames, values, key, prompts, tuple(receipts), began, head=head, notes=notes
    )


def open_timeline(
    pipeline: Pipeline, file: Path, path: Path, seconds: float | None, image: str | None, video: str | None
) -> Clip:
    """A clip that goes through a recorded timeline again.

    Args:
        file: a timeline, or the record beside a rendered video.
        seconds: length; by default the recorded clip's, or of a bare timeline 2 s beyond its last event.
        image, video: what the stream starts from; by default what the record names.

    Raises:
        InputError: no timeline, one of another frame rate, or a start that cannot be read or is another than
            the timeline's.
    """
    began = time.perf_counter()
    timeline, record = read_timeline(file)
    fps = pipeline.geometry.fps
    if timeline.fps != fps:
        raise InputError(f"{file}: expected a timeline at the model's {fps} fps, found {timeline.fps:g}")
    if image is None and video is None:
        image, video = record["job"].get("image"), record["job"].get("video")
    if seconds is None:
        seconds = record["frames"] / fps or None
    if seconds is None:
        seconds = max((entry.frame for entry in timeline.events), default=0) / fps + _TAIL_SECONDS
    frames = frame_count(seconds, fps)
    chosen = pipeline.choose(recorded=Recorded.of(record))
    session = pipeline.replay(timeline, image, video, runner=chosen.runner)
    _check_positions(session, frames)
    prompts = dict.fromkeys(words for entry in timeline.events for words in entry.event.prompts)
    values: dict[str, Any] = {"timeline": str(file), "seconds": seconds, "seed": timeline.seed}
    values |= {name: value for name, value in (("image", image), ("video", video)) if value is not None}
    digests = [file_digest(str(name)) for name in (file, image, video) if name is not None]
    key = digest({"weights": pipeline.digest, "frames": frames, "files": digests})
    parts = parts_of(record) if record.get("frames") == frames else ()
    replays = Replayed(str(file), parts)
    changes = [
        _Change(str(i), entry.frame, Shot(entry.frame / fps), entry.event.motion, entry.event.gestures)
        for i, entry in enumerate(timeline.events)
    ]
    # a recorded event was asked for up to a chunk before it took effect
    slack = pipeline.geometry.temporal * pipeline.plan.chunk_frames
    notes = _notes(chosen, _reach_notes(changes, frames, fps, slack))
    return Clip(
        session, path, 0, frames, values, key, tuple(prompts), (), began, replays=replays, notes=notes
    )


def frame_count(seconds: float, fps: float) -> int:
    """Frames of a clip of `seconds`.

    Raises:
        InputError: less than one, or more than a day.
    """
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise InputError(f"--seconds: expected above 0 and at most 86400, found {seconds:g}")
    frames = round(seconds * fps)
    if frames < 1:
        raise InputError(f"--seconds: expected at least one frame (1/{fps:g} s), found {seconds:g}")
    return frames


def _check_size(pipeline: Pipeline, job: RenderJob) -> None:
    made = (pipeline.geometry.width, pipeline.geometry.height)
    if job.size is not None and job.size != made:
        found = f"{job.size[0]}x{job.size[1]}"
        raise InputError(f"size: {pipeline.name} makes {made[0]}x{made[1]} only, found {found}")


@dataclass(frozen=True)
class _Change:
    """What a shot changes: its place in messages, the frame of the stream from which on it is due, and its
    motions as tracks.
    """

    place: str
    frame: int
    shot: Shot
    motion: TrackSet | None = None
    gestures: Mapping[str, TrackSet | None] | None = None

    @property
    def tracks(self) -> dict[str, TrackSet | None]:
        """Tracks by gesture, the plain motion as one of them."""
        return ({} if self.motion is None else {MOTION: self.motion}) | dict(self.gestures or {})

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.tracks and not self.shot.words and self.shot.cache is None

    def event(self, settings: Mapping[str, Any] | None = None) -> StreamEvent:
        """As a stream takes it."""
        cache: Any = self.shot.cache
        said = StreamEvent(
            self.shot.prompt, self.motion, settings or None, cache, None, self.gestures, None, self.shot.blend
        )
        return replace(said, over=self.shot.over) if self.shot.over else said


def _changes(pipeline: Pipeline, job: RenderJob, frames: int, first: int = 0) -> list[_Change]:
    """What a job's shots change in a clip of so many frames that begins at frame `first` of its stream.

    Raises:
        InputError: a motion that cannot be read.
    """
    geometry = pipeline.geometry

    def load(motion: Motion | None, left: int) -> TrackSet | None:
        if motion is None:
            return None
        return load_motion(motion, geometry.fps, left, geometry.width / geometry.height)

    changes = []
    for index, shot in enumerate(job.shots):
        frame = _frame_of(shot.at_seconds, geometry.fps)
        left = frames - min(frames - 1, frame)
        named = None if shot.gestures is None else {n: load(x, left) for n, x in shot.gestures.items()}
        changes.append(_Change(f"shots[{index}]", first + frame, shot, load(shot.motion, left), named))
    return changes


def _check_releases(
    model: StreamModel, plan: ChunkPlan, changes: Sequence[_Change], state: StreamState | None = None
) -> None:
    """Raise InputError where a gesture is let go of that is not in force at that chunk.

    Args:
        state: where the stream is; None at its beginning.
    """
    geometry = model.geometry
    gestures: tuple[Gesture, ...] = () if state is None else state.controls.gestures
    scene, earliest = (0, 0) if state is None else (state.latents.scene[1], state.next_frame(geometry))
    last, clears = 0, False
    for change in changes:
        wanted = geometry.latent_frames(max(change.frame, earliest))
        start = _chunk_start(plan, scene, wanted)
        if start > last and clears:
            # a scene of its own began: chunks count from there
            scene, clears = last, False
            start = _chunk_start(plan, scene, wanted)
        last, frame = start, geometry.frames(start)
        try:
            gestures = changed(released(gestures, frame), change.tracks, frame)
        except InputError as error:
            raise InputError(f"{change.place}.gestures: {error}") from None
        if change.shot.words or change.shot.cache is not None:
            clears = change.shot.cache == "clear"


def _chunk_start(plan: ChunkPlan, scene: int, latent_frame: int) -> int:
    """The first latent frame of the first chunk that does not begin before one, in a scene that begins at
    latent frame `scene`.
    """
    offset = latent_frame - scene
    if offset <= 0:
        return scene
    return scene + plan.start(1 + max(0, -(-(offset - plan.first_chunk_frames) // plan.chunk_frames)))


def _reach_notes(changes: Sequence[_Change], end: int, fps: float, slack: int = 0) -> tuple[str, ...]:
    """What of the motions lies behind the clip's end; of one that a later one replaces, nothing."""
    notes: list[str] = []
    replaced: set[str] = set()
    for change in reversed([change for change in changes if change.frame < end]):
        for name, tracks in reversed(change.tracks.items()):
            if tracks is None or tracks.is_empty or name in replaced:
                continue
            late = beyond(tracks, change.frame, end, fps, slack if change.frame else 0)
            if late is not None:
                what = "motion" if name == MOTION else f"gesture {shorten(name)}"
                notes.append(f"{what} of {change.shot.at_seconds:g} s: {late}")
        replaced |= set(change.tracks)
        if change.motion is not None and change.motion.is_empty:
            # plain motion without points lets go of all that began before
            break
    return tuple(reversed(notes))


def _notes(chosen: Chosen, notes: tuple[str, ...]) -> tuple[str, ...]:
    """What is not as it was recorded, before what of the motions is not shown."""
    return notes if chosen.note is None else (chosen.note, *notes)


def _head(path: Path, pipeline: Pipeline, end: int) -> Head:
    """The clip to extend.

    Raises:
        InputError: no clip of ours, of other weights, or one that does not end at frame `end` of the stream.
    """
    record = read_record(sidecar_path(path))
    if record is None or not path.is_file():
        raise InputError(f"--extend {path}: expected a rendered clip with its record {sidecar_path(path)}")
    if record.get("weights") != pipeline.digest:
        raise InputError(f"--extend {path}: was rendered with other weights")
    last = record.get("first_frame", 0) + record.get("frames", 0)
    if last != end or not parts_of(record):
        raise InputError(f"--extend {path}: ends at frame {last}, the saved stream goes on at {end}")
    return Head(path, record)


def _submit(session: Session, event: StreamEvent, at_frame: int) -> Receipt:
    receipt = session.submit(event, at_frame)
    if receipt.status == "refused":
        raise InputError(str(receipt.reason))
    return receipt


def _frame_of(seconds: float, fps: float) -> int:
    """The first frame that is not shown before `seconds`."""
    return math.ceil(seconds * fps - 1e-6)


def _check_positions(session: Session, frames: int) -> None:
    ring = session.state.latents.ring
    _check_length(session.model, ring.rope_mode, ring.max_positions, frames)


def _check_length(model: StreamModel, rope: RopeMode, positions: int, frames: int) -> None:
    """Raise InputError where a stream of so many frames has no positions for its end."""
    if rope == "absolute" and model.geometry.latent_frames(frames) > positions:
        longest = model.geometry.frames(positions) / model.geometry.fps
        raise InputError(f"--seconds: with rope=absolute a stream ends after {longest:g} s, asked for more")


def _continues_at(session: Session, state: Path) -> int:
    """The frame after the clip that a state was saved with; without a clip, the next frame of the stream."""
    meta = read_meta(state)
    found, earliest = meta.get("rendered_frames", session.next_frame), session.next_frame
    latest = earliest + session.geometry.temporal * session.model.plan.chunk_frames
    if not isinstance(found, int) or not earliest <= found <= latest:
        raise InputError(f"{state}: rendered_frames: expected {earliest} to {latest}, found {shorten(found)}")
    return found
