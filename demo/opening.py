"""Timelines that a viewer brings along: checked, and fitted to the model that plays here.

What was made with this model, in its size and with its settings, plays again as it was. Of another one the
words, times and motions are taken, and a line says what will be different.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from streamgen import InputError, StreamEvent
from streamgen.stream.settings import STEP_SETTINGS
from streamgen.stream.timeline import Timeline

from .engine import ModelInfo
from .messages import MAX_SEED, SETTINGS, TEXT_SETTINGS
from .score import MAX_PLANNED, MAX_SECONDS, Planned, taken_apart

MAX_BYTES = 16 * 2**20
# Of all tracks, each in each of its frames.
MAX_POINTS = 4_000_000
_RECORD, _TIMELINE = "streamgen-render", "streamgen-timeline"
_VERSION = 1
_MOST_NOTES = 6


@dataclass(frozen=True)
class Score:
    """A timeline ready to be played: its opening alone, what comes later, and what is different here."""

    opening: Timeline
    later: tuple[Planned, ...]
    notes: tuple[str, ...]

    @property
    def frames(self) -> int:
        """The last frame at which something changes."""
        return self.later[-1].frame if self.later else 0


def read_score(data: bytes, info: ModelInfo) -> Score:
    """A timeline, or a record that has one, as JSON.

    Raises:
        InputError: not readable, another format or version, or values that cannot be; one line.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError("timeline: expected the JSON file that Save timeline makes") from None
    record: dict[str, Any] = content if isinstance(content, dict) else {}
    if record.get("format") == _RECORD:
        content = record.get("timeline")
    for one, what in ((record, "file"), (content, "timeline")):
        version = one.get("version") if isinstance(one, dict) else None
        if version is not None and version != _VERSION:
            found = f"found {str(version)[:20]}: made by another streamgen"
            raise InputError(f"{what}: version: expected {_VERSION}, {found}")
    _check_motion(content)
    timeline = Timeline.from_json(content)
    _check(timeline)
    notes = [] if record.get("model") in (None, info.name) else [_other_model(record, info)]
    return _fitted(timeline, info, notes)


def _other_model(record: Mapping[str, Any], info: ModelInfo) -> str:
    made = str(record["model"])[:60]
    return f"it was made with the model {made}, here it is {info.name}, which will show something else"


def _check_motion(content: Any) -> None:
    """Raise InputError for motion that is not told point by point, as timelines have it. Motion may elsewhere
    name arrays and clips, which here are files of the server and no business of a viewer's.
    """
    events = content.get("events") if isinstance(content, dict) else None
    points = 0
    for row in events if isinstance(events, list) else []:
        named = row.get("gestures") if isinstance(row, dict) else None
        gestures = list(named.values()) if isinstance(named, dict) else []
        for motion in [row.get("motion") if isinstance(row, dict) else None, *gestures]:
            if motion is None:
                continue
            if not isinstance(motion, dict) or not motion.keys() <= {"frames", "tracks"}:
                raise InputError(f"timeline: motion: expected frames and tracks, found {str(motion)[:60]!r}")
            frames, tracks = motion.get("frames", 0), motion.get("tracks", [])
            if type(frames) is not int or not isinstance(tracks, list):
                raise InputError("timeline: motion: expected a number of frames and a list of tracks")
            points += max(0, frames) * max(1, len(tracks))
    if points > MAX_POINTS:
        raise InputError(f"timeline: motion: expected at most {MAX_POINTS} points in all, found {points}")


def _check(timeline: Timeline) -> None:
    """Raise InputError for what no stream can have."""
    if not timeline.events or not timeline.events[0].event.changes_text:
        raise InputError("timeline: expected an opening event with a prompt, found none")
    if not 0 <= timeline.seed <= MAX_SEED:
        raise InputError(f"timeline: seed: expected 0 to {MAX_SEED}, found {timeline.seed}")
    if not 1 <= timeline.fps <= 1000:
        raise InputError(f"timeline: fps: expected 1 to 1000, found {timeline.fps:g}")
    if len(timeline.events) > MAX_PLANNED:
        raise InputError(f"timeline: expected at most {MAX_PLANNED} events, found {len(timeline.events)}")
    frames = [entry.frame for entry in timeline.events]
    if frames != sorted(frames) or frames[0] != 0 or frames[-1] > MAX_SECONDS * timeline.fps:
        raise InputError("timeline: expected events in order of their frames, from 0 and within a day")


def _fitted(timeline: Timeline, info: ModelInfo, notes: list[str]) -> Score:
    rate = info.fps / timeline.fps
    if rate != 1:
        rates = f"{timeline.fps:g} frames per second, here they are {info.fps:g}"
        notes.append(f"it was made at {rates}: times are kept")
    events = []
    for entry in timeline.events:
        event = _possible(entry.event, info, entry is timeline.events[0], notes)
        if event is not None:
            events.append(replace(entry, frame=round(entry.frame * rate), event=event))
    opening = Timeline(info.fps, timeline.seed, events[:1], timeline.start, timeline.noise)
    shown = list(dict.fromkeys(notes))
    more = [f"and {len(shown) - _MOST_NOTES} more"] if len(shown) > _MOST_NOTES else []
    return Score(opening, tuple(taken_apart(events[1:])), (*shown[:_MOST_NOTES], *more))


def _possible(event: StreamEvent, info: ModelInfo, opens: bool, notes: list[str]) -> StreamEvent | None:
    """What of an event this model can do; None where nothing is left."""
    asked = dict(event.settings or {})
    settings = {name: value for name, value in asked.items() if _settable(name, value, info, opens, notes)}
    motion, gestures = event.motion, event.gestures
    if not info.tracks and event.gesture_changes:
        notes.append("this model follows no tracks: motion is left out")
        motion = gestures = None
    if not (event.changes_text or event.cache or settings or gestures or motion is not None):
        return None
    return replace(event, settings=settings or None, motion=motion, gestures=gestures)


def _settable(name: str, value: Any, info: ModelInfo, opens: bool, notes: list[str]) -> bool:
    """Whether a viewer may set this; the engine is shared, so that what costs more than here is not taken."""
    if name in SETTINGS:
        kind, least, most = SETTINGS[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and least <= value <= most and (kind is float or type(value) is int):
            return True
        notes.append(f"setting {name}: expected {least:g} to {most:g}, found {str(value)[:20]}: left out")
        return False
    if name in TEXT_SETTINGS and isinstance(value, str) and len(value) <= TEXT_SETTINGS[name]:
        return True
    most_steps = SETTINGS["steps"][2]
    if name in STEP_SETTINGS and type(value) is int and 0 <= value <= most_steps:
        return True
    if value != info.settings.get(name):
        here = f"here it is {info.settings[name]}" if name in info.settings else "it is not known here"
        notes.append(f"setting {str(name)[:40]} is {str(value)[:20]}, {here}: left out")
    # what is as it is here need not be said, but for the opening, which says all
    return opens and value == info.settings.get(name, object())
