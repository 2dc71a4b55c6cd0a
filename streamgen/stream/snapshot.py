"""Everything a stream is, as tensors and plain values: for rewind, branch, and to go on in another process.

Bounded in size: cache in age order, decoder state, the context's latents and motion, cursors, pending events,
and the offset into the timeline. Restoring is bit-exact on one device, dtype and thread count.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engine.decoder import DecoderState
from ..engine.noise import SeededNoise
from ..errors import InputError
from ..motion.tracks import TrackSet
from .model import StreamModel
from .rollout import LatentChunk
from .timeline import Pending, Receipt, StreamEvent, Timeline

if TYPE_CHECKING:
    from .session import Session

FORMAT = "streamgen-snapshot-1"


@dataclass(frozen=True)
class Snapshot:
    """A moment of a session. `tensors` by name, on the session's device; `meta` plain values that fit in
    JSON; `timeline` the session's timeline, of which the first `meta["events"]` events belong to this moment
    (it is append-only, so sharing it costs nothing).
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    timeline: Timeline | None = None

    def size_bytes(self) -> int:
        """Bytes of all tensors; does not grow with the length of the stream."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())


def take_snapshot(session: "Session") -> Snapshot:
    """The present state of a session; the caller holds its locks."""
    state, controls = session.state, session.controls
    tensors = {f"cache.{name}": value for name, value in state.cache.state().items()}
    tensors |= {f"decoder.{name}": x.clone() for name, x in session.decoder_state.tokenizer.tensors().items()}
    for i, chunk in enumerate(state.context):
        tensors[f"context.{i}.latents"] = chunk.latents.clone()
        if chunk.motion is not None:
            tensors[f"context.{i}.motion"] = chunk.motion.clone()
    recent = state.recent if controls.settings.recache_mode == "joint" else []
    for i, chunk in enumerate(recent):
        tensors[f"recent.{i}.latents"] = chunk.latents.clone()
        if chunk.motion is not None:
            tensors[f"recent.{i}.motion"] = chunk.motion.clone()
    tensors |= _track_tensors("controls", controls.motion)
    for i, item in enumerate(session._pending):
        tensors |= _track_tensors(f"pending.{i}", item.event.motion)
    if session.opening.latents is not None and state.start < session.opening.latents.shape[1]:
        tensors["opening"] = session.opening.latents.clone()
    meta = {
        "format": FORMAT,
        "model": session.model.digest,
        "dtype": str(session.model.dtype),
        "chunks": _chunks(session.model),
        "seed": session.seed,
        "prompt": controls.prompt,
        "settings": controls.settings.to_json(),
        "motion_start": controls.motion_start,
        "chunk": state.chunk,
        "scene": list(state.scene),
        "stale": state.stale,
        "context": [[chunk.index, chunk.start] for chunk in state.context],
        "recent": [[chunk.index, chunk.start] for chunk in recent],
        "latent_frames": session.decoder_state.latent_frames,
        "receipts": session._receipts,
        "events": len(session.timeline.events),
        "pending": [
            {"at_frame": p.at_frame, "number": p.receipt.number, "event": _without_motion(p.event)}
            for p in session._pending
        ],
    }
    return Snapshot(tensors, meta, session.timeline)


def load_snapshot_state(session: "Session", snapshot: Snapshot) -> None:
    """Put a session into the state of a snapshot; the session is unchanged if the snapshot does not fit.

    Receipts of events that wait in the session stay good for those that wait in the snapshot too; the others
    are refused.

    Raises:
        InputError: another model, dtype or context size.
    """
    meta, tensors = snapshot.meta, snapshot.tensors
    check_fits(meta, session.model)
    try:
        settings = session.controls.settings.updated(meta["settings"])
        cache = session._new_cache(settings)
        scene = (int(meta["scene"][0]), int(meta["scene"][1]))
        state = type(session.state)(cache, chunk=meta["chunk"], stale=meta["stale"], scene=scene)
        cache.load_state(
            {name: tensors[f"cache.{name}"] for name in ("keys", "values", "sink_keys", "cursor")}
        )
        decoder = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        decoder_state = DecoderState(
            session.model.tokenizer.state_from_tensors(decoder), meta["latent_frames"]
        )
        for place, chunks in (("context", state.context), ("recent", state.recent)):
            for i, (index, start) in enumerate(meta.get(place, [])):
                motion = tensors.get(f"{place}.{i}.motion")
                latents = tensors[f"{place}.{i}.latents"].clone()
                chunks.append(LatentChunk(index, start, latents, _clone(motion)))
        controls = type(session.controls)(
            meta["prompt"],
            settings,
            session.model.text(meta["prompt"]),
            _tracks("controls", tensors),
            meta["motion_start"],
        )
        pending = [_pending(i, row, tensors) for i, row in enumerate(meta["pending"])]
        source = snapshot.timeline or session.timeline
        timeline = Timeline(source.fps, meta["seed"], source.events[: meta["events"]], source.start)
        receipts = max(session._receipts, meta["receipts"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"snapshot: does not fit this stream ({error})") from None
    _settle(session._pending, pending)
    session.state, session.decoder_state, session.controls = state, decoder_state, controls
    session.seed = meta["seed"]
    seeded = SeededNoise(meta["seed"], session.model.device, session.model.dtype)
    session.noise = session.given_noise or seeded
    session.opening = type(session.opening)(tensors.get("opening"), timeline.start)
    session._pending, session._receipts = pending, receipts
    session.timeline = timeline


def _settle(waiting: list[Pending], restored: list[Pending]) -> None:
    """Hand the receipts that people hold over to the same events of a snapshot; refuse those it lacks."""
    for old in waiting:
        number, event = old.receipt.number, old.event.to_json()
        same = [p for p in restored if p.receipt.number == number and p.event.to_json() == event]
        if same:
            same[0].receipt = old.receipt
        else:
            old.receipt.reason = "the stream went back to a moment before this event was submitted"
            old.receipt.status = "refused"


def check_fits(meta: dict[str, Any], model: StreamModel) -> None:
    """Raise InputError where a snapshot's header names another format, model, dtype or chunk plan."""
    for what, found, expected in (
        ("format", meta.get("format"), FORMAT),
        ("model", meta.get("model"), model.digest),
        ("dtype", meta.get("dtype"), str(model.dtype)),
        ("chunks", meta.get("chunks"), _chunks(model)),
    ):
        if found != expected:
            raise InputError(f"snapshot: expected {what} {expected}, found {found}")


