"""Events, their receipts, and the timeline of what was applied."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from ..errors import InputError
from ..motion.file import load_motion, motion_to_json
from ..motion.tracks import TrackSet
from ..suggest import shorten, unknown_key
from .settings import StreamSettings

Policy = Literal["recache", "keep", "clear"]
SinkPolicy = Literal["refresh", "keep"]
Status = Literal["accepted", "applied", "refused"]

MAX_PROMPT = 2000
_ROW_KEYS = ("chunk", "frame", "seconds", "prompt", "policy", "sink", "motion", "settings")


@dataclass(frozen=True)
class StreamEvent:
    """One atomic change of a stream; what is None stays as it is.

    Attributes:
        prompt: the new prompt.
        motion: tracks that begin at the frame where the event takes effect; one without points lets go.
        settings: changed `StreamSettings` by name.
        policy: what a new prompt does with the past: `recache` (keep the looks, follow the new words), `keep`
            (leave the cache as it is) or `clear` (forget it).
        sink: with `recache`, whether the sink is committed again under the new words (`refresh`) or left
            (`keep`); None does what the model's settings say.
    """

    prompt: str | None = None
    motion: TrackSet | None = None
    settings: Mapping[str, Any] | None = None
    policy: Policy = "recache"
    sink: SinkPolicy | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise InputError(f"policy: expected one of {', '.join(get_args(Policy))}, found {self.policy!r}")
        if self.sink is not None and self.sink not in get_args(SinkPolicy):
            raise InputError(
                f"sink policy: expected one of {', '.join(get_args(SinkPolicy))}, found {self.sink!r}"
            )
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.settings is not None:
            # a copy: what was checked and recorded must not change with the caller's own dict
            object.__setattr__(self, "settings", dict(self.settings))
        if self.prompt is None and self.motion is None and not self.settings:
            raise InputError("event: expected a prompt, motion or settings, found none of them")

    def to_json(self) -> dict[str, Any]:
        """Plain values; only what the event changes."""
        out: dict[str, Any] = {}
        if self.prompt is not None:
            out |= {"prompt": self.prompt, "policy": self.policy}
            if self.sink is not None:
                out["sink"] = self.sink
        if self.motion is not None:
            out["motion"] = None if self.motion.is_empty else motion_to_json(self.motion)
        if self.settings:
            out["settings"] = dict(self.settings)
        return out

    @classmethod
    def from_json(cls, row: Mapping[str, Any], fps: float) -> "StreamEvent":
        """Inverse of `to_json`."""
        motion = None
        if "motion" in row:
            motion = load_motion(row["motion"], fps) if row["motion"] is not None else TrackSet.empty(0)
        return cls(
            row.get("prompt"),
            motion,
            row.get("settings"),
            row.get("policy", "recache"),
            row.get("sink"),
        )


@dataclass
class Receipt:
    """What became of an event. `accepted` on submission, then `applied` (with the place) or `refused` (with
    the reason).

    Attributes:
        number: order of submission, from 0.
        chunk, frame, seconds: first chunk and first pixel frame under the event, and that frame's media time.
        superseded: fields that a later event for the same boundary replaced.
    """

    number: int
    status: Status = "accepted"
    chunk: int | None = None
    frame: int | None = None
    seconds: float | None = None
    superseded: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"superseded": list(self.superseded)}


@dataclass(eq=False)
class Pending:
    """An event that waits for its chunk; `at_frame` is the earliest first frame of that chunk."""

    event: StreamEvent
    receipt: Receipt
    at_frame: int = 0


@dataclass(frozen=True)
class Applied:
    """One line of a timeline: which event took effect where."""

    chunk: int
    frame: int
    event: StreamEvent

    def to_json(self, fps: float) -> dict[str, Any]:
        """Plain values; seconds are media time."""
        return {"chunk": self.chunk, "frame": self.frame, "seconds": self.frame / fps, **self.event.to_json()}


@dataclass(frozen=True)
class Start:
    """Fingerprint of the pictures that a stream starts from: their number, and sha256 (64 hex digits) of
    their bytes as they went into the encoder, uint8 `(T, H, W, 3)`.
    """

    frames: int
    sha256: str

    @classmethod
    def of(cls, frames: Tensor) -> "Start":
        """The fingerprint of uint8 frames `(T, H, W, 3)`."""
        return cls(len(frames), hashlib.sha256(frames.cpu().contiguous().numpy().tobytes()).hexdigest())

    @classmethod
    def from_json(cls, content: Any) -> "Start":
        """Inverse of `dataclasses.asdict`.

        Raises:
            ValueError: another form.
        """
        known = {"frames": int, "sha256": str}
        if not isinstance(content, dict) or {key: type(value) for key, value in content.items()} != known:
            raise ValueError(f"start: expected frames and sha256, found {shorten(content)}")
        return cls(content["frames"], content["sha256"])

    def __str__(self) -> str:
        return f"{self.frames} frame{'s' if self.frames > 1 else ''} with sha256 {self.sha256[:12]}"


@dataclass
class Timeline:
    """The events of a stream in order, as applied. Append only; what it says is enough to make the stream
    again, but for the pictures of `start`: of them it holds the fingerprint, None where there are none.

    The first event is the opening: prompt, motion and full settings at frame 0.
    """

    fps: float
    seed: int
    events: list[Applied] = field(default_factory=list)
    start: Start | None = None

    def record(self, chunk: int, frame: int, event: StreamEvent) -> None:
        """Append what took effect at a chunk."""
        self.events.append(Applied(chunk, frame, event))

    def at(self, chunk: int) -> list[StreamEvent]:
        """Events that took effect at chunk `chunk`."""
        return [entry.event for entry in self.events if entry.chunk == chunk]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": "streamgen-timeline",
            "version": 1,
            "fps": self.fps,
            "seed": self.seed,
            "start": None if self.start is None else asdict(self.start),
            "events": [entry.to_json(self.fps) for entry in self.events],
        }

    @classmethod
    def from_json(cls, content: Any) -> "Timeline":
        """Inverse of `to_json`.

        Raises:
            InputError: not a timeline, or an unknown key.
        """
        if not isinstance(content, dict) or content.get("format") != "streamgen-timeline":
            raise InputError('timeline: expected an object with "format": "streamgen-timeline"')
        known = ("format", "version", "fps", "seed", "start", "events")
        for key in content:
            if key not in known:
                raise InputError(f"timeline: {unknown_key(key, known)}")
        try:
            timeline = cls(float(content["fps"]), int(content["seed"]))
            if content.get("start") is not None:
                timeline.start = Start.from_json(content["start"])
            for row in content["events"]:
                for key in row:
                    if key not in _ROW_KEYS:
                        raise InputError(f"timeline: event: {unknown_key(key, _ROW_KEYS)}")
                timeline.record(
                    int(row["chunk"]), int(row["frame"]), StreamEvent.from_json(row, timeline.fps)
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"timeline: incomplete or damaged ({type(error).__name__}: {error})") from None
        if [entry.chunk for entry in timeline.events] != sorted(entry.chunk for entry in timeline.events):
            raise InputError("timeline: expected events in order of their chunks")
        return timeline

    def dumps(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1)


def check_prompt(prompt: str) -> None:
    """Raise InputError for a prompt that is empty or beyond reason."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt: expected text, found {shorten(prompt)}")
    if not prompt.strip():
        raise InputError("prompt: expected some words, found an empty prompt")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"prompt: expected at most {MAX_PROMPT} characters, found {len(prompt)}")


