"""Rendering: one clip to one video file and its record, chunk by chunk in constant memory.

Beside `<name>.mp4` lies `<name>.json`, the record: the resolved job, seed, weights, versions, sha256 of the
raw frames, timeline, receipts and timings. A video under its final name is whole, and the record its own.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import Interrupted, OutputError
from ..live.read import ReadInput
from ..machine import device_name, peak_memory_mb, versions
from ..stream.events import Receipt
from ..stream.model import StreamModel
from ..stream.prompts import symbols_note
from ..stream.snapshot import Snapshot, write_snapshot
from ..stream.state import FrameChunk
from ..suggest import shorten
from ..video.outputs import FrameTap, Outputs, Part, PartDigests, taps_for
from ..video.write import VideoFileSink, reason_of
from .records import FORMAT, parts_of, read_record, sidecar_path
from .sources import Clip


@dataclass(frozen=True)
class Hooks:
    """The caller's part while a clip is made: told `progress(frames)` and, by `tell(line)`, what it should
    know at once; asked `stopped()` between chunks.
    """

    progress: Callable[[int], None] = lambda done: None
    stopped: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda line: None


@dataclass
class _Tally:
    """Sums over the chunks of a clip."""

    seconds: dict[str, float] = field(default_factory=dict)
    first_frame: float | None = None
    receipts: dict[int, Receipt] = field(default_factory=dict)
    steps: Counter[int] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    heard: list[list[int]] = field(default_factory=list)

    def listen(self, chunk: FrameChunk, end: int) -> None:
        """Note which frames of its input a chunk shows, and how that ends in a clip up to frame `end`."""
        receipt = chunk.input
        if receipt is None:
            return
        if receipt.numbers:
            self.heard.append([chunk.index, receipt.numbers[0], receipt.numbers[-1], receipt.held])
        if receipt.over is not None:
            shown = len(chunk.frames) - receipt.held if receipt.numbers else 0
            at = chunk.start_frame + shown
            if at < end and not any(told.startswith("input: ") for told in self.told):
                alone = f"the stream goes on by itself from {at / chunk.fps:g} s"
                self.told.append(f"input: {receipt.over}; {alone}")

    def take(self, chunk: FrameChunk) -> None:
        """Note what a chunk took, and what took effect with it."""
        for part, seconds in chunk.timings.items():
            self.add(part, seconds)
        self.receipts |= {receipt.number: receipt for receipt in chunk.receipts}
        self.steps[chunk.steps] += 1

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def write_clip(
    clip: Clip, hooks: Hooks | None = None, save_state: Path | None = None, outputs: Outputs | None = None
) -> dict[str, Any]:
    """Render a clip to its file; returns its record.

    Until all is done the video is `<path>.part`, which plays, and stays if the work is cut short. The video
    takes its final name last of all, so that where it is, its record and other outputs are.

    Args:
        save_state: also write the state from which `open_continuation` goes on with the frame after the last.

    Raises:
        OutputError: something cannot be written. Interrupted: `hooks.stopped` said so.
    """
    outputs = outputs or Outputs()
    sidecar = sidecar_path(clip.path)
    check_output(clip.path)
    geometry = clip.session.geometry
    tally = _Tally(receipts={receipt.number: receipt for receipt in clip.receipts})
    part = sidecar.with_name(sidecar.name + ".part")
    digests = PartDigests([each.frames for each in clip.replays.parts] if clip.replays else [])
    taps = taps_for(outputs, clip.path, clip.frames, geometry.fps)
    head = None if clip.head is None else clip.head.path
    try:
        with VideoFileSink(clip.path, geometry.height, geometry.width, geometry.fps, head=head) as sink:
            targets: list[Any] = [sink, digests, *taps]
            state = _stream(clip, targets, tally, hooks or Hooks(), save_state is not None)
            if clip.endless:
                clip = replace(clip, frames=sink.frames_written)
            sink.complete()
            for tap in taps:
                tap.complete()
            record = _record(clip, sink, digests, tally)
            _write_record(part, sidecar, record)
            for tap in taps:
                tap.keep()
            # no old video may be seen beside the new record, whenever the power is cut
            clip.path.unlink(missing_ok=True)
            part.replace(sidecar)
    except OSError as error:
        raise OutputError(f"{clip.path}: cannot be written ({reason_of(error)})") from None
    finally:
        _sweep(part, taps)
    if save_state is not None and state is not None:
        write_snapshot(state, save_state)
    return record


class _Nowhere:
    """Takes frames, and counts them."""

    frames_written = 0

    def write(self, frames: Any) -> None:
        self.frames_written += len(frames)


def follow_clip(clip: Clip, hooks: Hooks | None = None, saves: bool = False) -> None:
    """Go through a clip and write nothing: the part of a process that computes it together with the one that
    writes it, in `write_clip`.

    Args:
        saves: whether that one saves the state.

    Raises:
        Interrupted: `hooks.stopped` said so, to all of them.
    """
    _stream(clip, [_Nowhere()], _Tally(), hooks or Hooks(), saves)


def check_output(path: Path) -> None:
    """Refuse an output that cannot be, before any work.

    Raises:
        OutputError: a suffix other than .mp4, no such folder, or a file in the record's place that is none.
    """
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"-o {path}: expected a name that ends in .mp4")
    if not path.parent.is_dir():
        raise OutputError(f"-o {path}: no such folder: {path.parent}")
    sidecar = sidecar_path(path)
    if sidecar.exists() and read_record(sidecar) is None:
        raise OutputError(
            f"-o {path}: its record would overwrite {sidecar}, which is not the record of a render; "
            "choose another name"
        )


def word_notes(pipeline: StreamModel, prompts: tuple[str, ...]) -> list[str]:
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
            unit = "tokens" if pipeline.prompts.vocabulary is None else "words"
            cut = f', cut before "{words.cut}"' if words.cut else ""
            notes.append(
                f"only the first {len(words.ids)} {unit} are read, {words.dropped} are dropped{cut} "
                f"(of {shorten(prompt)})"
            )
        symbols = None if words.unknown else symbols_note(prompt)
        if symbols is not None:
            notes.append(f"{symbols} ({shorten(prompt)})")
    if any("nothing to this model" in note for note in notes):
        count = len(pipeline.vocabulary.words)
        notes.append(
            f"the {count} words it knows are in vocabulary.txt beside the weights of {pipeline.name}"
        )
    return notes


def record_notes(record: Mapping[str, Any]) -> list[str]:
    """What of a finished clip is not as it was asked for, a line each."""
    notes = []
    replay = record.get("replay")
    if replay is not None and replay.get("input_equal") is False:
        notes.append(f"its input has other frames than that of {replay['of']}")
    if replay is not None and replay["equal"] is False:
        notes.append(
            f"the frames differ from those recorded in {replay['of']}: weights, versions, device, dtype or "
            "threads are others (`streamgen compare` names them)"
        )
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


def _stream(clip: Clip, targets: list[Any], tally: _Tally, hooks: Hooks, keep: bool) -> Snapshot | None:
    """Generate all frames of a clip and give them to a video sink and to others; with `keep`, returns the
    state to make the next frame from.
    """
    sink: VideoFileSink | _Nowhere = targets[0]
    session, geometry = clip.session, clip.session.geometry
    end = clip.first_frame + clip.frames
    reach = geometry.temporal * session.model.plan.chunk_frames
    before, made = None, 0
    # where chunks are decoded beside the next one, they are written one behind
    behind = 0 if session.model.decoder_thread is None or clip.endless else 1
    waiting: list[FrameChunk] = []

    def write(most: int) -> None:
        while len(waiting) > most:
            _write(clip, waiting.pop(0), end, targets, tally)
            hooks.progress(sink.frames_written)

    while max(made, sink.frames_written) < clip.frames:
        if hooks.stopped():
            write(0)
            raise Interrupted(_kept(sink))
        if clip.endless and session.input_over:
            # the last chunk held what was not there any more
            end = clip.first_frame + sink.frames_written
            break
        if keep and session.next_frame + reach > end:
            before = session.snapshot()
        chunk = next(session)
        tally.take(chunk)
        note = session.deadline_note
        if note is not None and not any(told.startswith("deadline: ") for told in tally.told):
            tally.told.append(note)
            hooks.tell(note)
        if clip.endless and chunk.input is not None and chunk.input.over is not None:
            end = min(end, chunk.start_frame + len(chunk.frames) - chunk.input.held)
        tally.listen(chunk, end)
        waiting.append(chunk)
        place = (geometry.latent_of(chunk.start_frame), chunk.latents.shape[1])
        made = geometry.frame_range(*place)[1] - clip.first_frame
        write(behind)
    write(0)
    trouble = session.source.trouble if isinstance(session.source, ReadInput) else None
    if trouble is not None and not any(trouble in told for told in tally.told):
        tally.told.append(f"input: {trouble}")
    if not keep:
        return None
    # a chunk that was cropped is made again by the continuation, which leaves out the frames that are here
    state = session.snapshot() if before is None or session.next_frame <= end else before
    return replace(state, meta=state.meta | {"rendered_frames": end})


def _write(clip: Clip, chunk: FrameChunk, end: int, targets: list[Any], tally: _Tally) -> None:
    """Give the frames of a chunk that belong to a clip up to frame `end` to all targets."""
    frames = chunk.frames
    if tally.first_frame is None:
        tally.first_frame = time.perf_counter() - clip.began
    started = time.perf_counter()
    wanted = frames[max(0, clip.first_frame - chunk.start_frame) : end - chunk.start_frame].numpy()
    for target in targets:
        target.write(wanted)
    tally.add("write", time.perf_counter() - started)


def _record(clip: Clip, sink: VideoFileSink, digests: PartDigests, tally: _Tally) -> dict[str, Any]:
    session, pipeline = clip.session, clip.session.model
    geometry = pipeline.geometry
    made = clip.frames / geometry.fps
    parts = (*(parts_of(clip.head.record) if clip.head else ()), Part(clip.frames, sink.sha256))
    frames = sum(part.frames for part in parts)
    wall = time.perf_counter() - clip.began
    words = {prompt: pipeline.words(prompt) for prompt in dict.fromkeys(clip.prompts)}
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "video": clip.path.name,
        "job": dict(clip.job),
        "origin": dict(clip.origin),
        "key": clip.key,
        "seed": session.seed,
        "model": pipeline.name,
        "weights": pipeline.digest,
        "settings": session.controls.settings.to_json(),
        "versions": versions(),
        "device": device_name(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": 1 if pipeline.mesh is None else pipeline.mesh.size,
        "runner": session.runner.name,
        "decoder_device": device_name(pipeline.decoder_device),
        "quantize": session.runner.quantize,
        "batch": None if session.runner.batch is None else session.runner.batch.to_json(),
        # how many chunks took so many; which of them is in the timeline
        "steps": {str(count): tally.steps[count] for count in sorted(tally.steps)},
        # of all raw frames; of an extended clip there are the digests of its parts alone
        "sha256": sink.sha256 if clip.head is None else None,
        "parts": [asdict(part) for part in parts],
        "file": {"bytes": sink.part_path.stat().st_size, "sha256": _file_sha256(sink.part_path)},
        "fps": geometry.fps,
        "width": geometry.width,
        "height": geometry.height,
        "frames": frames,
        "seconds": frames / geometry.fps,
        "first_frame": clip.first_frame + clip.frames - frames,
        "timeline": session.timeline.to_json(),
        "receipts": [tally.receipts[number].to_json() for number in sorted(tally.receipts)],
        "input": _input_record(clip, tally),
        "notes": [*clip.notes, *tally.told],
        "unknown_words": {prompt: list(found.unknown) for prompt, found in words.items() if found.unknown},
        "dropped_words": {prompt: found.dropped for prompt, found in words.items() if found.dropped},
        "timings": {
            **{part: round(total, 6) for part, total in tally.seconds.items()},
            "wall": round(wall, 6),
            "time_to_first_frame": round(tally.first_frame or 0.0, 6),
            "realtime_factor": round(made / wall, 4),
        },
        "peak_memory_mb": round(peak_memory_mb(pipeline.device), 1),
    }
    if clip.replays is not None:
        expected = clip.replays.parts
        equal = digests.parts() == expected if expected else None
        record["replay"] = {"of": clip.replays.file, "equal": equal}
        heard = session.state.heard
        if clip.replays.input is not None and heard is not None:
            record["replay"]["input_equal"] = heard.digest == clip.replays.input
    return record


def _input_record(clip: Clip, tally: _Tally) -> dict[str, Any] | None:
    """What the stream heard: a row for each chunk with its number, the first and last frame of the input and
    how many of them repeat the last one.
    """
    heard, source = clip.session.state.heard, clip.job.get("input")
    if heard is None:
        return None
    file = _file_sha256(Path(source)) if isinstance(source, str) and Path(source).is_file() else None
    return heard.to_json() | {"source": source, "file": file, "chunks": tally.heard}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_record(part: Path, sidecar: Path, record: Mapping[str, Any]) -> None:
    """Bring a record to the disk under its `.part` name."""
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{sidecar}: cannot be written ({reason_of(error)})") from None


def _sweep(part: Path, taps: list[FrameTap]) -> None:
    """Remove what did not get its final name."""
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    for tap in taps:
        tap.discard()


def _kept(sink: VideoFileSink | _Nowhere) -> str:
    if isinstance(sink, _Nowhere) or not sink.frames_written:
        return "interrupted: nothing was written"
    return f"interrupted: the first {sink.frames_written} frames are in {sink.part_path}"
