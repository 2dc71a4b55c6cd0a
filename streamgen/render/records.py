"""Records: the JSON file beside each rendered video, as it is found on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..stream.timeline import Timeline
from ..video.outputs import Part

FORMAT = "streamgen-render"


def sidecar_path(path: Path) -> Path:
    """The record of a video file."""
    return path.with_suffix(".json")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: missing, not readable or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file}: not valid JSON") from None


def read_record(file: Path) -> dict[str, Any] | None:
    """The record of a render, or None where there is none."""
    try:
        content = read_json(file)
    except InputError:
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def parts_of(record: Mapping[str, Any]) -> tuple[Part, ...]:
    """Digests of a clip's raw frames, in order; none where the record has none that are well formed."""
    rows = record.get("parts")
    if rows is None:
        rows = [{"frames": record.get("frames"), "sha256": record.get("sha256")}]
    if not isinstance(rows, list):
        return ()
    parts = []
    for row in rows:
        fits = isinstance(row, Mapping) and isinstance(row.get("frames"), int)
        if not fits or not isinstance(row.get("sha256"), str):
            return ()
        parts.append(Part(row["frames"], row["sha256"]))
    return tuple(parts) if sum(part.frames for part in parts) == record.get("frames") else ()


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
