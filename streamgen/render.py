"""Rendering: one stream to one video file and its record, frame by frame in constant memory.

Beside `<name>.mp4` lies `<name>.json`, the record: the resolved job, seed, weights, versions, sha256 of the
raw frames, timeline, receipts and timings. A video under its final name is whole, and the record its own.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .errors import InputError, Interrupted
from .jobs import RenderJob, Shot
from .machine import device_name, peak_memory_mb, versions
from .motion import TrackSet
from .motion_file import load_motion
from .pipeline import Pipeline
from .session import Session
from .snapshot import Snapshot, write_snapshot
from .suggest import shorten
from .timeline import Receipt, StreamEvent, Timeline
from .video_write import VideoFileSink

FORMAT = "streamgen-render"
_TAIL_SECONDS = 2.0


@dataclass(frozen=True)
class Clip:
    """A session that is ready to go and the part of it that is wanted.

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


@dataclass(frozen=True)
class Hooks:
    """The caller's part while a clip is made: told `progress(frames)`, asked `stopped()` between chunks."""

    progress: Callable[[int], None] = lambda done: None
    stopped: Callable[[], bool] = lambda: False


@dataclass
class _Tally:
    """Sums over the chunks of a clip."""

    seconds: dict[str, float] = field(default_factory=dict)
    first_frame: float | None = None
    receipts: dict[int, Receipt] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def open_job(pipeline: Pipeline, job: RenderJob, path: Path) -> Clip:
    """A clip of a job; everything in it is checked before the first frame.

    Raises:
        InputError: a setting, motion file, image, clip or length that cannot be.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = frame_count(job.seconds, fps)
    key = job_key(pipeline, job)
    motions = [_load(shot, fps, frames) for shot in job.shots]
    opening, *later = job.shots
    session = pipeline.open(str(opening.prompt), job.seed, motions[0], job.image, job.video, job.set)
    _check_positions(session, frames)
    receipts = [
        _submit(session, _event(shot, motion), _frame_of(shot.at_seconds, fps))
        for shot, motion in zip(later, motions[1:], strict=True)
    ]
    prompts = tuple(shot.prompt for shot in job.shots if shot.prompt is not None)
    return Clip(session, path, 0, frames, job.to_json(), key, prompts, tuple(receipts), began)


def open_continuation(pipeline: Pipeline, state: Path, job: RenderJob, path: Path, new_prompt: bool) -> Clip:
    """A clip that goes on where the saved stream's clip ended. All times of the job count from there.

    Args:
        state: what `write_clip` or `Session.save` wrote.
        new_prompt: whether the job's first prompt is a change; else the stream keeps its own, and any change
            it still waits for.

    Raises:
        InputError: a damaged state, one of another model, or a setting or motion file that cannot be.
    """
    began = time.perf_counter()
    fps = pipeline.geometry.fps
    frames = frame_count(job.seconds, fps)
    motions = [_load(shot, fps, frames) for shot in job.shots]
    session = pipeline.resume(state)
    first = _continues_at(session, state)
    _check_positions(session, first + frames)
    opening = job.shots[0]
    receipts = []
    if new_prompt or motions[0] is not None or job.set:
        prompt = opening.prompt if new_prompt else None
        event = StreamEvent(prompt, motions[0], job.set or None, **_policy(opening))
        receipts.append(_submit(session, event, first))
    for shot, motion in zip(job.shots[1:], motions[1:], strict=True):
        receipts.append(_submit(session, _event(shot, motion), first + _frame_of(shot.at_seconds, fps)))
    key = _digest(
        {"job": job_key(pipeline, job), "state": _file_digest(str(state)), "new_prompt": new_prompt}
    )
    values = job.to_json() | {"continue_from": str(state)}
    prompts = tuple(shot.prompt for shot in job.shots if shot.prompt is not None)
    return Clip(session, path, first, frames, values, key, prompts, tuple(receipts), began)


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
        image, video = record.get("image"), record.get("video")
    if seconds is None:
        seconds = record.get("frames", 0) / fps or None
    if seconds is None:
        seconds = max((entry.frame for entry in timeline.events), default=0) / fps + _TAIL_SECONDS
    frames = frame_count(seconds, fps)
    session = pipeline.replay(timeline, image, video)
    _check_positions(session, frames)
    prompts = dict.fromkeys(entry.event.prompt for entry in timeline.events if entry.event.prompt is not None)
    values: dict[str, Any] = {"timeline": str(file), "seconds": seconds, "seed": timeline.seed}
    values |= {name: value for name, value in (("image", image), ("video", video)) if value is not None}
    digests = [_file_digest(str(name)) for name in (file, image, video) if name is not None]
    key = _digest({"weights": pipeline.digest, "frames": frames, "files": digests})
    return Clip(session, path, 0, frames, values, key, tuple(prompts), (), began)


def write_clip(clip: Clip, hooks: Hooks | None = None, save_state: Path | None = None) -> dict[str, Any]:
    """Render a clip to its file; returns its record.

    Until all is done the video is `<path>.part`, which plays, and stays if the work is cut short.

    Args:
        save_state: also write the state from which `open_continuation` goes on with the frame after the last.

    Raises:
        InputError: something cannot be written. Interrupted: `hooks.stopped` said so.
    """
    sidecar = sidecar_path(clip.path)
    check_output(clip.path)
    geometry = clip.session.geometry
    tally = _Tally(receipts={receipt.number: receipt for receipt in clip.receipts})
    part = sidecar.with_name(sidecar.name + ".part")
    try:
        with VideoFileSink(clip.path, geometry.height, geometry.width, geometry.fps) as sink:
            state = _stream(clip, sink, tally, hooks or Hooks(), save_state is not None)
            record = _record(clip, sink.sha256, tally)
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            # no record from here to the last rename: a crash in between cannot pair it with another video
            sidecar.unlink(missing_ok=True)
        part.replace(sidecar)
    except OSError as error:
        raise InputError(f"{sidecar}: cannot be written ({(error.strerror or str(error)).lower()})") from None
    finally:
        part.unlink(missing_ok=True)
    if save_state is not None and state is not None:
        write_snapshot(state, clip.session.timeline, save_state)
    return record


def is_done(path: Path, key: str) -> bool:
    """Whether a video with this key lies at `path`."""
    if not path.is_file():
        return False
    record = _read_record(sidecar_path(path))
    return record is not None and record.get("key") == key


def job_key(pipeline: Pipeline, job: RenderJob) -> str:
    """What a clip depends on, as 64 hex digits: job, settings, weights, and the content of its files.

    Raises:
        InputError: an unknown setting, or a file that cannot be read.
    """
    settings = pipeline.settings.updated(job.set).to_json()
    values = job.to_json()
    del values["id"]
    for name in ("image", "video"):
        if values.get(name) is not None:
            values[name] = _file_digest(values[name])
    for shot in values["shots"]:
        if isinstance(shot.get("motion"), str):
            shot["motion"] = _file_digest(shot["motion"])
    geometry = pipeline.geometry
    size = [geometry.width, geometry.height, geometry.fps]
    return _digest({"job": values, "settings": settings, "size": size, "weights": pipeline.digest})


def frame_count(seconds: float, fps: float) -> int:
    """Frames of a clip of `seconds`.

    Raises:
        InputError: less than one, or more than a day.
    """
    if not (math.isfinite(seconds) and 0 < seconds <= 24 * 3600):
        raise InputError(f"--seconds: expected above 0 and at most 86400, found {seconds:g}")
    frames = round(seconds * fps)
    if frames < 1:
        raise InputError(f"--seconds: expected at least one frame (1/{fps:g} s), found {seconds:g}")
    return frames


def sidecar_path(path: Path) -> Path:
    """The record of a video file."""
    return path.with_suffix(".json")


def check_output(path: Path) -> None:
    """Refuse an output that cannot be, before any work.

    Raises:
        InputError: a suffix other than .mp4, no such folder, or a file in the record's place that is none.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"-o {path}: expected a name that ends in .mp4")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: no such folder: {path.parent}")
    sidecar = sidecar_path(path)
    if sidecar.exists() and _read_record(sidecar) is None:
        raise InputError(
            f"-o {path}: its record would overwrite {sidecar}, which is not the record of a render; "
            "choose another name"
        )


