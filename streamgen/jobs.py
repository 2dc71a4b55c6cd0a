"""Render jobs: what to render, read from a command line or from a .txt, .jsonl, .csv or .yaml file.

A job is a mapping {id, seconds, seed, image, video, set, shots: [{at, prompt, motion, policy}, ...]}.
Instead of `shots` it may hold `prompt`, `motion` and `policy`, which make its one shot; with both, they
make the shot at 0. A bare string is a job of one prompt. CSV columns have the same names, `at` for further
prompts as in "4:PROMPT | 6:PROMPT", and `set.KEY` for settings. Paths in a file are relative to the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError
from .suggest import shorten, unknown_key

MAX_PROMPT = 2000
MAX_SECONDS = 24 * 3600.0
MAX_SEED = 2**63 - 1
POLICIES = ("recache", "keep", "clear")
SUFFIXES = (".txt", ".jsonl", ".csv", ".yaml", ".yml")

_JOB_KEYS = ("id", "seconds", "seed", "image", "video", "shots", "set", "prompt", "motion", "policy")
_SHOT_KEYS = ("at", "prompt", "motion", "policy")

Motion = str | Mapping[str, Any]


@dataclass(frozen=True)
class Shot:
    """What changes at one time of a job; None leaves a thing as it is.

    Attributes:
        at_seconds: media time, 0 <= at_seconds < the job's seconds.
        prompt: 1 to 2000 characters.
        motion: a motion file, or the object in it (see `motion_file.load_motion`), whose time 0 is this shot.
        policy: "recache", "keep" or "clear": what a new prompt does to the cache.
    """

    at_seconds: float
    prompt: str | None = None
    motion: Motion | None = None
    policy: str | None = None


@dataclass(frozen=True)
class RenderJob:
    """One video to render.

    Attributes:
        id: file name without suffix, safe on every file system.
        seconds: length, above 0, at most 24 hours.
        seed: 0 to 2^63 - 1.
        image: path of an image to start from.
        video: path of a clip to start from.
        shots: at increasing times; the first is at 0 and has a prompt.
        set: settings that differ from the defaults, by dotted name.
    """

    id: str
    seconds: float
    seed: int
    image: str | None
    video: str | None
    shots: tuple[Shot, ...]
    set: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The job as a JSONL row that `parse_jobs` reads back."""
        shots = []
        for shot in self.shots:
            parts = {
                "at": shot.at_seconds,
                "prompt": shot.prompt,
                "motion": shot.motion,
                "policy": shot.policy,
            }
            shots.append({key: value for key, value in parts.items() if value is not None})
        row: dict[str, Any] = {"id": self.id, "seconds": self.seconds, "seed": self.seed, "image": self.image}
        row |= {"video": self.video, "set": dict(self.set) or None, "shots": shots}
        return {key: value for key, value in row.items() if value is not None}


def parse_jobs(path: str | Path, seconds: float = 8.0, seed: int = 0) -> list[RenderJob]:
    """All jobs of a file.

    Args:
        path: a .txt (one prompt a line, # starts a comment line), .jsonl, .csv or .yaml file (documents or
            a list).
        seconds: length of jobs that give none.
        seed: jobs that give no seed get `seed` plus their place in the file, whatever the shard.

    Raises:
        InputError: names the file, the line and the field.
    """
    file = Path(path)
    readers = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: jobs are read from {', '.join(SUFFIXES)} files")
    text = _read(file)
    jobs: list[RenderJob] = []
    lines: dict[str, int] = {}
    for line, row in reader(text, str(path)):
        index = len(jobs)
        try:
            job = _job(row, index, seconds, seed + index, file.parent)
        except InputError as error:
            raise InputError(f"{path}: line {line}: {error}") from None
        # File systems that ignore case would put both into one file.
        key = job.id.casefold()
        if key in lines:
            raise InputError(f"{path}: line {line}: id: {job.id!r} is taken by line {lines[key]}")
        lines[key] = line
        jobs.append(job)
    if not jobs:
        raise InputError(f"{path}: no jobs in it")
    return jobs


