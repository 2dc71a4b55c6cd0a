"""Clips: a session ready to go and the part of it that is wanted, of a job, a saved stream or a record.

Everything a clip needs is read and checked here, before its first frame.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.kv_cache import MAX_POSITIONS, RopeMode

from ..errors import InputError
from ..motion.file import load_motion
from ..motion.sources import files_of
from ..motion.tracks import TrackSet
from ..pipeline import Pipeline
from ..stream.events import Receipt, StreamEvent
from ..stream.model import StreamModel
from ..stream.recache import recache_of
from ..stream.session import Session
from ..stream.snapshot import read_meta
from ..stream.timeline import Timeline
from ..suggest import shorten
from ..video.outputs import Part
from .job import MAX_SECONDS, RenderJob, Shot
from .records import FORMAT, parts_of, read_json, read_record, sidecar_path

_TAIL_SECONDS = 2.0
# A file that has not changed is hashed once, however many jobs name it.
_HASHED_FILES = 4096


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


def open_job(pipeline: Pipeline, job: RenderJob, path: Path, copy: int = 0) -> Clip:
    """A clip of a job; everything in it is checked before the first frame.

    Args:
        copy: how many jobs before this one ask for the very same clip; part of its key.

    Raises:
        InputError: a setting, motion file, image, clip or length that cannot be, or a file that changed
            while it was read.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = job.length(fps)
    _check_size(pipeline, job)
    key = job_key(pipeline, job, copy)
    motions = [_load(pipeline, shot, frames) for shot in job.shots]
    opening, *later = job.shots
    session = pipeline.open(str(opening.prompt), job.seed, motions[0], job.image, job.video, job.set)
    if job_key(pipeline, job, copy) != key:
        raise InputError("a file of this job changed while it was read")
    _check_positions(session, frames)
    receipts = [
        _submit(session, _event(shot, motion), _frame_of(shot.at_seconds, fps))
        for shot, motion in zip(later, motions[1:], strict=True)
    ]
    prompts = tuple(shot.prompt for shot in job.shots if shot.prompt is not None)
    return Clip(session, path, 0, frames, job.to_json(), key, prompts, tuple(receipts), began)


def check_job(pipeline: Pipeline, job: RenderJob) -> None:
    """All of `open_job`'s checks without its work on the model.

    Raises:
        InputError: as `open_job`.
    """
    frames = job.length(pipeline.geometry.fps)
    _check_size(pipeline, job)
    settings = pipeline.settings.updated(job.set)
    recache_of(settings.recache_mode).check(settings.plan(pipeline.plan), settings.sink_policy)
    for shot in job.shots:
        _load(pipeline, shot, frames)
    job_key(pipeline, job)
    if job.image is not None or job.video is not None:
        pipeline.start_pictures(job.image, job.video)
    _check_length(pipeline, settings.rope, MAX_POSITIONS, frames)