def read_timeline(file: Path) -> tuple[Timeline, dict[str, Any]]:
    """A timeline from its own file or from a render's record, and the record's job (else empty).

    Raises:
        InputError: not readable, or neither of them.
    """
    content = _read_json(file)
    job: dict[str, Any] = {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        job = dict(content["job"]) if isinstance(content.get("job"), dict) else {}
        if content.get("first_frame"):
            raise InputError(
                f"{file}: is the record of a clip that continues another one; "
                "render that one's record with more seconds"
            )
        if isinstance(content.get("frames"), int):
            job["frames"] = content["frames"]
        content = content.get("timeline")
    try:
        return Timeline.from_json(content), job
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def word_notes(pipeline: Pipeline, prompts: tuple[str, ...]) -> list[str]:
    """What of the prompts does not reach the model, a line each."""
    notes = []
    for prompt in dict.fromkeys(prompts):
        words = pipeline.words(prompt)
        if words.unknown:
            names = ", ".join(repr(word) for word in words.unknown[:12])
            more = f" and {len(words.unknown) - 12} more" if len(words.unknown) > 12 else ""
            verb = "means" if len(words.unknown) == 1 else "mean"
            notes.append(f"{names}{more} {verb} nothing to this model (in {shorten(prompt)})")
        if words.dropped:
            length = len(words.ids)
            notes.append(
                f"only the first {length} words are read, {words.dropped} are dropped (of {shorten(prompt)})"
            )
    if any("nothing to this model" in note for note in notes):
        count = len(pipeline.vocabulary.words)
        notes.append(
            f"the {count} words it knows are in vocabulary.txt beside the weights of {pipeline.name}"
        )
    return notes


def receipt_notes(record: Mapping[str, Any]) -> list[str]:
    """Changes of a finished clip that are not seen in it, a line each."""
    notes = []
    for receipt in record["receipts"]:
        if receipt["status"] == "accepted":
            notes.append(
                f"change {receipt['number'] + 1} comes after the last chunk began and is not in this clip"
            )
        elif receipt["status"] == "refused":
            notes.append(f"change {receipt['number'] + 1} was refused: {receipt['reason']}")
        elif receipt["superseded"]:
            fields = ", ".join(receipt["superseded"])
            at = f"{receipt['seconds']:g} s"
            notes.append(
                f"change {receipt['number'] + 1}: a later one begins at the same chunk ({at}) and replaces "
                f"its {fields}"
            )
    return notes


def _stream(clip: Clip, sink: VideoFileSink, tally: _Tally, hooks: Hooks, keep: bool) -> Snapshot | None:
    """Generate and write all frames of a clip; with `keep`, returns the state to make the next frame from."""
    session, geometry = clip.session, clip.session.geometry
    end = clip.first_frame + clip.frames
    reach = geometry.temporal * session.pipeline.plan.chunk_frames
    before = None
    while sink.frames_written < clip.frames:
        if hooks.stopped():
            raise Interrupted(_kept(sink))
        if keep and session.next_frame + reach > end:
            before = session.snapshot()
        chunk = next(session)
        if tally.first_frame is None:
            tally.first_frame = time.perf_counter() - clip.began
        for part, seconds in chunk.timings.items():
            tally.add(part, seconds)
        tally.receipts |= {receipt.number: receipt for receipt in chunk.receipts}
        started = time.perf_counter()
        sink.write(
            chunk.frames[max(0, clip.first_frame - chunk.start_frame) : end - chunk.start_frame].numpy()
        )
        tally.add("write", time.perf_counter() - started)
        hooks.progress(sink.frames_written)
    if not keep:
        return None
    # a chunk that was cropped is made again by the continuation, which leaves out the frames that are here
    state = session.snapshot() if before is None or session.next_frame <= end else before
    return Snapshot(state.tensors, state.meta | {"rendered_frames": end})


def _record(clip: Clip, sha256: str, tally: _Tally) -> dict[str, Any]:
    session, pipeline = clip.session, clip.session.pipeline
    geometry = pipeline.geometry
    seconds = clip.frames / geometry.fps
    wall = time.perf_counter() - clip.began
    words = {prompt: pipeline.words(prompt) for prompt in dict.fromkeys(clip.prompts)}
    return {
        "format": FORMAT,
        "version": 1,
        "video": clip.path.name,
        "job": dict(clip.job),
        "key": clip.key,
        "seed": session.seed,
        "model": pipeline.name,
        "weights": pipeline.digest,
        "settings": session.controls.settings.to_json(),
        "versions": versions(),
        "device": device_name(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "sha256": sha256,
        "fps": geometry.fps,
        "width": geometry.width,
        "height": geometry.height,
        "frames": clip.frames,
        "seconds": seconds,
        "first_frame": clip.first_frame,
        "timeline": session.timeline.to_json(),
        "receipts": [tally.receipts[number].to_json() for number in sorted(tally.receipts)],
        "unknown_words": {prompt: list(found.unknown) for prompt, found in words.items() if found.unknown},
        "dropped_words": {prompt: found.dropped for prompt, found in words.items() if found.dropped},
        "timings": {
            **{part: round(total, 6) for part, total in tally.seconds.items()},
            "wall": round(wall, 6),
            "time_to_first_frame": round(tally.first_frame or 0.0, 6),
            "realtime_factor": round(seconds / wall, 4),
        },
        "peak_memory_mb": round(peak_memory_mb(pipeline.device), 1),
    }


def _load(shot: Shot, fps: float, frames: int) -> TrackSet | None:
    if shot.motion is None:
        return None
    return load_motion(shot.motion, fps, frames - min(frames - 1, _frame_of(shot.at_seconds, fps)))


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
    cache = session.state.cache
    if cache.rope_mode == "absolute" and session.geometry.latent_frames(frames) > cache.max_positions:
        longest = session.geometry.frames(cache.max_positions) / session.geometry.fps
        raise InputError(f"--seconds: with rope=absolute a stream ends after {longest:g} s, asked for more")


def _continues_at(session: Session, state: Path) -> int:
    """The frame after the clip that a state was saved with; without a clip, the next frame of the stream."""
    with safe_open(state, "pt") as file:
        meta = json.loads(file.metadata()["snapshot"])
    found, earliest = meta.get("rendered_frames", session.next_frame), session.next_frame
    latest = earliest + session.geometry.temporal * session.pipeline.plan.chunk_frames
    if not isinstance(found, int) or not earliest <= found <= latest:
        raise InputError(f"{state}: rendered_frames: expected {earliest} to {latest}, found {shorten(found)}")
    return found


def _kept(sink: VideoFileSink) -> str:
    if not sink.frames_written:
        return "interrupted: nothing was written"
    return f"interrupted: the first {sink.frames_written} frames are in {sink.part_path}"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file}: not valid JSON") from None


def _read_record(file: Path) -> dict[str, Any] | None:
    """The record of a render, or None where there is none."""
    try:
        content = _read_json(file)
    except InputError:
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _file_digest(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    return digest.hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
