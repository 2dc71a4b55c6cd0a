"""Render jobs: what to render, checked field by field.

A job is a mapping {id, seconds | frames, seed, samples, size, image, video, set, shots: [{at, prompt, motion,
policy}, ...]}. Instead of `shots` it may hold `prompt`, `motion` and `policy`, which make its one shot; with
both, they make the shot at 0. A bare string is a job of one prompt. `schema` says the same as JSON Schema.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..motion.sources import with_folder
from ..suggest import shorten, unknown_key

MAX_PROMPT = 2000
MAX_SECONDS = 24 * 3600.0
MAX_FRAMES = 24 * 3600 * 1000
MAX_SEED = 2**63 - 1
MAX_SAMPLES = 10_000
POLICIES = ("recache", "keep", "clear")
JOB_KEYS = (
    *("id", "seconds", "frames", "seed", "samples", "size", "image", "video"),
    *("shots", "set", "prompt", "motion", "policy"),
)
SHOT_KEYS = ("at", "prompt", "motion", "policy")

# Values in one motion object or set of settings: a drag is a dozen, a drawn track of a minute a few thousand.
_MAX_VALUES = 4_000_000

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
    """Videos to render: one, or `samples` of them with seeds that follow each other.

    Attributes:
        id: a name of the user's, or None.
        seconds: length, above 0, at most 24 hours; None where `frames` says it.
        frames: length in pixel frames, or None.
        seed: 0 to 2^63 - 1, of the first sample.
        image: path of an image to start from.
        video: path of a clip to start from.
        shots: at increasing times; the first is at 0 and has a prompt.
        set: settings that differ from the defaults, by dotted name.
        samples: how many videos, at least 1.
        size: (width, height) in pixels that the model is expected to make, or None.
        index: place in its file, from 0.
        line: line of its file, from 1; 0 where there is none.
    """

    id: str | None
    seconds: float | None
    seed: int
    image: str | None
    video: str | None
    shots: tuple[Shot, ...]
    set: dict[str, Any] = field(default_factory=dict)
    frames: int | None = None
    samples: int = 1
    size: tuple[int, int] | None = None
    index: int = field(default=0, compare=False)
    line: int = field(default=0, compare=False)

    @property
    def label(self) -> str:
        """What the files are named after: the id, else the first prompt."""
        return self.id if self.id is not None else str(self.shots[0].prompt)

    def length(self, fps: float) -> int:
        """Pixel frames at the model's frame rate.

        Raises:
            InputError: less than one frame, or a shot at or beyond the end.
        """
        frames = round((self.seconds or 0.0) * fps) if self.frames is None else self.frames
        if frames < 1:
            found = f"found {self.seconds:g}" if self.seconds else "found 0"
            raise InputError(f"seconds: expected at least one frame (1/{fps:g} s), {found}")
        for index, shot in enumerate(self.shots):
            if self.frames is not None and shot.at_seconds * fps >= frames:
                end = f"({frames} frames are {frames / fps:g} s)"
                raise InputError(
                    f"shots[{index}].at: expected from 0 to before the end {end}, found {shot.at_seconds:g}"
                )
        return frames

    def sample(self, number: int) -> "RenderJob":
        """The job of one sample, 0 <= number < samples: its seed is `number` higher."""
        return replace(self, samples=1, seed=self.seed + number)

    def with_absolute_paths(self) -> "RenderJob":
        """The job for a process that runs elsewhere: its files by absolute paths."""
        here = Path.cwd()
        shots = []
        for shot in self.shots:
            motion = shot.motion
            if isinstance(motion, Mapping):
                motion = with_folder(motion, here)
            elif motion is not None:
                motion = str(here / motion)
            shots.append(replace(shot, motion=motion))
        image, video = (None if path is None else str(here / path) for path in (self.image, self.video))
        return replace(self, image=image, video=video, shots=tuple(shots))

    def to_json(self) -> dict[str, Any]:
        """The job as a row that `job_from_row` reads back."""
        shots = []
        for shot in self.shots:
            parts = {
                "at": shot.at_seconds,
                "prompt": shot.prompt,
                "motion": shot.motion,
                "policy": shot.policy,
            }
            shots.append({key: value for key, value in parts.items() if value is not None})
        row: dict[str, Any] = {"id": self.id, "seconds": self.seconds, "frames": self.frames}
        row |= {"seed": self.seed, "samples": self.samples if self.samples > 1 else None}
        row |= {"size": list(self.size) if self.size else None, "image": self.image, "video": self.video}
        row |= {"set": dict(self.set) or None, "shots": shots}
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class JobDefaults:
    """What a row leaves open: length, seed (of the job with index 0; the next one's is one higher), and the
    folder that its paths are relative to.
    """

    seconds: float = 8.0
    seed: int = 0
    folder: Path = Path()


def job_from_row(row: Any, index: int, line: int, defaults: JobDefaults) -> RenderJob:
    """A checked job from a row of a file.

    Raises:
        InputError: names the field, what was expected and what was found.
    """
    if isinstance(row, str):
        row = {"prompt": row}
    check_keys(row, JOB_KEYS, "a job")
    seconds, frames = _length(row, defaults.seconds)
    samples = _whole(row.get("samples", 1), "samples", 1, MAX_SAMPLES)
    seed = _whole(row.get("seed", defaults.seed + index), "seed", 0, MAX_SEED)
    if seed + samples - 1 > MAX_SEED:
        raise InputError(f"seed: {seed} and {samples} samples go beyond 2^63 - 1")
    shots = _shots(row, seconds, defaults.folder)
    settings = row.get("set") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"set: expected key: value pairs, found {shorten(settings)}")
    _check_plain(settings, "set")
    image, video = (_path(row.get(key), defaults.folder, key) for key in ("image", "video"))
    if image is not None and video is not None:
        raise InputError("image, video: a stream starts from one of them, not both")
    return RenderJob(
        id=_id(row.get("id")),
        seconds=seconds,
        frames=frames,
        seed=seed,
        samples=samples,
        size=_size(row.get("size")),
        image=image,
        video=video,
        shots=shots,
        set=dict(settings),
        index=index,
        line=line,
    )


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
    """The job of `streamgen render "PROMPT" --at "4:PROMPT" --set key=value`.

    Raises:
        InputError: names the option.
    """
    changes: list[dict[str, Any]] = [{"at": 0.0, "prompt": prompt, "motion": motion}]
    changes += [timed_prompt(text, "--at") for text in at]
    row: dict[str, Any] = {"seconds": seconds, "seed": seed, "image": image, "video": video}
    row |= {"shots": changes, "set": parse_settings(settings)}
    try:
        return job_from_row(row, 0, 0, JobDefaults(seconds, seed))
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
        parsed[key] = setting_value(value, f"--set {key}")
    return parsed


def setting_value(value: str, where: str) -> Any:
    """The value in a text such as `4`, `1.5` or `euler`.

    Raises:
        InputError: no YAML.
    """
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where}: not a value: {shorten(value)}") from None


def timed_prompt(text: str, where: str) -> dict[str, Any]:
    """The shot in "4:PROMPT" or "4s:PROMPT".

    Raises:
        InputError: another form.
    """
    time, colon, prompt = text.partition(":")
    if not colon:
        raise InputError(f'{where}: expected "SECONDS:PROMPT", found {shorten(text)}')
    return {"at": number(time.strip().removesuffix("s"), where), "prompt": _prompt(prompt, where)}


def number(value: Any, where: str) -> float:
    """A finite number of seconds.

    Raises:
        InputError: none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{where}: expected a number of seconds, found {shorten(value)}")
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"{where}: expected a number of seconds, found {shorten(value)}") from None
    if not math.isfinite(seconds):
        raise InputError(f"{where}: expected a finite number of seconds, found {seconds}")
    return seconds