def job_from_command_line(
    prompt: str,
    seconds: float,
    seed: int,
    at: Sequence[str] = (),
    motion: str | None = None,
    image: str | None = None,
    video: str | None = None,
    settings: Sequence[str] = (),
) -> RenderJob:
    """The job of `streamgen render "PROMPT" --at "4:PROMPT" --set key=value`; its id comes from the prompt.

    Raises:
        InputError: names the option.
    """
    changes: list[dict[str, Any]] = [{"at": 0.0, "prompt": prompt, "motion": motion}]
    changes += [_timed_prompt(text, "--at") for text in at]
    name = slug(prompt)
    row: dict[str, Any] = {"id": name, "seconds": seconds, "seed": seed, "image": image, "video": video}
    row |= {"shots": changes, "set": parse_settings(settings)}
    try:
        return _job(row, 0, seconds, seed, Path())
    except InputError as error:
        message = re.sub(r"^shots\[0\]\.", "", str(error))
        message = re.sub(r"^shots\[(\d+)\]\.\w+", lambda m: f"--at {shorten(at[int(m[1]) - 1])}", message)
        raise InputError(re.sub(r"^(seconds|seed|motion|image|video)\b", r"--\1", message)) from None


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["sampler.steps=4"]` as {"sampler.steps": 4}; values are read as YAML.

    Raises:
        InputError: no "=", an empty or repeated key, or a value that is no YAML.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set: expected key=value, found {shorten(setting)}")
        if key in parsed:
            raise InputError(f"--set: {key} is given twice")
        parsed[key] = _setting(value, f"--set {key}")
    return parsed


def slug(text: str, limit: int = 80) -> str:
    """A file name from any text: letters and digits of any script, ".", "_" and "-"; never hidden or empty.

    Longer names than `limit` UTF-8 bytes are cut and end in a digest of the whole text, so they stay apart.
    """
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(char if char.isalnum() or char in "._-" else " " for char in normal)
    name = "-".join(kept.split()).strip("._-")
    # Windows opens devices by these names, whatever the suffix.
    stem = name.split(".")[0].casefold()
    if stem in ("con", "prn", "aux", "nul") or (stem[:3] in ("com", "lpt") and stem[3:].isdecimal()):
        name = f"job-{name}"
    encoded = name.encode()
    if len(encoded) > limit:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        name = encoded[: limit - 9].decode(errors="ignore").rstrip("._-") + "-" + digest
    return name or "job"


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    return text


def _txt(text: str, _name: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield number, {"prompt": prompt}


def _jsonl(text: str, name: str) -> Iterator[tuple[int, Any]]:
    # Only newlines end a row: JSON strings may hold the other line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line, object_pairs_hook=_distinct)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}: line {number}: not valid JSON ({error.msg})") from None
        except (InputError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: line {number}: {error}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f"{key} is given twice")
        result[key] = value
    return result


def _csv(text: str, name: str) -> Iterator[tuple[int, Any]]:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        columns = [key for key in _JOB_KEYS if key not in ("shots", "set")] + ["at"]
        for key in header:
            if key not in columns and not key.startswith("set."):
                raise InputError(f"{name}: line 1: {unknown_key(key, [*columns, 'set.KEY'])}")
        if len(set(header)) != len(header):
            raise InputError(f"{name}: line 1: a column is given twice")
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{name}: line {rows.line_num}"
            if len(cells) != len(header):
                raise InputError(f"{where}: expected {len(header)} cells, found {len(cells)}")
            filled = {key: cell.strip() for key, cell in zip(header, cells, strict=True) if cell.strip()}
            try:
                yield rows.line_num, _csv_row(filled)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
    except csv.Error as error:
        raise InputError(f"{name}: line {rows.line_num}: not valid CSV ({error})") from None


def _csv_row(cells: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {key: value for key, value in cells.items() if not key.startswith("set.")}
    settings = {key[4:]: _setting(value, key) for key, value in cells.items() if key.startswith("set.")}
    if settings:
        row["set"] = settings
    if "seconds" in row:
        row["seconds"] = _number(row["seconds"], "seconds")
    if "seed" in row:
        try:
            row["seed"] = int(row["seed"])
        except ValueError:
            raise InputError(f"seed: expected a whole number, found {shorten(row['seed'])}") from None
    if "at" in row:
        row["shots"] = [_timed_prompt(part.strip(), "at") for part in row.pop("at").split("|")]
    if "shots" not in row:
        row.setdefault("prompt", "")
    return row


def _yaml(text: str, name: str) -> Iterator[tuple[int, Any]]:
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            for child in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if child is None:
                    continue
                line = child.start_mark.line + 1
                _refuse_repeated_keys(child, name)
                row = loader.construct_document(child)
                if row is not None:
                    yield line, row
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{name}: {where}not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise InputError(f"{name}: not valid YAML (nested too deeply)") from None
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node, name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise InputError(f"{name}: line {key.start_mark.line + 1}: {key.value} is given twice")
            seen.add(str(key.value))


def _job(row: Any, index: int, seconds: float, seed: int, folder: Path) -> RenderJob:
    if isinstance(row, str):
        row = {"prompt": row}
    _check_keys(row, _JOB_KEYS, "a job")
    length = _number(row.get("seconds", seconds), "seconds")
    if not 0 < length <= MAX_SECONDS:
        raise InputError(
            f"seconds: expected above 0 and at most {MAX_SECONDS:g} (24 hours), found {length:g}"
        )
    chosen = row.get("seed", seed)
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 0 <= chosen <= MAX_SEED:
        raise InputError(f"seed: expected a whole number from 0 to 2^63 - 1, found {shorten(chosen)}")
    shots = _shots(row, length, folder)
    settings = row.get("set") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"set: expected key: value pairs, found {shorten(settings)}")
    image, video = (_path(row.get(key), folder, key) for key in ("image", "video"))
    if image is not None and video is not None:
        raise InputError("image, video: a stream starts from one of them, not both")
    given = row.get("id")
    if given is None:
        name = f"{index:05d}-{slug(shots[0].prompt or '', 48)}-s{chosen}"
    elif isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise InputError(f"id: expected a name, found {shorten(given)}")
    else:
        name = slug(str(given))
    return RenderJob(name, length, chosen, image, video, shots, dict(settings))


def _shots(row: Mapping[str, Any], seconds: float, folder: Path) -> tuple[Shot, ...]:
    rows = row.get("shots")
    if rows is not None and (not isinstance(rows, list) or not rows):
        raise InputError(f"shots: expected a list, found {shorten(rows)}")
    parsed: list[tuple[str, Shot]] = []
    if any(row.get(key) is not None for key in ("prompt", "motion", "policy")):
        first = {"at": 0.0} | {key: row.get(key) for key in ("prompt", "motion", "policy")}
        parsed.append(("", _shot(first, seconds, folder, "")))
    for index, item in enumerate(rows or []):
        where = f"shots[{index}]."
        if isinstance(item, Mapping) and "at" not in item:
            if index or parsed:
                raise InputError(f"{where}at: missing, expected seconds")
            item = {"at": 0.0, **item}
        parsed.append((where, _shot(item, seconds, folder, where)))
    if not parsed:
        raise InputError("prompt: missing")
    if parsed[0][1].at_seconds != 0:
        raise InputError(f"{parsed[0][0]}at: the first shot must be at 0, found {parsed[0][1].at_seconds:g}")
    shots: list[Shot] = []
    for where, shot in parsed:
        if shots and shot.at_seconds < shots[-1].at_seconds:
            times = f"{shot.at_seconds:g} comes after {shots[-1].at_seconds:g}"
            raise InputError(f"{where}at: times must be in order, {times}")
        if shots and shot.at_seconds == shots[-1].at_seconds:
            shots[-1] = _together(shots[-1], shot, where)
        else:
            shots.append(shot)
    if shots[0].prompt is None:
        raise InputError("prompt: the first shot has none")
    return tuple(shots)


def _together(first: Shot, second: Shot, where: str) -> Shot:
    at = first.at_seconds
    if first.prompt is not None and second.prompt is not None:
        raise InputError(f"{where}prompt: there are two prompts at {at:g} s")
    if first.motion is not None and second.motion is not None:
        raise InputError(f"{where}motion: there are two motions at {at:g} s")
    return Shot(
        at, first.prompt or second.prompt, first.motion or second.motion, first.policy or second.policy
    )


def _shot(row: Any, seconds: float, folder: Path, where: str) -> Shot:
    _check_keys(row, _SHOT_KEYS, where.rstrip(".") or "a job")
    at = _number(row["at"], f"{where}at")
    if at < 0 or at >= seconds:
        raise InputError(f"{where}at: expected from 0 to before the end ({seconds:g} s), found {at:g}")
    prompt, motion, policy = row.get("prompt"), row.get("motion"), row.get("policy")
    if prompt is not None:
        prompt = _prompt(prompt, f"{where}prompt")
    if motion is not None and not isinstance(motion, Mapping):
        motion = _path(motion, folder, f"{where}motion")
    if policy is not None and policy not in POLICIES:
        raise InputError(f"{where}policy: expected one of {', '.join(POLICIES)}, found {shorten(policy)}")
    if prompt is None and motion is None:
        raise InputError(f"{where}prompt: a shot needs a prompt or a motion")
    return Shot(at, prompt, motion, policy)


def _prompt(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, found {shorten(value)}")
    prompt = " ".join(value.split())
    if not prompt:
        raise InputError(f"{where}: is empty")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"{where}: has {len(prompt)} characters, at most {MAX_PROMPT} are allowed")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in prompt):
        raise InputError(f"{where}: holds control characters: {shorten(prompt)}")
    return prompt


def _path(value: Any, folder: Path, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{where}: expected a path, found {shorten(value)}")
    path = folder / value
    try:
        found = path.is_file()
    except OSError:
        found = False
    if not found:
        raise InputError(f"{where}: no such file: {path}")
    return str(path)


def _timed_prompt(text: str, where: str) -> dict[str, Any]:
    time, colon, prompt = text.partition(":")
    if not colon:
        raise InputError(f'{where}: expected "SECONDS:PROMPT", found {shorten(text)}')
    return {"at": _number(time.strip().removesuffix("s"), where), "prompt": _prompt(prompt, where)}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{where}: expected a number of seconds, found {shorten(value)}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"{where}: expected a number of seconds, found {shorten(value)}") from None
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number of seconds, found {number}")
    return number


def _setting(value: str, where: str) -> Any:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where}: not a value: {shorten(value)}") from None


def _check_keys(row: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected key: value pairs, found {shorten(row)}")
    for key in row:
        if key not in known:
            raise InputError(f"{where}: {unknown_key(key, known)}")
