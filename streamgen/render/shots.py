"""Shots: what changes at one time of a job, and the checks of values that they share with the job."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..motion.sources import with_folder
from ..suggest import shorten, unknown_key

# as `stream.prompts` has it
MAX_PROMPT = 10_000
MAX_SECONDS = 24 * 3600.0
CACHE_ACTIONS = ("recache", "keep", "clear")
# as `stream.events` has them, which loads torch
MAX_GESTURES, MAX_NAME = 256, 64
MAX_BLEND, MAX_WEIGHT, MAX_OVER_SECONDS, MAX_OVER_CHUNKS = 16, 1e6, 3600.0, 100_000
OVER_KEYS, WAYS = ("seconds", "chunks", "way", "every"), ("linear", "spherical")
PICTURE_USES = ("scene", "reference")
CHANGES = (
    "prompt", "blend", "over", "motion", "gestures", "cache", "policy", "strength", "mask", "picture",
)  # fmt: skip
SHOT_KEYS = ("at", *CHANGES)

# Values in one motion object or set of settings: a drag is a dozen, a drawn track of a minute a few thousand.
_MAX_VALUES = 4_000_000

Motion = str | Mapping[str, Any]

# One part of a blend in one line: a weight, an asterisk, a prompt.
_WEIGHTED = re.compile(r"(?:\d+\.?\d*|\.\d+)\s*\*\s*\S")


@dataclass(frozen=True)
class Shot:
    """What changes at one time of a job; None leaves a thing as it is.

    Attributes:
        at_seconds: media time, 0 <= at_seconds < the job's seconds.
        prompt: 1 to 10000 characters.
        motion: a motion file, or the object in it (see `motion.file.load_motion`), whose time 0 is this shot.
        cache: "recache", "keep" or "clear": what becomes of the past, also where the words stay.
        gestures: named motions, each as `motion` is, to add or to move; None lets go of that one.
        blend: prompts and weights in place of one prompt.
        over: how long the new words take to come, by the fields of `stream.prompts.Over`.
        strength: how much of the live input is made anew, above 0 and at most 1.
        mask: where it is: a file, or the object in `live.picture.mask_of`.
        picture: `file`, and as `use` scene or reference.
    """

    at_seconds: float
    prompt: str | None = None
    motion: Motion | None = None
    cache: str | None = None
    gestures: Mapping[str, Motion | None] | None = None
    blend: tuple[tuple[str, float], ...] | None = None
    over: Mapping[str, Any] | None = None
    strength: float | None = None
    mask: Motion | None = None
    picture: Mapping[str, str] | None = None

    @property
    def clears(self) -> bool:
        """Whether what follows begins a scene of its own."""
        return self.cache == "clear" or (self.picture is not None and self.picture["use"] == "scene")

    @property
    def live(self) -> dict[str, Any]:
        """What of it is about live input and pictures, by name."""
        fields = {name: vars(self)[name] for name in ("strength", "mask", "picture")}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def words(self) -> tuple[str, ...]:
        """All prompts that it names."""
        return (self.prompt,) if self.prompt is not None else tuple(words for words, _ in self.blend or ())


def parse_shots(row: Mapping[str, Any], seconds: float | None, folder: Path) -> tuple[Shot, ...]:
    """The shots of a job's row, in order; those at one time are one.

    Args:
        seconds: length of the job; None where it is not known yet.
        folder: what paths are relative to.

    Raises:
        InputError: names the field, what was expected and what was found.
    """
    rows = row.get("shots")
    if rows is not None and (not isinstance(rows, list) or not rows):
        raise InputError(f"shots: expected a list, found {shorten(rows)}")
    parsed: list[tuple[str, Shot]] = []
    if any(row.get(key) is not None for key in CHANGES):
        first = {"at": 0.0} | {key: row.get(key) for key in CHANGES}
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
    if not shots[0].words:
        raise InputError("prompt: the first shot has none")
    return tuple(shots)


def _together(first: Shot, second: Shot, where: str) -> Shot:
    at, gestures = first.at_seconds, dict(first.gestures or {})
    if first.words and second.words:
        raise InputError(f"{where}prompt: there are two prompts at {at:g} s")
    if first.motion is not None and second.motion is not None:
        raise InputError(f"{where}motion: there are two motions at {at:g} s")
    if None not in (first.cache, second.cache) and first.cache != second.cache:
        raise InputError(f"{where}cache: there are {first.cache} and {second.cache} at {at:g} s")
    for name, motion in (second.gestures or {}).items():
        if name in gestures:
            raise InputError(f"{where}gestures: there are two of {shorten(name)} at {at:g} s")
        gestures[name] = motion
    for name in first.live:
        if name in second.live:
            raise InputError(f"{where}{name}: there are two of them at {at:g} s")
    motion, cache = first.motion or second.motion, first.cache or second.cache
    says = first if first.words else second
    live = first.live | second.live
    shot = Shot(at, says.prompt, motion, cache, gestures or None, says.blend, says.over, **live)
    _check_cache(shot, where)
    return _one_motion(shot, where)


def _shot(row: Any, seconds: float | None, folder: Path, where: str) -> Shot:
    check_keys(row, SHOT_KEYS, where.rstrip(".") or "a job")
    at = number(row["at"], f"{where}at")
    end = MAX_SECONDS if seconds is None else seconds
    if at < 0 or at >= end:
        raise InputError(f"{where}at: expected from 0 to before the end ({end:g} s), found {at:g}")
    prompt = None if row.get("prompt") is None else prompt_text(row["prompt"], f"{where}prompt")
    motion = _motion(row.get("motion"), folder, f"{where}motion")
    gestures = _gestures(row.get("gestures"), folder, f"{where}gestures")
    blend = None if row.get("blend") is None else blend_of(row["blend"], f"{where}blend")
    over = None if row.get("over") is None else over_of(row["over"], f"{where}over")
    live = _live_changes(row, folder, where)
    shot = Shot(at, prompt, motion, cache_action(row, where), gestures, blend, over, **live)
    if all(value is None for value in (prompt, motion, gestures, shot.cache, blend)) and not live:
        raise InputError(f"{where}prompt: a shot needs a prompt, a motion, gestures or a cache action")
    _check_cache(shot, where)
    if prompt is not None and blend is not None:
        raise InputError(f"{where}blend: expected a prompt or a blend, found both")
    if over is not None and not shot.words:
        raise InputError(f"{where}over: expected new words that it leads to, found none")
    if over is not None and shot.clears:
        raise InputError(f"{where}over: cache clear leaves nothing that words could change over")
    return _one_motion(shot, where)


def _live_changes(row: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Strength, mask and picture of a shot, those that it has."""
    made: dict[str, Any] = {}
    if row.get("strength") is not None:
        value = row["strength"]
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not 0 < value <= 1:
            raise InputError(f"{where}strength: expected above 0 and at most 1, found {shorten(value)}")
        made["strength"] = float(value)
    mask = row.get("mask")
    if isinstance(mask, Mapping):
        check_keys(mask, ("box",), f"{where}mask")
        check_plain(mask, f"{where}mask")
        made["mask"] = dict(mask)
    elif mask is not None:
        made["mask"] = existing_path(mask, folder, f"{where}mask")
    picture = row.get("picture")
    if picture is not None:
        told = picture if isinstance(picture, Mapping) else {"file": picture}
        check_keys(told, ("file", "use"), f"{where}picture")
        use = told.get("use", "scene")
        if use not in PICTURE_USES:
            expected = " or ".join(PICTURE_USES)
            raise InputError(f"{where}picture.use: expected {expected}, found {shorten(use)}")
        file = existing_path(told.get("file"), folder, f"{where}picture")
        if file is None:
            raise InputError(f"{where}picture: expected a file, found none")
        made["picture"] = {"file": file, "use": use}
    return made