def check_keys(row: Any, known: Sequence[str], where: str) -> None:
    """Raise InputError for what is no mapping or has a key that is not known."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected key: value pairs, found {shorten(row)}")
    for key in row:
        if key not in known:
            raise InputError(f"{where}: {unknown_key(key, known)}")


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"id: expected a name, found {shorten(value)}")
    if len(str(value)) > MAX_PROMPT:
        raise InputError(f"id: has {len(str(value))} characters, at most {MAX_PROMPT} are allowed")
    # A lone half of a surrogate pair cannot be written to a record.
    return str(value).encode(errors="replace").decode()


def _length(row: Mapping[str, Any], default: float) -> tuple[float | None, int | None]:
    """Seconds or frames, whichever the row gives."""
    if row.get("frames") is not None:
        if row.get("seconds") is not None:
            raise InputError("seconds, frames: expected one of them, found both")
        return None, _whole(row["frames"], "frames", 1, MAX_FRAMES)
    seconds = number(row.get("seconds", default), "seconds")
    if not 0 < seconds <= MAX_SECONDS:
        raise InputError(
            f"seconds: expected above 0 and at most {MAX_SECONDS:g} (24 hours), found {seconds:g}"
        )
    return seconds, None


def _whole(value: Any, where: str, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        most = "2^63 - 1" if highest == MAX_SEED else str(highest)
        raise InputError(f"{where}: expected a whole number from {lowest} to {most}, found {shorten(value)}")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    """(width, height) from "832x480" or [832, 480]."""
    if value is None:
        return None
    parts: Any = value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,5})\s*[x×*]\s*(\d{1,5})\s*", value)
        parts = [int(part) for part in found.groups()] if found else None
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise InputError(f'size: expected "WIDTHxHEIGHT" or [width, height], found {shorten(value)}')
    width, height = (_whole(part, "size", 1, 16384) for part in parts)
    return width, height


def _shots(row: Mapping[str, Any], seconds: float | None, folder: Path) -> tuple[Shot, ...]:
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


def _shot(row: Any, seconds: float | None, folder: Path, where: str) -> Shot:
    check_keys(row, SHOT_KEYS, where.rstrip(".") or "a job")
    at = number(row["at"], f"{where}at")
    end = MAX_SECONDS if seconds is None else seconds
    if at < 0 or at >= end:
        raise InputError(f"{where}at: expected from 0 to before the end ({end:g} s), found {at:g}")
    prompt, motion, policy = row.get("prompt"), row.get("motion"), row.get("policy")
    if prompt is not None:
        prompt = _prompt(prompt, f"{where}prompt")
    if isinstance(motion, Mapping):
        _check_plain(motion, f"{where}motion")
        motion = with_folder(motion, folder)
    elif motion is not None:
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
    except (OSError, ValueError):
        found = False
    if not found:
        raise InputError(f"{where}: no such file: {shorten(str(path), 300)[1:-1]}")
    return str(path)


def _check_plain(values: Any, where: str) -> None:
    """Refuse what JSON cannot hold (YAML has dates and sets), and YAML aliases that unfold without end."""
    left, stack = _MAX_VALUES, [values]
    while stack:
        value = stack.pop()
        left -= 1
        if left < 0:
            raise InputError(f"{where}: holds more than {_MAX_VALUES} values")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise InputError(f"{where}: expected keys of text, found {shorten(next(iter(value)))}")
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif value is not None and not isinstance(value, str | int | float):
            raise InputError(f"{where}: expected text, numbers or lists, found {shorten(value)}")
