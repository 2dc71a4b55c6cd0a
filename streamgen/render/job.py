"""Render jobs: what to render, checked field by field.

A job is a mapping {id, seconds | frames, seed, samples, size, image, video, set, shots: [{at, prompt, motion,
gestures, cache}, ...]}. Instead of `shots` it may hold `prompt`, `motion`, `gestures` and `cache`, which make
its one shot; with both, they make the shot at 0. `policy` is another name of `cache`. A bare string is a job
of one prompt. `schema` says the same as JSON Schema.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..motion.sources import with_folder
from ..suggest import shorten
from .shots import (
    CHANGES,
    MAX_SECONDS,
    Motion,
    Shot,
    cache_action,
    check_keys,
    check_plain,
    check_releases,
    existing_path,
    number,
    parse_shots,
    timed_prompt,
)

MAX_FRAMES = 24 * 3600 * 1000
MAX_SEED = 2**63 - 1
MAX_SAMPLES = 10_000
_OPTION_NAMES = "seconds|seed|motion|image|video|cache|input|strength|mask"
# settings that are words, in which YAML would find signs of its own
_WORDS = ("negative_prompt", "input_prompt", "lora")
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# a longer name is none; file names are made of its beginning
MAX_ID = 2000
JOB_KEYS = (
    "id", "seconds", "frames", "seed", "samples", "size", "image", "video", "input", "shots", "set", *CHANGES,
)  # fmt: skip
PIPE = "-"


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
        input: path of a clip that is its live input; from the command line a pipe, `-` for standard input.
            Without seconds and frames the job is as long.
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
    input: str | None = None
    index: int = field(default=0, compare=False)
    line: int = field(default=0, compare=False)

    @property
    def label(self) -> str:
        """What the files are named after: the id, else the first prompt."""
        return self.id if self.id is not None else str(self.shots[0].prompt)

    @property
    def is_piped(self) -> bool:
        """Whether its input is read once, and nobody knows how long it is."""
        return self.input is not None and not Path(self.input).is_file()

    def length(self, fps: float) -> int:
        """Pixel frames at the model's frame rate.

        Raises:
            InputError: less than one frame, or a shot at or beyond the end.
        """
        frames = round((self.seconds or 0.0) * fps) if self.frames is None else self.frames
        if self.seconds is None and self.frames is None and self.input is not None:
            frames = MAX_FRAMES if self.is_piped else _clip_length(self.input, fps)
        if frames < 1:
            found = f"found {self.seconds:g}" if self.seconds else "found 0"
            raise InputError(f"seconds: expected at least one frame (1/{fps:g} s), {found}")
        for index, shot in enumerate(self.shots):
            if self.seconds is None and shot.at_seconds * fps >= frames:
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

        def absolute(motion: Motion | None) -> Motion | None:
            return with_folder(motion, here) if isinstance(motion, Mapping) else motion and str(here / motion)

        shots = []
        for shot in self.shots:
            named = shot.gestures and {name: absolute(motion) for name, motion in shot.gestures.items()}
            mask = shot.mask if isinstance(shot.mask, Mapping) else absolute(shot.mask)
            picture = shot.picture and {**shot.picture, "file": str(here / shot.picture["file"])}
            moved: dict[str, Any] = {
                "motion": absolute(shot.motion),
                "gestures": named,
                "mask": mask,
                "picture": picture,
            }
            shots.append(replace(shot, **moved))
        files = {name: vars(self)[name] for name in ("image", "video", "input")}
        placed: dict[str, Any] = {n: None if path is None else str(here / path) for n, path in files.items()}
        return replace(self, **placed, shots=tuple(shots))

    def to_json(self) -> dict[str, Any]:
        """The job as a row that `job_from_row` reads back.

        Keys of finished items are digests of it, so what an older version wrote stays as it was: the cache
        action goes by its first name, `policy`.
        """
        shots = []
        for shot in self.shots:
            parts: dict[str, Any] = {"at": shot.at_seconds, "prompt": shot.prompt, "motion": shot.motion}
            parts["blend"] = shot.blend and [{"prompt": p, "weight": w} for p, w in shot.blend]
            parts["over"] = shot.over and dict(shot.over)
            parts |= {"policy": shot.cache, "gestures": shot.gestures and dict(shot.gestures), **shot.live}
            shots.append({key: value for key, value in parts.items() if value is not None})
        row: dict[str, Any] = {"id": self.id, "seconds": self.seconds, "frames": self.frames}
        row |= {"seed": self.seed, "samples": self.samples if self.samples > 1 else None}
        row |= {"size": list(self.size) if self.size else None, "image": self.image, "video": self.video}
        row["input"] = self.input
        row |= {"set": dict(self.set) or None, "shots": shots}
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class JobDefaults:
    """What a row leaves open: length, seed (of the job with index 0; the next one's is one higher), the
    folder that its paths are relative to, whether it `continues` a stream, whose gestures it may let go of,
    and whether its input may be a pipe.
    """

    seconds: float = 8.0
    seed: int = 0
    folder: Path = Path()
    continues: bool = False
    pipes: bool = False


def job_from_row(row: Any, index: int, line: int, defaults: JobDefaults) -> RenderJob:
    """A checked job from a row of a file.

    Raises:
        InputError: names the field, what was expected and what was found.
    """
    if isinstance(row, str):
        row = {"prompt": row}
    check_keys(row, JOB_KEYS, "a job")
    heard = _input(row.get("input"), defaults)
    # one that listens is as long as what it hears
    seconds, frames = _length(row, None if heard is not None else defaults.seconds)
    samples = _whole(row.get("samples", 1), "samples", 1, MAX_SAMPLES)
    seed = _whole(row.get("seed", defaults.seed + index), "seed", 0, MAX_SEED)
    if seed + samples - 1 > MAX_SEED:
        raise InputError(f"seed: {seed} and {samples} samples go beyond 2^63 - 1")
    shots = parse_shots(row, seconds, defaults.folder)
    if not defaults.continues:
        check_releases(shots)
        if shots[0].over is not None:
            raise InputError("over: the first words of a stream have none that they could come from")
    settings = row.get("set") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"set: expected key: value pairs, found {shorten(settings)}")
    check_plain(settings, "set")
    image, video = (existing_path(row.get(key), defaults.folder, key) for key in ("image", "video"))
    if image is not None and video is not None:
        raise InputError("image, video: a stream starts from one of them, not both")
    if heard is not None and (image is not None or video is not None):
        raise InputError("input: expected no image and no video beside it, it is what the stream starts from")
    return RenderJob(
        id=_id(row.get("id")),
        seconds=seconds,
        frames=frames,
        seed=seed,
        samples=samples,
        size=_size(row.get("size")),
        input=heard,
        image=image,
        video=video,
        shots=shots,
        set=dict(settings),
        index=index,
        line=line,
    )


def job_from_command_line(  # noqa: PLR0913  an option each, by name
    prompt: str,
    seconds: float | None,
    seed: int,
    at: Sequence[str] = (),
    motion: str | None = None,
    image: str | None = None,
    video: str | None = None,
    settings: Sequence[str] = (),
    *,
    gestures: Sequence[str] = (),
    cache: str | None = None,
    continues: bool = False,
    live: "LiveOptions | None" = None,
) -> RenderJob:
    """The job of `streamgen render "PROMPT" --at "4:PROMPT" --set key=value`.

    Args:
        gestures: "NAME=FILE" each, from the start; "NAME=" lets go of one of the stream that is continued.
        cache: what changes of the prompt do with the past.
        continues: whether a saved stream goes on.
        live: its live input, and pictures.

    Raises:
        InputError: names the option.
    """
    live = live or LiveOptions()
    named = {name: file or None for name, file in _pairs(gestures, "--gesture", "NAME=FILE").items()}
    opening = {"at": 0.0, "prompt": prompt, "motion": motion, "gestures": named or None}
    opening |= {"strength": live.strength, "mask": live.mask}
    named_changes = [(timed_prompt(text, "--at"), f"--at {shorten(text)}") for text in at]
    for change, _ in [(opening, ""), *named_changes] if continues else named_changes:
        change["cache"] = cache
    times = [change["at"] for change, _ in named_changes]
    named_changes += live.pictures()
    if times == sorted(times):
        # pictures go where they belong; prompts that are out of order are told
        named_changes.sort(key=lambda change: change[0]["at"])
    changes = [opening, *(change for change, _ in named_changes)]
    row: dict[str, Any] = {"seconds": seconds, "seed": seed, "image": image, "video": video}
    row |= {"input": live.input, "shots": changes, "set": parse_settings(settings)}
    try:
        if cache is not None:
            cache_action({"cache": cache}, "")
        length = 8.0 if seconds is None else seconds
        return job_from_row(row, 0, 0, JobDefaults(length, seed, continues=continues, pipes=True))
    except InputError as error:
        message = re.sub(r"^shots\[0\]\.", "", str(error))
        message = re.sub(r"^shots\[(\d+)\]\.\w+", lambda m: named_changes[int(m[1]) - 1][1], message)
        message = re.sub(r"^gestures\b", "--gesture", message)
        raise InputError(re.sub(rf"^({_OPTION_NAMES})\b", r"--\1", message)) from None


@dataclass(frozen=True)
class LiveOptions:
    """What the command line says of live input and of pictures.

    Attributes:
        input: a clip, a named pipe or `-`.
        strength, mask: from the start.
        scenes, references: "SECONDS:FILE" each.
    """

    input: str | None = None
    strength: float | None = None
    mask: str | None = None
    scenes: Sequence[str] = ()
    references: Sequence[str] = ()

    def pictures(self) -> list[tuple[dict[str, Any], str]]:
        """Shots of the pictures, each with what messages call it.

        Raises:
            InputError: another form.
        """
        made = []
        for option, use, texts in (
            ("--picture", "scene", self.scenes),
            ("--reference", "reference", self.references),
        ):
            for text in texts:
                time, colon, file = text.partition(":")
                if not colon or not file:
                    raise InputError(f"{option}: expected SECONDS:FILE, found {shorten(text)}")
                at = number(time.strip().removesuffix("s"), option)
                made.append(({"at": at, "picture": {"file": file, "use": use}}, f"{option} {shorten(text)}"))
        return made


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["sampler.steps=4"]` as {"sampler.steps": 4}; values are read as YAML.

    Raises:
        InputError: no "=", an empty or repeated key, or a value that is no YAML.
    """
    pairs = _pairs(settings, "--set", "key=value")
    return {key: setting_value(key, value, f"--set {key}") for key, value in pairs.items()}


def _clip_length(path: str, fps: float) -> int:
    """Frames of a clip at a rate."""
    # its readers take a while to import, and jobs are checked without
    from ..video.read import clip_length

    return clip_length(path, fps)


def _pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"{option}: expected {form}, found {shorten(text)}")
        if key in parsed:
            raise InputError(f"{option}: {key} is given twice")
        parsed[key] = value
    return parsed


