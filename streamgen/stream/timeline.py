"""The timeline of a stream: its events as applied, and how one event is told in JSON."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.noise import seed_identity
from ..errors import InputError
from ..live.picture import Picture, mask_from_json, mask_to_json
from ..motion.file import load_motion, motion_to_json
from ..motion.tracks import TrackSet
from ..suggest import shorten, unknown_key
from .events import StreamEvent

_WORDS = ("prompt", "prompt_embeds", "blend", "over")
_LIVE = ("mask", "picture", "input")
_EVENT_KEYS = (*_WORDS, "cache", "policy", "sink", "motion", "gestures", "settings", *_LIVE)
_ROW_KEYS = ("chunk", "frame", "seconds", *_EVENT_KEYS)
_HEADER_KEYS = ("format", "version", "fps", "seed", "noise", "start", "events")


@dataclass(frozen=True)
class Applied:
    """One line of a timeline: which event took effect where."""

    chunk: int
    frame: int
    event: StreamEvent

    def to_json(self, fps: float) -> dict[str, Any]:
        """Plain values; seconds are media time."""
        place = {"chunk": self.chunk, "frame": self.frame, "seconds": self.frame / fps}
        return place | event_to_json(self.event)


@dataclass(frozen=True)
class Start:
    """The pictures that a stream starts from: how many frames, and the sha256 of their raw RGB bytes."""

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
    """The events of a stream in order, as applied. What it says is enough to make the stream again, but for
    the pictures of `start`, of which it holds the fingerprint (None where there are none), and for draws that
    are not those of the seed, of which `noise` is the identity.

    The first event is the opening: prompt, motion and full settings at frame 0.
    """

    fps: float
    seed: int
    events: list[Applied] = field(default_factory=list)
    start: Start | None = None
    noise: str = ""

    def __post_init__(self) -> None:
        self.noise = self.noise or seed_identity(self.seed)

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
            "noise": self.noise,
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
        for key in content:
            if key not in _HEADER_KEYS:
                raise InputError(f"timeline: {unknown_key(key, _HEADER_KEYS)}")
        try:
            timeline = cls(float(content["fps"]), int(content["seed"]), noise=str(content.get("noise") or ""))
            if content.get("start") is not None:
                timeline.start = Start.from_json(content["start"])
            prompt = None
            for row in content["events"]:
                if not isinstance(row, dict):
                    raise InputError(f"timeline: event: expected an object, found {shorten(row)}")
                for key in row:
                    if key not in _ROW_KEYS:
                        raise InputError(f"timeline: event: {unknown_key(key, _ROW_KEYS)}")
                event = event_from_json(row, timeline.fps, prompt)
                timeline.record(int(row["chunk"]), int(row["frame"]), event)
                prompt = event.prompt or prompt
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"timeline: incomplete or damaged ({type(error).__name__}: {error})") from None
        if [entry.chunk for entry in timeline.events] != sorted(entry.chunk for entry in timeline.events):
            raise InputError("timeline: expected events in order of their chunks")
        return timeline

    def dumps(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1)


def event_to_json(event: StreamEvent) -> dict[str, Any]:
    """Plain values; only what the event changes."""
    out: dict[str, Any] = {}
    for name in ("prompt", "cache", "sink"):
        value = vars(event)[name]
        if value is not None:
            out[name] = value
    if event.motion is not None:
        out["motion"] = _motion_to_json(event.motion)
    if event.gestures:
        out["gestures"] = {name: _motion_to_json(tracks) for name, tracks in event.gestures.items()}
    if event.settings:
        out["settings"] = dict(event.settings)
    out |= words_to_json(event)
    if event.mask is not None:
        out["mask"] = mask_to_json(event.mask)
    if event.picture is not None:
        out["picture"] = event.picture.to_json()
    if event.input is not None:
        out["input"] = list(event.input)
    if event.prompt_embeds is not None:
        rows = event.prompt_embeds.float().cpu().contiguous()
        text = base64.b64encode(rows.numpy().astype("<f4").tobytes()).decode()
        out["prompt_embeds"] = {"shape": list(rows.shape), "float32": text}
    return out


def event_from_json(row: Mapping[str, Any], fps: float, prompt: str | None = None) -> StreamEvent:
    """Inverse of `event_to_json`. Rows of before the cache action had a field of its own have a `policy`,
    which only told what a prompt did that changed the words.

    Args:
        prompt: the words before, None where they are not known.
    """
    cache = row.get("cache")
    if cache is None and "policy" in row:
        old = row["policy"]
        unchanged = prompt is not None and row.get("prompt") == prompt
        cache = None if old == "recache" or (old == "clear" and unchanged) else old
    motion = None
    if "motion" in row:
        motion = TrackSet.empty(0) if row["motion"] is None else load_motion(row["motion"], fps)
    gestures = None
    if row.get("gestures") is not None:
        if not isinstance(row["gestures"], Mapping):
            raise InputError(f"gestures: expected tracks by name, found {shorten(row['gestures'])}")
        gestures = {
            name: None if tracks is None else load_motion(tracks, fps)
            for name, tracks in row["gestures"].items()
        }
    embeds = None if row.get("prompt_embeds") is None else _embeds(row["prompt_embeds"])
    # the opening of an old timeline, and what a policy alone said, changes nothing
    if cache is None and not any(key in row for key in _EVENT_KEYS if key not in ("policy", "cache", "sink")):
        cache = "keep"
    return StreamEvent(
        row.get("prompt"),
        motion,
        row.get("settings"),
        cache,
        row.get("sink"),
        gestures,
        embeds,
        row.get("blend"),
        row.get("over"),
        mask_from_json(row["mask"]) if "mask" in row else None,
        None if row.get("picture") is None else Picture.from_json(row["picture"]),
        row.get("input"),
    )


def words_to_json(event: StreamEvent) -> dict[str, Any]:
    """A blend, and the way to new words, as plain values; `StreamEvent` takes them as they are."""
    out: dict[str, Any] = {}
    if event.blend is not None:
        out["blend"] = [{"prompt": prompt, "weight": weight} for prompt, weight in event.parts]
    if event.passage is not None:
        out["over"] = event.passage.to_json()
    return out


def _motion_to_json(tracks: TrackSet | None) -> dict[str, Any] | None:
    return None if tracks is None or tracks.is_empty else motion_to_json(tracks)


def _embeds(row: Mapping[str, Any]) -> Tensor:
    values = np.frombuffer(base64.b64decode(row["float32"]), dtype="<f4")
    return torch.from_numpy(values.reshape(row["shape"]).copy())
