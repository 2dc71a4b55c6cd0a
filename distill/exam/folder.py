"""How an exam lies on disk: transcripts, and videos of any system.

EXAM/exam.json                format, version, digest
EXAM/transcripts/<id>.json    one for each stream, see `transcript`
VIDEOS/<id>.mp4               what a system made of it
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from streamgen.errors import InputError
from streamgen.render.records import read_json

from ..files import write_json
from .transcript import VERSION, Transcript, read_transcript

EXAM, TRANSCRIPTS = "exam.json", "transcripts"
FORMAT = "streamgen-exam"
#: Enough of a digest to tell two apart.
_SHORT = 16


def exam_digest(transcripts: Sequence[Transcript]) -> str:
    """Tells sets of transcripts apart: 64 hex digits."""
    every = sorted((transcript.id, transcript.digest) for transcript in transcripts)
    return hashlib.sha256(json.dumps(every).encode()).hexdigest()


def write_exam(folder: Path, transcripts: Sequence[Transcript]) -> None:
    """Write `exam.json` and the transcripts; those that are there stay.

    Raises:
        InputError: the folder has transcripts of another exam, or cannot be written.
    """
    found = {file.stem: read_transcript(file) for file in sorted((folder / TRANSCRIPTS).glob("*.json"))}
    for one in transcripts:
        if one.id in found and found[one.id].digest != one.digest:
            raise InputError(
                f"{folder / TRANSCRIPTS / one.id}.json: is of another exam, {found[one.id].digest[:_SHORT]}, "
                f"expected {one.digest[:_SHORT]}; take another folder"
            )
    every = [*found.values(), *(one for one in transcripts if one.id not in found)]
    try:
        (folder / TRANSCRIPTS).mkdir(parents=True, exist_ok=True)
        for one in transcripts:
            (folder / TRANSCRIPTS / f"{one.id}.json").write_text(one.dumps(), encoding="utf-8")
        about = {"format": FORMAT, "version": VERSION, "streams": len(every), "digest": exam_digest(every)}
        write_json(folder / EXAM, about)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({(error.strerror or str(error)).lower()})") from None


def read_exam(folder: Path) -> list[Transcript]:
    """The transcripts of a folder, in the order of their names.

    Raises:
        InputError: no exam, one of another version, or a transcript that is none.
    """
    check_version(folder, needed=True)
    files = sorted((folder / TRANSCRIPTS).glob("*.json"))
    if not files:
        raise InputError(f"{folder / TRANSCRIPTS}: expected transcripts, <id>.json, found none")
    transcripts = [read_transcript(file) for file in files]
    told, found = _exam_json(folder).get("digest"), exam_digest(transcripts)
    if told is not None and told != found:
        raise InputError(
            f"{folder / EXAM}: expected the digest of the transcripts beside it, {found[:_SHORT]}, "
            f"found {str(told)[:_SHORT]}: some were changed, added or taken away"
        )
    return transcripts


def check_version(folder: Path, needed: bool) -> None:
    """Raise InputError where a folder is of another version of the exam, or where it does not say and is
    `needed` to.
    """
    if not needed and not (folder / EXAM).exists():
        return
    version = _exam_json(folder).get("version")
    if version != VERSION:
        raise InputError(f"{folder / EXAM}: expected version {VERSION} of the exam, found {version!r:.40}")


def _exam_json(folder: Path) -> dict[str, Any]:
    file = folder / EXAM
    if not file.exists():
        raise InputError(f"{file}: no such file, expected an exam's folder")
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{file}: expected an object with "format": "{FORMAT}"')
    return content


def check_videos(folder: Path, transcripts: Sequence[Transcript]) -> None:
    """Raise InputError unless there is a video of each transcript, of its size, rate and length."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected videos <id>.mp4")
    missing = [one for one in transcripts if not (folder / f"{one.id}.mp4").is_file()]
    if missing:
        raise InputError(
            f"{folder}: expected {len(transcripts)} videos, found none of {missing[0].id}.mp4"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    for one in transcripts:
        _check_video(folder / f"{one.id}.mp4", one)


def _check_video(file: Path, transcript: Transcript) -> None:
    try:
        with av.open(str(file), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise InputError(f"{file}: has no video")
            stream = container.streams.video[0]
            size, rate, frames = (stream.width, stream.height), stream.average_rate, stream.frames
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{file}: not a video, or one cut off") from error
    for name, found, expected in (
        ("size", f"{size[0]}x{size[1]}", f"{transcript.width}x{transcript.height}"),
        ("frames per second", f"{float(rate or 0):g}", f"{transcript.fps:g}"),
    ):
        if found != expected:
            raise InputError(f"{file}: {name}: expected {expected}, as the transcript says, found {found}")
    # 0 where the container does not say
    if 0 < frames < transcript.frames:
        raise InputError(f"{file}: expected {transcript.frames} frames, found {frames}")
