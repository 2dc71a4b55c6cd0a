"""Transcripts: what happens to a stream and when, and what is then to be seen, as JSON for any system.

A transcript is one file, `<id>.json`:

    {"format": "streamgen-exam-transcript", "version": 1,
     "id": "update-000", "category": "update", "kind": "colour",
     "fps": 16, "width": 64, "height": 64, "frames": 133, "seed": 70000,
     "events": [{"frame": 0, "seconds": 0.0, "prompt": "a small red circle moves right over the sea"},
                {"frame": 57, "seconds": 3.5625, "prompt": "a small blue circle moves right over the sea"}],
     "facts": [{"kind": "colour", "frames": [8, 57], "expect": "red", "asks": "beginning"},
               {"kind": "shown_within", "frames": [57, 133], "expect": {"colour": "blue"}, "tolerance": 1.0}]}

Events are those of a timeline (`streamgen.stream.timeline`), without the chunks, which are a system's own.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from streamgen import StreamEvent
from streamgen.errors import InputError
from streamgen.render.records import read_json
from streamgen.stream.timeline import event_from_json
from streamgen.suggest import shorten, unknown_key

from .facts import Fact, is_number, wrong_fact

FORMAT, VERSION = "streamgen-exam-transcript", 1
_EVENT_KEYS = ("frame", "seconds", "prompt", "motion", "gestures", "settings", "cache", "sink")
_FACT_KEYS = tuple(field.name for field in fields(Fact))
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAX_FRAMES, _MAX_SIDE = 1_000_000, 8192


@dataclass(frozen=True)
class Transcript:
    """One stream of an exam.

    Attributes:
        id: name of its files.
        category, kind: the groups that its marks count in.
        fps: frames per second.
        width, height: of the frames, in pixels.
        frames: length of the stream.
        seed: of the stream's draws, for systems that have one.
        events: rows of a timeline with `frame`, the first frame under them, and without `chunk`.
        facts: what is to be seen.
    """

    id: str
    category: str
    kind: str
    fps: float
    width: int
    height: int
    frames: int
    seed: int
    events: tuple[Mapping[str, Any], ...]
    facts: tuple[Fact, ...]

    def stream_events(self) -> list[tuple[int, StreamEvent]]:
        """Its events with the frames from which they count.

        Raises:
            InputError: an event that cannot be.
        """
        found, prompt = [], None
        for place, row in enumerate(self.events):
            try:
                event = event_from_json(row, self.fps, prompt)
            except (InputError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"events[{place}]: {error}") from None
            found.append((int(row["frame"]), event))
            prompt = event.prompt or prompt
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        row = {"format": FORMAT, "version": VERSION} | vars(self)
        return row | {"events": [dict(e) for e in self.events], "facts": [f.to_json() for f in self.facts]}

    def dumps(self) -> str:
        """As JSON text, an event or a fact a line."""
        row = self.to_json()
        lists = {name: row.pop(name) for name in ("events", "facts")}
        parts = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in row.items()]
        for name, rows in lists.items():
            lines = ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in rows)
            parts.append(f'"{name}": [\n{lines}\n ]')
        return "{\n " + ",\n ".join(parts) + "\n}\n"

    @property
    def digest(self) -> str:
        """Tells it from every other transcript: 64 hex digits."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_transcript(file: Path) -> Transcript:
    """Read and check a transcript.

    Raises:
        InputError: one line that names the file, the place in it, what was expected and what was found.
    """
    content = read_json(file)
    try:
        transcript = _transcript(content)
        if transcript.id != file.stem:
            raise InputError(f"id: expected {file.stem!r}, the name of the file, found {transcript.id!r}")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return transcript


