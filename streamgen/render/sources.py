"""Clips: a session ready to go and the part of it that is wanted, of a job, a saved stream or a record.

Everything a clip needs is read and checked here, before its first frame.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.kv_cache import MAX_POSITIONS, RopeMode

from ..engine.choice import Chosen, Recorded
from ..engine.runner import Runner
from ..errors import InputError
from ..live.open import RawFrames
from ..pipeline import Pipeline
from ..stream.events import Receipt, StreamEvent
from ..stream.model import StreamModel
from ..stream.recache import recache_of
from ..stream.session import Session
from ..stream.snapshot import read_meta
from ..stream.timeline import Timeline
from ..suggest import shorten
from ..video.outputs import Part
from .changes.job_changes import (
    Change,
    changes_of,
    check_live,
    check_releases,
    opening_settings,
    picture_notes,
    reach_notes,
)
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
from .shots import MAX_SECONDS, Shot

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
        endless: whether it ends with its input, wherever that is, or else after `frames`.
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
    endless: bool = False


@dataclass(frozen=True)
class Replayed:
    """What a replay should come to: the file it follows, digests of raw frames where it has any, and of its
    input's.
    """

    file: str
    parts: tuple[Part, ...]
    input: str | None = None


@dataclass(frozen=True)
class Piped:
    """How a pipe is read: what raw frames do not say of themselves, and whether to wait no longer."""

    raw: RawFrames | None = None
    stopped: Callable[[], bool] = lambda: False


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
    heard: "Piped | None" = None,
) -> Clip:
    """A clip of a job; everything in it is checked before the first frame.

    Args:
        copy: how many jobs before this one ask for the very same clip; part of its key.
        deadline_ms: what a chunk may take, see `Pipeline.open`.
        asked: how it is to be computed; part of its key.
        runner: that its stream is given; by default the pipeline's.
        heard: how a pipe is read that is its input.

    Raises:
        InputError: a setting, motion file, image, clip or length that cannot be, or a file that changed
            while it was read.
    """
    began, heard = time.perf_counter(), heard or Piped()
    fps = pipeline.geometry.fps
    frames = job.length(fps)
    _check_size(pipeline, job)
    key = job_key(pipeline, job, copy, asked)
    opening, *later = changes = changes_of(pipeline, job, frames)
    settings = opening_settings(job)
    check_releases(pipeline, pipeline.settings.updated(settings).plan(pipeline.plan), changes)
    session = pipeline.open(
        opening.shot.prompt,
        job.seed,
        opening.motion,
        job.image,
        job.video,
        settings,
        gestures=opening.gestures,
        blend=opening.shot.blend,
        runner=runner,
        deadline_ms=deadline_ms,
    )
    if job_key(pipeline, job, copy, asked) != key:
        raise InputError("a file of this job changed while it was read")
    _check_positions(session, frames)
    if opening.mask is not None or opening.picture is not None:
        _submit(session, StreamEvent(mask=opening.mask, picture=opening.picture), 0)
    if job.input is not None:
        session.listen(job.input, raw=heard.raw, stopped=heard.stopped)
    receipts = tuple(_submit(session, change.event(), change.frame) for change in later)
    prompts = tuple(words for shot in job.shots for words in shot.words)
    notes = (*pipeline.picture_notes(job.image), *picture_notes(changes), *reach_notes(changes, frames, fps))
    values = job.to_json() | ({} if deadline_ms is None else {"deadline_ms": deadline_ms})
    endless = job.seconds is None and job.frames is None and job.is_piped
    return Clip(session, path, 0, frames, values, key, prompts, receipts, began, notes=notes, endless=endless)


def check_job(pipeline: Pipeline, job: RenderJob) -> tuple[str, ...]:
    """All of `open_job`'s checks without its work on the model.

    Returns:
        the clip's `notes`.

    Raises:
        InputError: as `open_job`.
    """
    frames = job.length(pipeline.geometry.fps)
    _check_size(pipeline, job)
    settings = pipeline.settings.updated(opening_settings(job))
    plan = settings.plan(pipeline.plan)
    recache_of(settings.recache_mode).check(plan, settings.sink_policy)
    changes = changes_of(pipeline, job, frames)
    check_releases(pipeline, plan, changes)
    check_live(pipeline, settings, job)
    job_key(pipeline, job)
    if job.image is not None or job.video is not None:
        pipeline.start_pictures(job.image, job.video)
    _check_length(pipeline, settings.rope, MAX_POSITIONS, frames)
    own = (*pipeline.picture_notes(job.image), *picture_notes(changes))
    return (*own, *reach_notes(changes, frames, pipeline.geometry.fps))


def open_continuation(
    pipeline: Pipeline,
    state: Path,
    job: RenderJob,
    path: Path,
    new_prompt: bool,
    extend: Path | None = None,
    deadline_ms: float | None = None,
    heard: Piped | None = None,
) -> Clip:
    """A clip that goes on where the saved stream's clip ended. All times of the job count from there.

    Args:
        state: what `write_clip` or `Session.save` wrote.
        new_prompt: whether the job's first prompt is a change; else the stream keeps its own, and any change
            it still waits for.
        extend: the clip that the stream was saved at the end of; the new frames are put behind its own.
        deadline_ms: what a chunk may take, see `Pipeline.resume`.
        heard: how a pipe is read that is its input.

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
    changes = changes_of(pipeline, replace(job, shots=shots), frames, first)
    if not session.pending:
        # what the stream still waits for may begin gestures, too
        check_releases(pipeline, session.state.latents.ring.plan, changes, session.state)
    receipts = []
    if job.input is not None:
        heard = heard or Piped()
        session.listen(job.input, raw=heard.raw, stopped=heard.stopped)
    if not changes[0].is_empty or job.set:
        receipts.append(_submit(session, changes[0].event(job.set), first))
    receipts += [_submit(session, change.event(), change.frame) for change in changes[1:]]
    key = digest({"job": job_key(pipeline, job), "state": file_digest(str(state)), "new_prompt": new_prompt})
    values = job.to_json() | {"continue_from": str(state)}
    values |= {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    prompts = tuple(words for shot in job.shots for words in shot.words)
    notes = _notes(chosen, reach_notes(changes, first + frames, fps))
    made = (session, path, first, frames, values, key, prompts, tuple(receipts), began)
    endless = job.seconds is None and job.frames is None and job.is_piped
    return Clip(*made, head=head, notes=(*notes, *picture_notes(changes)), endless=endless)


def open_timeline(
    pipeline: Pipeline,
    file: Path,
    path: Path,
    seconds: float | None,
    image: str | None,
    video: str | None,
    live: str | None = None,
    heard: Piped | None = None,
) -> Clip:
    """A clip that goes through a recorded timeline again.

    Args:
        file: a timeline, or the record beside a rendered video.
        seconds: length; by default the recorded clip's, or of a bare timeline 2 s beyond its last event.
        image, video: what the stream starts from; by default what the record names.
        live, heard: its live input, by default what the record names, and how a pipe is read.

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
    live = record["job"].get("input") if live is None else live
    if seconds is None:
        seconds = record["frames"] / fps or None
    if seconds is None:
        seconds = max((entry.frame for entry in timeline.events), default=0) / fps + _TAIL_SECONDS
    frames = frame_count(seconds, fps)
    chosen = pipeline.choose(recorded=Recorded.of(record))
    session = pipeline.replay(timeline, image, video, runner=chosen.runner)
    recorded = _listen_again(session, timeline, record, live, heard or Piped())
    _check_positions(session, frames)
    prompts = dict.fromkeys(words for entry in timeline.events for words in entry.event.prompts)
    values: dict[str, Any] = {"timeline": str(file), "seconds": seconds, "seed": timeline.seed}
    given = {"image": image, "video": video, "input": live}
    values |= {name: value for name, value in given.items() if value is not None}
    files = (file, image, video, None if live is None or not Path(live).is_file() else live)
    digests = [file_digest(str(name)) for name in files if name is not None]
    key = digest({"weights": pipeline.digest, "frames": frames, "files": digests})
    parts = parts_of(record) if record.get("frames") == frames else ()
    replays = Replayed(str(file), parts, recorded if record.get("frames") == frames else None)
    changes = [
        Change(str(i), entry.frame, Shot(entry.frame / fps), entry.event.motion, entry.event.gestures)
        for i, entry in enumerate(timeline.events)
    ]
    # a recorded event was asked for up to a chunk before it took effect
    slack = pipeline.geometry.temporal * pipeline.plan.chunk_frames
    notes = _notes(chosen, reach_notes(changes, frames, fps, slack))
    return Clip(
        session, path, 0, frames, values, key, tuple(prompts), (), began, replays=replays, notes=notes
    )


def _listen_again(
    session: Session, timeline: Timeline, record: Mapping[str, Any], live: str | None, heard: Piped
) -> str | None:
    """Give a replay its input; returns the digest that its frames had.

    Raises:
        InputError: it needs one and has none, or another file than the record's.
    """
    needed = any(entry.event.input is not None for entry in timeline.events)
    if not needed:
        if live is not None:
            raise InputError("--input: the timeline heard none")
        return None
    if live is None:
        raise InputError("timeline: its stream heard a live input: expected it as --input, found none")
    told = record.get("input")
    row: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    if row.get("file") is not None and Path(live).is_file() and file_digest(live) != row["file"]:
        raise InputError(
            f"--input {live}: is another file than the record's (sha256 {str(row['file'])[:12]}), found "
            f"{file_digest(live)[:12]}"
        )
    session.listen(live, raw=heard.raw, stopped=heard.stopped)
    return None if row.get("digest") is None else str(row["digest"])


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