def write_snapshot(snapshot: Snapshot, timeline: Timeline, path: Path) -> None:
    """Write a snapshot and its timeline as one safetensors file, beside its name first and then renamed.

    Raises:
        InputError: the file cannot be written.
    """
    header = {"snapshot": json.dumps(snapshot.meta), "timeline": timeline.dumps()}
    part = path.with_name(path.name + ".part")
    tensors = {name: value.detach().cpu().contiguous() for name, value in snapshot.tensors.items()}
    try:
        save_file(tensors, part, metadata=header)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"snapshot {path}: cannot be written ({error})") from None


def read_snapshot(path: Path, device: torch.device) -> tuple[Snapshot, Timeline]:
    """Read what `write_snapshot` wrote.

    Raises:
        InputError: missing, damaged, or no snapshot.
    """
    if not path.is_file():
        raise InputError(f"snapshot {path}: no such file")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta, timeline = json.loads(header["snapshot"]), Timeline.from_json(json.loads(header["timeline"]))
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"snapshot {path}: damaged or not a snapshot ({error})") from None
    return Snapshot(tensors, meta, timeline), timeline


def _chunks(model: StreamModel) -> list[int]:
    return [model.plan.first_chunk_frames, model.plan.chunk_frames]


def _track_tensors(prefix: str, tracks: TrackSet | None) -> dict[str, Tensor]:
    if tracks is None:
        return {}
    names = ("points", "state", "pinned", "ids")
    values = (tracks.points, tracks.state, tracks.pinned, tracks.ids)
    return {f"{prefix}.{name}": value.clone() for name, value in zip(names, values, strict=True)}


def _tracks(prefix: str, tensors: dict[str, Tensor]) -> TrackSet | None:
    if f"{prefix}.points" not in tensors:
        return None
    return TrackSet(*(tensors[f"{prefix}.{name}"].cpu() for name in ("points", "state", "pinned", "ids")))


def _without_motion(event: StreamEvent) -> dict[str, Any]:
    return {
        "prompt": event.prompt,
        "settings": dict(event.settings) if event.settings else None,
        "policy": event.policy,
        "sink": event.sink,
    }


def _pending(i: int, row: dict[str, Any], tensors: dict[str, Tensor]) -> Pending:
    event = StreamEvent(motion=_tracks(f"pending.{i}", tensors), **row["event"])
    return Pending(event, Receipt(row["number"]), row["at_frame"])


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