def setting_value(key: str, value: str, where: str) -> Any:
    """The value of a setting in a text such as `4`, `1.5` or `euler`; words are taken as they stand, unless
    they are in quotes.

    Raises:
        InputError: no YAML.
    """
    if key in _WORDS and not value.lstrip().startswith(("'", '"')):
        return value.strip()
    try:
        found = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where}: not a value: {shorten(value)}") from None
    # YAML 1.1 takes 1e30, which has no dot, for words
    return float(found) if isinstance(found, str) and _EXPONENT.fullmatch(found) else found


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"id: expected a name, found {shorten(value)}")
    if len(str(value)) > MAX_ID:
        raise InputError(f"id: has {len(str(value))} characters, at most {MAX_ID} are allowed")
    # A lone half of a surrogate pair cannot be written to a record.
    return str(value).encode(errors="replace").decode()


def _input(value: Any, defaults: JobDefaults) -> str | None:
    if defaults.pipes and isinstance(value, str):
        path = Path(value)
        if value == PIPE or (path.exists() and not path.is_file() and not path.is_dir()):
            return value
    return existing_path(value, defaults.folder, "input")


def _length(row: Mapping[str, Any], default: float | None) -> tuple[float | None, int | None]:
    """Seconds or frames, whichever the row gives."""
    if row.get("frames") is not None:
        if row.get("seconds") is not None:
            raise InputError("seconds, frames: expected one of them, found both")
        return None, _whole(row["frames"], "frames", 1, MAX_FRAMES)
    if row.get("seconds", default) is None:
        return None, None
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