def _check_cache(shot: Shot, where: str) -> None:
    """Raise InputError for a cache action that a picture cannot have."""
    if shot.picture is None or shot.cache is None:
        return
    wanted = "clear" if shot.picture["use"] == "scene" else "recache"
    if shot.cache != wanted:
        use = shot.picture["use"]
        raise InputError(f"{where}picture: as {use} it comes with cache {wanted}, found cache {shot.cache}")


def blend_of(value: Any, where: str) -> tuple[tuple[str, float], ...]:
    """Prompts and weights, from rows `{"prompt", "weight"}` or weights by prompt.

    Raises:
        InputError: none or too many of them, or weights that are negative, too large, or all 0.
    """
    rows = [{"prompt": p, "weight": w} for p, w in value.items()] if isinstance(value, Mapping) else value
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_BLEND:
        found = len(rows) if isinstance(rows, list) else shorten(value)
        raise InputError(f"{where}: expected 1 to {MAX_BLEND} prompts with weights, found {found}")
    made = []
    for index, row in enumerate(rows):
        check_keys(row, ("prompt", "weight"), f"{where}[{index}]")
        weight = number(row.get("weight", 1.0), f"{where}[{index}].weight")
        if not 0 <= weight <= MAX_WEIGHT:
            expected = f"expected at least 0 and at most {MAX_WEIGHT:g}"
            raise InputError(f"{where}[{index}].weight: {expected}, found {weight:g}")
        made.append((prompt_text(row.get("prompt"), f"{where}[{index}].prompt"), weight))
    if not sum(weight for _, weight in made):
        raise InputError(f"{where}: expected a weight above 0, found only 0")
    return tuple(made)