def _transcript(content: Any) -> Transcript:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'expected an object with "format": "{FORMAT}", found {shorten(content)}')
    if content.get("version") != VERSION:
        raise InputError(f"version: expected {VERSION}, found {shorten(content.get('version'))}")
    known = ("format", "version", *(field.name for field in fields(Transcript)))
    for key in content:
        if key not in known:
            raise InputError(unknown_key(key, known))
    if missing := [key for key in known if key not in content]:
        raise InputError(f"{missing[0]}: missing")
    for key in ("id", "category", "kind"):
        if not isinstance(content[key], str) or not _NAME.fullmatch(content[key]):
            raise InputError(f"{key}: expected small letters, digits, - and _, found {shorten(content[key])}")
    for key, low, high in (
        ("fps", 1, 240),
        ("width", 16, _MAX_SIDE),
        ("height", 16, _MAX_SIDE),
        ("frames", 1, _MAX_FRAMES),
        ("seed", 0, 2**62),
    ):
        number = content[key]
        if (
            not is_number(number)
            or not low <= number <= high
            or (key != "fps" and not isinstance(number, int))
        ):
            raise InputError(f"{key}: expected a number from {low} to {high}, found {shorten(number)}")
    for key in ("events", "facts"):
        if not isinstance(content[key], list) or not content[key]:
            raise InputError(f"{key}: expected a list with at least one, found {shorten(content[key])}")
    frames, fps = content["frames"], content["fps"]
    _check_events(content["events"], frames, fps)
    facts = tuple(_fact(place, row, frames, fps) for place, row in enumerate(content["facts"]))
    row = {field.name: content[field.name] for field in fields(Transcript)}
    found = Transcript(**row | {"events": tuple(content["events"]), "facts": facts})
    found.stream_events()
    return found


def _check_events(rows: list[Any], frames: int, fps: float) -> None:
    first = rows[0] if isinstance(rows[0], dict) else {}
    if first.get("frame") != 0 or not isinstance(first.get("prompt"), str):
        raise InputError(f"events[0]: expected a prompt at frame 0, found {shorten(rows[0])}")
    before = -1
    for place, row in enumerate(rows):
        where = f"events[{place}]: "
        if not isinstance(row, dict):
            raise InputError(f"{where}expected an object, found {shorten(row)}")
        for key in row:
            if key not in _EVENT_KEYS:
                raise InputError(where + unknown_key(key, _EVENT_KEYS))
        frame = row.get("frame")
        if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < frames:
            raise InputError(f"{where}frame: expected 0 to {frames - 1}, found {shorten(frame)}")
        if frame <= before:
            raise InputError(f"{where}frame: expected one above {before}, found {frame}")
        seconds = row.get("seconds", frame / fps)
        if not is_number(seconds) or abs(seconds * fps - frame) > 0.5:
            raise InputError(f"{where}seconds: expected {frame / fps:g}, found {shorten(seconds)}")
        if not set(row) - {"frame", "seconds", "sink"}:
            raise InputError(f"{where}expected something that changes, found {', '.join(row)}")
        before = frame


def _fact(place: int, row: Any, frames: int, fps: float) -> Fact:
    where = f"facts[{place}]"
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {shorten(row)}")
    for key in row:
        if key not in _FACT_KEYS:
            raise InputError(f"{where}: {unknown_key(key, _FACT_KEYS)}")
    if not isinstance(row.get("kind"), str):
        raise InputError(f"{where}: kind: expected a kind of fact, found {shorten(row.get('kind'))}")
    where += f" ({shorten(row['kind'])[1:-1]}): "
    values = dict(row)
    for key in ("frames", "against"):
        if key == "frames" or key in row:
            values[key] = _span(where + key, row.get(key))
    tolerance = row.get("tolerance")
    if "tolerance" in row and not is_number(tolerance):
        raise InputError(f"{where}tolerance: expected a number, found {shorten(tolerance)}")
    fact = Fact(**values)
    if wrong := wrong_fact(fact, frames, fps):
        raise InputError(where + wrong)
    return fact


def _span(where: str, found: Any) -> tuple[int, int]:
    numbers = found if isinstance(found, list) else []
    if len(numbers) != 2 or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
        raise InputError(f"{where}: expected [first frame, end], found {shorten(found)}")
    return numbers[0], numbers[1]
