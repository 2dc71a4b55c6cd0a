"""Job files: .txt, .jsonl, .csv and .yaml, or standard input, read into jobs.

Text has a prompt a line, # starts a comment line. CSV columns are named like a job's keys, `at` holds further
prompts as in "4:PROMPT | 6:PROMPT", `set.KEY` a setting and `gestures.NAME` a motion file. YAML is a list of
jobs or a document for each. Paths in a file are relative to the file.

Files that others have are read, too: lines of text with a length for each prompt (`a boat [10s] | # a city
[5s]`, after Infinity-RoPE; # clears the past), rows with `prompts` and where they change (LongLive), and rows
with `prompt_en` (VBench).
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..suggest import shorten, unknown_key
from .job import JOB_KEYS, JobDefaults, RenderJob, job_from_row, setting_value
from .shots import number, timed_prompt

STDIN = "-"
SUFFIXES = (".txt", ".jsonl", ".csv", ".yaml", ".yml")
FORMATS = ("txt", "jsonl", "csv", "yaml")

# keys of a job that hold pairs: columns of their own each
_NESTED = ("set", "gestures")

# One part of a line with lengths: `[10s]` before or behind the words.
_LENGTH = re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*s(?:ec(?:onds?)?)?\s*\]", re.IGNORECASE)
# The rate of Wan and its students, in which their files count frames, four of them in a latent one.
_PEER_FPS, _PEER_TEMPORAL = 16, 4
_PEER_SECONDS = 10.0
_SWITCHES = ("switch_seconds", "switch_frames", "switch_frame_indices")

Rows = Iterator[tuple[int, Any]]


def parse_jobs(
    path: str | Path, seconds: float = 8.0, seed: int = 0, file_format: str | None = None
) -> list[RenderJob]:
    """All jobs of a file.

    Args:
        path: a file named after its format, or "-" for standard input.
        seconds: length of jobs that give none.
        seed: jobs that give no seed get `seed` plus their place in the file, whatever the shard.
        file_format: one of `FORMATS`; by default what the name says, and of standard input what its first
            line looks like: JSONL where it begins with "{", else text.

    Raises:
        InputError: names the file, the line and the field.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    folder = Path() if str(path) == STDIN else Path(path).parent
    if file_format is None and str(path) != STDIN and Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: jobs are read from {', '.join(SUFFIXES)} files")
    text = _standard_input() if str(path) == STDIN else _read(Path(path))
    reader = _reader(str(path), text, file_format)
    defaults = JobDefaults(seconds, seed, folder)
    jobs: list[RenderJob] = []
    lines: dict[str, int] = {}
    for line, row in reader(text, name):
        try:
            job = job_from_row(_own_row(row), len(jobs), line, defaults)
        except InputError as error:
            raise InputError(f"{name}: line {line}: {error}") from None
        if job.id is not None:
            # File systems that ignore case would put both into one file.
            key = job.id.casefold()
            if key in lines:
                raise InputError(f"{name}: line {line}: id: {shorten(job.id)} is taken by line {lines[key]}")
            lines[key] = line
        jobs.append(job)
    if not jobs:
        raise InputError(f"{name}: no jobs in it")
    return jobs


def with_settings(jobs: list[RenderJob], changes: dict[str, Any]) -> list[RenderJob]:
    """The jobs with settings of the command line over their own."""
    return [replace(job, set=job.set | changes) for job in jobs] if changes else jobs


def _reader(path: str, text: str, file_format: str | None) -> Callable[[str, str], Rows]:
    readers: dict[str, Callable[[str, str], Rows]] = {"txt": _txt, "jsonl": _jsonl, "csv": _csv}
    readers |= {"yaml": _yaml, "yml": _yaml}
    if file_format is None and path == STDIN:
        file_format = "jsonl" if text.lstrip().startswith("{") else "txt"
    chosen = file_format or Path(path).suffix.lower().removeprefix(".")
    if chosen not in readers:
        raise InputError(f"--format: expected one of {', '.join(FORMATS)}, found {shorten(chosen)}")
    return readers[chosen]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file}: cannot be read ({reason})") from error


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"standard input: cannot be read ({error.strerror})") from None