def possible_events(
    due: list[Pending], settings: StreamSettings
) -> tuple[list[Pending], list[tuple[Receipt, str]]]:
    """Those of the due events whose settings can be set together, and the others' receipts with the reason.

    On submission each change was checked alone; two sliders may each be fine and not fit together.
    """
    try:
        settings.updated(_last_settings(due), live=True)
        return due, []
    except InputError:
        possible: list[Pending] = []
        refused: list[tuple[Receipt, str]] = []
    for item in due:
        try:
            settings.updated(_last_settings([*possible, item]), live=True)
            possible.append(item)
        except InputError as error:
            refused.append((item.receipt, str(error)))
    return possible, refused


def _last_settings(pending: list[Pending]) -> dict[str, Any]:
    return {name: value for item in pending for name, value in (item.event.settings or {}).items()}


def merge_events(pending: list[Pending]) -> tuple[StreamEvent, list[tuple[str, ...]]]:
    """One event of all that wait for a boundary, the last one submitted wins per field; and for each of them
    the fields that a later one replaced.
    """
    prompt = motion = None
    policy: Policy = "recache"
    sink: SinkPolicy | None = None
    replaced: list[tuple[str, ...]] = []
    for i, item in enumerate(pending):
        event, later = item.event, [p.event for p in pending[i + 1 :]]
        superseded = []
        if event.prompt is not None:
            prompt, policy, sink = event.prompt, event.policy, event.sink
            superseded += ["prompt"] * any(e.prompt is not None for e in later)
        if event.motion is not None:
            motion = event.motion
            superseded += ["motion"] * any(e.motion is not None for e in later)
        for name in event.settings or {}:
            superseded += [name] * any(name in (e.settings or {}) for e in later)
        replaced.append(tuple(superseded))
    return StreamEvent(prompt, motion, _last_settings(pending) or None, policy, sink), replaced
