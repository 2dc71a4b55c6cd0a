"""What a clip is known by: the key of its job, and the record, the JSON file beside its video, as it is found
on disk.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..motion.sources import files_of
from ..pipeline import Pipeline
from ..stream.settings import STEP_SETTINGS
from ..stream.timeline import Timeline
from ..video.outputs import Part
from .job import RenderJob
from .shots import Motion

FORMAT = "streamgen-render"
# A file that has not changed is hashed once, however many jobs name it.
_HASHED_FILES = 4096


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


@dataclass(frozen=True)
class Asked:
    """Of how a job is to be computed, what was asked for beside the pipeline's runner and eight bits; part of
    its key.

    Attributes:
        threads: of the CPU; None where it was left open.
        batch: streams at once; None: each by itself.
    """

    threads: int | None = None
    batch: int | None = None


# everything left open
NOTHING_ASKED = Asked()


def job_key(pipeline: Pipeline, job: RenderJob, copy: int = 0, asked: Asked = NOTHING_ASKED) -> str:
    """What a clip depends on, as 64 hex digits: job, settings, weights, the content of its files, and runner,
    eight bits, threads and batch where they were asked for.

    Where a job stands in its file, and how its length is put, are no part of it. What is left open is none
    either: several kinds of machine may work on one folder, and what each of them took stands in the records.

    Raises:
        InputError: an unknown setting, or a file that cannot be read.
    """
    settings = {
        name: value
        for name, value in pipeline.settings.updated(job.set).to_json().items()
        # as it was before there were such settings, so that folders of then are known
        if value or name not in STEP_SETTINGS
    }
    values = job.to_json() | {"frames": job.length(pipeline.geometry.fps)}
    for name in ("seconds", "samples", "size", "set"):
        values.pop(name, None)
    for name in ("image", "video", "input"):
        if values.get(name) is not None and not (name == "input" and job.is_piped):
            values[name] = file_digest(values[name])
    for shot in values["shots"]:
        if isinstance(shot.get("mask"), str):
            shot["mask"] = file_digest(shot["mask"])
        if "picture" in shot:
            shot["picture"] = {**shot["picture"], "file": file_digest(shot["picture"]["file"])}
        if "motion" in shot:
            shot["motion"] = _motion_digests(shot["motion"])
        if "gestures" in shot:
            shot["gestures"] = {name: _motion_digests(motion) for name, motion in shot["gestures"].items()}
    geometry = pipeline.geometry
    size = [geometry.width, geometry.height, geometry.fps]
    content = {"job": values, "settings": settings, "size": size, "weights": pipeline.digest}
    if pipeline.asked_runner not in (None, "auto"):
        # one that was asked for by name; what auto takes is another on another machine, and no other job
        content["runner"] = pipeline.asked_runner
    if pipeline.quantize_by_default != "none":
        content["quantize"] = pipeline.quantize_by_default
    content |= {name: value for name, value in asdict(asked).items() if value is not None}
    return digest(content | ({"copy": copy} if copy else {}))


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


def digest(values: Mapping[str, Any]) -> str:
    """sha256 of plain values, 64 hex digits."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@functools.lru_cache(_HASHED_FILES)
def _digest_as_of(path: str, size: int, changed_ns: int, inode: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _motion_digests(motion: Motion | None) -> Any:
    """A motion by the contents of its files; one that is no file, beside them."""
    if motion is None:
        return None
    named = [file_digest(str(file)) for file in files_of(motion)]
    return named if isinstance(motion, str) else [motion, *named]