def _txt(text: str, _name: str) -> Rows:
    for number_, line in enumerate(text.splitlines(), 1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield number_, {"timed": prompt} if _LENGTH.search(prompt) else {"prompt": prompt}


def _own_row(row: Any) -> Any:
    """A row as a job has it; those of others are told by their keys.

    Raises:
        InputError: one of theirs that makes no sense.
    """
    if not isinstance(row, dict):
        return row
    if "timed" in row:
        return _timed_row(str(row["timed"]))
    if "prompts" in row and "prompt" not in row and "shots" not in row:
        return _switching_row(dict(row))
    if "prompt_en" in row and "prompt" not in row:
        # what else such a row says is for the exam it was made for
        return {"prompt": row["prompt_en"]} | {key: row[key] for key in JOB_KEYS if key in row}
    return row


def _timed_row(line: str) -> dict[str, Any]:
    """A job of a line with a length for each prompt."""
    shots: list[dict[str, Any]] = []
    at, waiting = 0.0, None
    for part in line.split("|"):
        lengths = _LENGTH.findall(part)
        words = _LENGTH.sub(" ", part).strip()
        if len(lengths) > 1 or (waiting is not None and lengths and words):
            raise InputError(f"prompt: expected one length for each prompt, found {shorten(part.strip())}")
        if not words:
            if not lengths or waiting is not None:
                raise InputError(f"prompt: expected words and [10s] in each part, found {shorten(part)}")
            waiting = float(lengths[0])
            continue
        seconds = float(lengths[0]) if lengths else waiting
        if not seconds:
            raise InputError(f"prompt: expected a length such as [10s] for {shorten(words)}, found none")
        cut = words.startswith("#")
        shot = {"at": at, "prompt": words.lstrip("# ") if cut else words}
        shots.append(shot | ({"cache": "clear"} if cut and shots else {}))
        at, waiting = at + seconds, None
    if waiting is not None:
        raise InputError(f"prompt: expected words for [{waiting:g}s], found none")
    return {"seconds": at, "shots": shots}


def _switching_row(row: dict[str, Any]) -> dict[str, Any]:
    """A job of a row with `prompts` and where they change: `switch_seconds`, `switch_frames`, or LongLive's
    `switch_frame_indices` of latent frames; without any, every ten seconds.
    """
    prompts = row.pop("prompts")
    if not isinstance(prompts, list) or not prompts:
        raise InputError(f"prompts: expected a list of prompts, found {shorten(prompts)}")
    given = [key for key in _SWITCHES if row.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{given[1]}: expected one of {', '.join(_SWITCHES)}, found {given[0]}, too")
    if given:
        places = row[given[0]]
        if not isinstance(places, list) or len(places) != len(prompts) - 1:
            raise InputError(f"{given[0]}: expected {len(prompts) - 1} places for {len(prompts)} prompts")
        times = [_switch_time(number(place, given[0]), given[0]) for place in places]
    else:
        times = [_PEER_SECONDS * (i + 1) for i in range(len(prompts) - 1)]
    shots = [{"at": at, "prompt": prompt} for at, prompt in zip([0.0, *times], prompts, strict=True)]
    own = {key: value for key, value in row.items() if key not in _SWITCHES}
    if "seconds" not in own and "frames" not in own:
        own["seconds"] = (times[-1] if times else 0.0) + _PEER_SECONDS
    return own | {"shots": shots}


def _switch_time(place: float, unit: str) -> float:
    if unit == "switch_seconds":
        return place
    frame = place if unit == "switch_frames" else max(0.0, 1 + _PEER_TEMPORAL * (place - 1))
    return frame / _PEER_FPS


def _jsonl(text: str, name: str) -> Rows:
    # Only newlines end a row: JSON strings may hold the other line separators.
    for number_, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number_, json.loads(line, object_pairs_hook=_distinct)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}: line {number_}: not valid JSON ({error.msg})") from None
        except RecursionError:
            raise InputError(f"{name}: line {number_}: not valid JSON (nested too deeply)") from None
        except (InputError, ValueError) as error:
            raise InputError(f"{name}: line {number_}: {error}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f"{key} is given twice")
        result[key] = value
    return result


def _csv(text: str, name: str) -> Rows:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        columns = [key for key in JOB_KEYS if key not in ("shots", *_NESTED)] + ["at"]
        for key in header:
            if key not in columns and not key.startswith(tuple(f"{group}." for group in _NESTED)):
                known = [*columns, "set.KEY", "gestures.NAME"]
                raise InputError(f"{name}: line 1: {unknown_key(key, known)}")
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
    row: dict[str, Any] = {}
    for key, value in cells.items():
        group, dot, inner = key.partition(".")
        if dot:
            row.setdefault(group, {})[inner] = setting_value(inner, value, key) if group == "set" else value
        else:
            row[key] = value
    for key in ("seconds", "strength"):
        if key in row:
            row[key] = number(row[key], key)
    for key in ("seed", "frames", "samples"):
        if key in row:
            try:
                row[key] = int(row[key])
            except ValueError:
                raise InputError(f"{key}: expected a whole number, found {shorten(row[key])}") from None
    if "at" in row:
        row["shots"] = [timed_prompt(part.strip(), "at") for part in row.pop("at").split("|")]
    if "shots" not in row:
        row.setdefault("prompt", "")
    return row


def _yaml(text: str, name: str) -> Rows:
    # libyaml where PyYAML has it: ten times as fast on long lists
    loader = (yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)(text)
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
        # libyaml puts the end of a file on a line of its own
        where = f"line {min(mark.line, text.rstrip().count(chr(10))) + 1}: " if mark else ""
        raise InputError(f"{name}: {where}not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{name}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
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
