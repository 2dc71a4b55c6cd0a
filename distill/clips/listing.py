"""Which clips a folder holds, with their captions and track files.

Rows of `metadata.jsonl` or `metadata.csv` name a video and its caption, and may name a file of tracks:

    {"video": "dog.mp4", "caption": "a dog runs along a beach", "tracks": "dog.json"}

Clips that no row gives a caption take it from the text file of the same name beside them (`dog.txt`). Paths
are relative to the folder; subfolders are searched, hidden files and unknown columns are left alone. What
cannot be used is a `Problem`, not an error: the rest of the folder is.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgen.errors import InputError
from streamgen.stream.prompts import check_prompt
from streamgen.suggest import shorten

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp"),
)
METADATA = ("metadata.jsonl", "metadata.csv")

# First the name of our own, then those of other trainers' folders.
_VIDEO_KEYS = ("video", "file_name", "file", "path")
_CAPTION_KEYS = ("caption", "text", "prompt")
_TRACK_KEYS = ("tracks", "motion")


@dataclass(frozen=True)
class ClipEntry:
    """A clip to train on: `where` is what named it, such as `metadata.jsonl line 3`."""

    video: Path
    caption: str
    tracks: Path | None
    where: str


@dataclass(frozen=True)
class Problem:
    """What cannot be used, and why; `where` as in `ClipEntry`."""

    what: str
    why: str
    where: str


@dataclass(frozen=True)
class Listing:
    """The clips of a folder in a fixed order, and what cannot be used."""

    folder: Path
    entries: tuple[ClipEntry, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Row:
    """One row of a metadata file, `content` is None where `why` says what is wrong with it."""

    line: int
    content: Mapping[str, Any] | None
    why: str = ""


def list_clips(path: str | Path) -> Listing:
    """The clips of a folder.

    Raises:
        InputError: no such folder, nothing in it, two metadata files, or one that is not text.
    """
    folder = Path(os.path.normpath(path))
    if not folder.is_dir():
        raise InputError(f"clips.path {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    files = sorted(_files(folder))
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise InputError(f"{folder}: has both {METADATA[0]} and {METADATA[1]}, expected one of them")
    if not videos and not metadata:
        raise InputError(
            f"{folder}: no clips in it, expected videos (.mp4, .mkv, .webm, ...) with "
            f"captions in {METADATA[0]}, {METADATA[1]} or a .txt beside each"
        )
    named: set[Path] = set()
    found: list[ClipEntry | Problem] = []
    for file in metadata:
        found += [_from_row(folder, f"{file.name} line {row.line}", row, named) for row in _rows(file)]
    found += [_from_text(folder, video) for video in videos if video not in named]
    problems = [item for item in found if isinstance(item, Problem)]
    problems += _lonely_texts(folder, files, {video.with_suffix("") for video in videos})
    return Listing(folder, tuple(item for item in found if isinstance(item, ClipEntry)), tuple(problems))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; links to files count, links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _from_row(folder: Path, where: str, row: _Row, named: set[Path]) -> ClipEntry | Problem:
    if row.content is None:
        return Problem(where, row.why, where)
    name = _first(row.content, _VIDEO_KEYS)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return Problem(where, f"video: expected a file name, found {shorten(name)}", where)
    video = Path(os.path.normpath(folder / name.strip()))
    named.add(video)
    # looked up before the file: a row is wrong, whatever becomes of its clip
    tracks = _first(row.content, _TRACK_KEYS)
    if tracks is not None and (not isinstance(tracks, str) or "\0" in tracks):
        return Problem(str(video), f"tracks: expected a file name, found {shorten(tracks)}", where)
    if not _is_file(video):
        return Problem(str(video), "caption without a clip: no such file", where)
    caption = _first(row.content, _CAPTION_KEYS)
    if caption is None:
        return _from_text(folder, video, where, tracks)
    return _entry(video, caption, folder / tracks if tracks else None, where)


def _from_text(
    folder: Path, video: Path, where: str | None = None, tracks: str | None = None
) -> ClipEntry | Problem:
    """An entry whose caption is in the text file beside the clip."""
    file = video.with_suffix(".txt")
    source = where or str(file.relative_to(folder) if file.is_relative_to(folder) else file)
    try:
        caption = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Problem(
            str(video), f"clip without a caption: no row names one, and there is no {file.name}", source
        )
    except UnicodeDecodeError as error:
        return Problem(str(video), f"caption {file.name}: not UTF-8 text (byte {error.start})", source)
    except OSError as error:
        return Problem(str(video), f"caption {file.name}: cannot be read ({error.strerror})", source)
    return _entry(video, caption, folder / tracks if tracks else None, source)


def _entry(video: Path, caption: Any, tracks: Path | None, where: str) -> ClipEntry | Problem:
    try:
        check_prompt(caption)
    except InputError as error:
        return Problem(str(video), f"caption: {str(error).removeprefix('prompt: ')}", where)
    return ClipEntry(video, " ".join(caption.split()), tracks, where)


def _lonely_texts(folder: Path, files: list[Path], stems: set[Path]) -> list[Problem]:
    return [
        Problem(
            str(file),
            "caption without a clip: no video of this name beside it",
            str(file.relative_to(folder)),
        )
        for file in files
        if file.suffix.lower() == ".txt" and file.with_suffix("") not in stems
    ]


def _first(content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value that is there: neither missing nor null nor an empty text."""
    return next((content[key] for key in keys if content.get(key) not in (None, "")), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _rows(file: Path) -> Iterator[_Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    yield from _jsonl(text) if file.suffix == ".jsonl" else _csv(text)


def _jsonl(text: str) -> Iterator[_Row]:
    # Only newlines end a row: JSON strings may hold the other line separators.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            yield _Row(line, None, f"not valid JSON ({why})")
            continue
        if isinstance(row, dict):
            yield _Row(line, row)
        else:
            yield _Row(line, None, f"expected an object, found {shorten(row)}")


def _csv(text: str) -> Iterator[_Row]:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                yield _Row(rows.line_num, None, f"expected {len(header)} cells, found {len(cells)}")
            else:
                yield _Row(rows.line_num, dict(zip(header, map(str.strip, cells), strict=True)))
    except csv.Error as error:
        # a quote that never closes: nothing behind it can be told apart
        yield _Row(rows.line_num, None, f"not valid CSV ({error}), this row and all after it")