def open_continuation(
    pipeline: Pipeline,
    state: Path,
    job: RenderJob,
    path: Path,
    new_prompt: bool,
    extend: Path | None = None,
) -> Clip:
    """A clip that goes on where the saved stream's clip ended. All times of the job count from there.

    Args:
        state: what `write_clip` or `Session.save` wrote.
        new_prompt: whether the job's first prompt is a change; else the stream keeps its own, and any change
            it still waits for.
        extend: the clip that the stream was saved at the end of; the new frames are put behind its own.

    Raises:
        InputError: a damaged state, one of another model, a setting or motion file that cannot be, or a clip
            to extend that ends elsewhere.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = job.length(fps)
    motions = [_load(pipeline, shot, frames) for shot in job.shots]
    session = pipeline.resume(state)
    first = _continues_at(session, state)
    head = None if extend is None else _head(extend, pipeline, first)
    _check_positions(session, first + frames)
    opening = job.shots[0]
    receipts = []
    if new_prompt or motions[0] is not None or job.set:
        prompt = opening.prompt if new_prompt else None
        event = StreamEvent(prompt, motions[0], job.set or None, **_policy(opening))
        receipts.append(_submit(session, event, first))
    for shot, motion in zip(job.shots[1:], motions[1:], strict=True):
        receipts.append(_submit(session, _event(shot, motion), first + _frame_of(shot.at_seconds, fps)))
    key = _digest({"job": job_key(pipeline, job), "state": file_digest(str(state)), "new_prompt": new_prompt})
    values = job.to_json() | {"continue_from": str(state)}
    prompts = tuple(shot.prompt for shot in job.shots if shot.prompt is not None)
    return Clip(session, path, first, frames, values, key, prompts, tuple(receipts), began, head=head)


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
    session = pipeline.replay(timeline, image, video)
    _check_positions(session, frames)
    prompts = dict.fromkeys(entry.event.prompt for entry in timeline.events if entry.event.prompt is not None)
    values: dict[str, Any] = {"timeline": str(file), "seconds": seconds, "seed": timeline.seed}
    values |= {name: value for name, value in (("image", image), ("video", video)) if value is not None}
    digests = [file_digest(str(name)) for name in (file, image, video) if name is not None]
    key = _digest({"weights": pipeline.digest, "frames": frames, "files": digests})
    parts = parts_of(record) if record.get("frames") == frames else ()
    replays = Replayed(str(file), parts)
    return Clip(session, path, 0, frames, values, key, tuple(prompts), (), began, replays=replays)


def job_key(pipeline: Pipeline, job: RenderJob, copy: int = 0) -> str:
    """What a clip depends on, as 64 hex digits: job, settings, weights, and the content of its files.

    Where a job stands in its file, and how its length is put, are no part of it.

    Raises:
        InputError: an unknown setting, or a file that cannot be read.
    """
    settings = pipeline.settings.updated(job.set).to_json()
    values = job.to_json() | {"frames": job.length(pipeline.geometry.fps)}
    for name in ("seconds", "samples", "size", "set"):
        values.pop(name, None)
    for name in ("image", "video"):
        if values.get(name) is not None:
            values[name] = file_digest(values[name])
    for shot in values["shots"]:
        if "motion" in shot:
            named = [file_digest(str(file)) for file in files_of(shot["motion"])]
            shot["motion"] = named if isinstance(shot["motion"], str) else [shot["motion"], *named]
    geometry = pipeline.geometry
    size = [geometry.width, geometry.height, geometry.fps]
    content = {"job": values, "settings": settings, "size": size, "weights": pipeline.digest}
    return _digest(content | ({"copy": copy} if copy else {}))


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


def read_timeline(file: Path) -> tuple[Timeline, dict[str, Any]]:
    """A timeline from its own file or from a render's record, and of the record at least `job` and `frames`
    (empty and 0 where there is none).

    Raises:
        InputError: not readable, or neither of them.
    """
    content = read_json(file)
    record: dict[str, Any] = {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        record = dict(content)
        if content.get("first_frame"):
            raise InputError(
                f"{file}: is the record of a clip that continues another one; "
                "render that one's record with more seconds"
            )
        content = content.get("timeline")
    if not isinstance(record.get("job"), dict):
        record["job"] = {}
    if not isinstance(record.get("frames"), int) or isinstance(record["frames"], bool):
        record["frames"] = 0
    try:
        return Timeline.from_json(content), record
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def file_digest(path: str) -> str:
    """sha256 of a file's content, 64 hex digits.

    Raises:
        InputError: it cannot be read.
    """
    try:
        about = Path(path).stat()
        return _digest_as_of(path, about.st_size, about.st_mtime_ns, about.st_ino)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read ({reason})") from None


@functools.lru_cache(_HASHED_FILES)
def _digest_as_of(path: str, size: int, changed_ns: int, inode: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(pipeline: Pipeline, job: RenderJob) -> None:
    made = (pipeline.geometry.width, pipeline.geometry.height)
    if job.size is not None and job.size != made:
        found = f"{job.size[0]}x{job.size[1]}"
        raise InputError(f"size: {pipeline.name} makes {made[0]}x{made[1]} only, found {found}")


def _load(pipeline: Pipeline, shot: Shot, frames: int) -> TrackSet | None:
    if shot.motion is None:
        return None
    geometry = pipeline.geometry
    left = frames - min(frames - 1, _frame_of(shot.at_seconds, geometry.fps))
    return load_motion(shot.motion, geometry.fps, left, geometry.width / geometry.height)


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


def _event(shot: Shot, motion: TrackSet | None) -> StreamEvent:
    return StreamEvent(shot.prompt, motion, **_policy(shot))


def _policy(shot: Shot) -> dict[str, Any]:
    return {} if shot.policy is None else {"policy": shot.policy}


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


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