def over_of(value: Any, where: str) -> dict[str, Any]:
    """How long new words take to come: seconds, or the fields of `stream.prompts.Over`.

    Raises:
        InputError: both or none of the lengths, or a value out of range.
    """
    row = value if isinstance(value, Mapping) else {"seconds": value}
    check_keys(row, OVER_KEYS, where)
    made = {key: found for key, found in row.items() if found is not None}
    if ("seconds" in made) == ("chunks" in made):
        raise InputError(f"{where}: expected seconds or chunks, one of them")
    if "seconds" in made:
        made["seconds"] = number(made["seconds"], where)
        if not 0 < made["seconds"] <= MAX_OVER_SECONDS:
            most = f"above 0 and at most {MAX_OVER_SECONDS:g}"
            raise InputError(f"{where}: expected seconds {most}, found {made['seconds']:g}")
    for name in ("chunks", "every"):
        count = made.get(name, 1)
        if type(count) is not int or not 1 <= count <= MAX_OVER_CHUNKS:
            raise InputError(f"{where}.{name}: expected 1 to {MAX_OVER_CHUNKS}, found {shorten(count)}")
    if made.get("way", "linear") not in WAYS:
        raise InputError(f"{where}.way: expected {' or '.join(WAYS)}, found {shorten(made['way'])}")
    return made


def cache_action(row: Mapping[str, Any], where: str) -> str | None:
    """What becomes of the past, under either of its names.

    Raises:
        InputError: another action, or two.
    """
    for name in ("cache", "policy"):
        value = row.get(name)
        if value is not None and value not in CACHE_ACTIONS:
            expected = ", ".join(CACHE_ACTIONS)
            raise InputError(f"{where}{name}: expected one of {expected}, found {shorten(value)}")
    cache, policy = row.get("cache"), row.get("policy")
    if None not in (cache, policy) and cache != policy:
        raise InputError(f"{where}cache: {cache} and policy {policy} are two values of one field")
    return cache or policy


def _motion(value: Any, folder: Path, where: str) -> Motion | None:
    if not isinstance(value, Mapping):
        return existing_path(value, folder, where)
    check_plain(value, where)
    return with_folder(value, folder)


def _gestures(value: Any, folder: Path, where: str) -> dict[str, Motion | None] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where}: expected name: motion (or null) pairs, found {shorten(value)}")
    if len(value) > MAX_GESTURES:
        raise InputError(f"{where}: expected at most {MAX_GESTURES}, found {len(value)}")
    for name in value:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            found = shorten(name)
            raise InputError(
                f"{where}: expected names of 1 to {MAX_NAME} printable characters, found {found}"
            )
    return {name: _motion(motion, folder, f"{where}[{shorten(name)}]") for name, motion in value.items()}


def _one_motion(shot: Shot, where: str) -> Shot:
    # the gesture "motion" is what a plain motion is
    if shot.motion is not None and "motion" in (shot.gestures or {}):
        raise InputError(f"{where}gestures: 'motion' is the shot's own motion, which is given, too")
    return shot


def check_releases(shots: Sequence[Shot]) -> None:
    """Raise InputError where a gesture is let go of that no shot before has begun. One that is over by then
    is found when the job is opened.
    """
    known: set[str] = set()
    for index, shot in enumerate(shots):
        where = f"shots[{index}].gestures" if index else "gestures"
        for name, motion in (shot.gestures or {}).items():
            if motion is None and not known:
                raise InputError(f"{where}: gesture {shorten(name)}: nothing is in force to let go of")
            if motion is None and name not in known:
                raise InputError(f"{where}: {unknown_key(name, sorted(known), noun='gesture')}")
        changes = {"motion": shot.motion} if shot.motion is not None else {}
        for name, motion in (changes | dict(shot.gestures or {})).items():
            (known.discard if motion is None else known.add)(name)


def timed_prompt(text: str, where: str) -> dict[str, Any]:
    """The shot in "4:PROMPT" or "4s:PROMPT", or "4-6:PROMPT" for words that come over two seconds. Instead of
    a prompt it may be a blend, "4:.7*PROMPT + .3*PROMPT".

    Raises:
        InputError: another form.
    """
    shot, prompt = _timed(text, where)
    parts = prompt.strip().split(" + ")
    if not all(_WEIGHTED.match(part.strip()) for part in parts):
        return {**shot, "prompt": prompt_text(prompt, where)}
    pairs = [part.strip().partition("*") for part in parts]
    return {**shot, "blend": [{"prompt": p.strip(), "weight": float(w)} for w, _, p in pairs]}


def _timed(text: str, where: str) -> tuple[dict[str, Any], str]:
    """When a shot begins, over how long its words come, and what is said behind the colon."""
    time, colon, rest = text.partition(":")
    if not colon:
        raise InputError(f'{where}: expected "SECONDS:PROMPT", found {shorten(text)}')
    begin, dash, end = (time, "", "") if time.strip().startswith("-") else time.strip().partition("-")
    at = number(begin.strip().removesuffix("s"), where)
    if not dash:
        return {"at": at}, rest
    until = number(end.strip().removesuffix("s"), where)
    if until <= at:
        raise InputError(f"{where}: expected an end after {at:g} s, found {until:g}")
    return {"at": at, "over": until - at}, rest


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


def prompt_text(value: Any, where: str) -> str:
    """A prompt with its white space collapsed.

    Raises:
        InputError: no text, none in it, too much of it, or control characters.
    """
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


def existing_path(value: Any, folder: Path, where: str) -> str | None:
    """The path of a file that is there; None for None.

    Raises:
        InputError: no such file.
    """
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


def check_plain(values: Any, where: str) -> None:
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
