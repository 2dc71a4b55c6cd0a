"""Everything a stream is, as tensors and plain values: for rewind, branch, and to go on in another process.

A codec between `StreamState` and tensors. Bounded in size: cache in age order, decoder state, the record of
the context, cursors, the gestures in force and the events that wait. What was applied lies in the event log,
which a snapshot names by its length and digest. Restoring is bit-exact on one device, dtype and thread count.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.kv_cache import CacheCursor, CacheRing
from models.video_codec import VideoCodec

from ..engine.decoder import DecoderState, StreamingDecoder, at_rest
from ..engine.noise import NoiseSource, SeededNoise, seed_identity
from ..engine.runner import Runner
from ..errors import InputError
from ..live.hearing import Heard, heard_of, heard_tensors
from ..live.taken import InputSource
from ..machine import own_version
from ..motion.gestures import Gesture
from ..motion.tracks import TrackSet
from ..suggest import shorten
from .conditioning import Controls
from .events import Receipt
from .latents import LatentChunk, LatentState
from .log import EventLog, LogHeader, decode_event, encode_event, read_log
from .model import StreamModel
from .prompts import Over, Passage, Text
from .queue import Pending
from .state import FrameChunk, StreamState

FORMAT, VERSION = "streamgen-snapshot", 2
# what read the versions of before; there is no reader for them here
_READERS = {1: "streamgen 0.1"}
_TRACKS = ("points", "state", "pinned", "ids")
_TEXT = ("prompt", "given", "unknown", "dropped", "strengths", "blend")


@dataclass(frozen=True)
class Snapshot:
    """A moment of a session. `tensors` by name, on the session's device; `meta` plain values that fit in
    JSON; `log` what was applied until then (sharing it costs nothing).
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    log: EventLog

    def size_bytes(self) -> int:
        """Bytes of all tensors; does not grow with the length of the stream."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())


@dataclass(frozen=True, eq=False)
class Restored:
    """What a snapshot holds: the state, the events that wait, how many receipts were given, a chunk that was
    made and not handed over, and frames of live input that wait, with their numbers.
    """

    state: StreamState
    pending: list[Pending]
    receipts: int
    owed: FrameChunk | None
    frames: Tensor
    numbers: tuple[int, ...] = ()


def encode(
    model: StreamModel,
    runner: Runner,
    state: StreamState,
    waiting: tuple[Sequence[Pending], int],
    owed: FrameChunk | None = None,
    source: InputSource | None = None,
    outline: bool = False,
) -> Snapshot:
    """A state as a snapshot.

    Args:
        runner: what the stream runs on, which is told and not kept.
        waiting: the events that wait, and how many receipts were given.
        owed: a chunk that was made and not handed over.
        source: of its live input, whose waiting frames are kept.
        outline: leave out cache and decoder, which are nearly all of it: `decode` makes the cache anew from
            the record, as a recache does, and the decoder by decoding what was decoded last, so the stream
            goes on nearly as it would have.
    """
    pending, receipts = waiting
    tensors, meta = _encoded_latents(state, outline)
    live, meta["input"] = _encoded_input(state, source)
    tensors |= live
    for i, gesture in enumerate(state.controls.gestures):
        tensors |= {f"gesture.{i}.{name}": vars(gesture.tracks)[name].clone() for name in _TRACKS}
    for i, item in enumerate(pending):
        tensors[f"pending.{i}"] = _bytes_tensor(encode_event(item.event, {}))
    decoder = None if state.decoder is None else at_rest(state.decoder)
    if decoder is not None and not outline:
        tensors |= {f"decoder.{name}": x.clone() for name, x in decoder.tokenizer.tensors().items()}
    if state.opening is not None:
        tensors["opening"] = state.opening.clone()
    if owed is not None:
        tensors |= {"owed.frames": owed.frames.clone(), "owed.latents": owed.latents.clone()}
    meta |= _identity(model) | {
        "runner": runner.name,
        "quantize": runner.quantize,
        "batch": None if runner.batch is None else runner.batch.to_json(),
        "threads": torch.get_num_threads(),
        "processes": 1 if model.mesh is None else model.mesh.size,
        "written_by": f"streamgen {own_version()}",
        "seed": state.log.header.seed,
        "noise": state.noise.identity,
        "prompt": state.controls.prompt,
        "settings": state.controls.settings.to_json(),
        "gestures": [{n: vars(g)[n] for n in ("name", "start", "asked")} for g in state.controls.gestures],
        "latent_frames": None if decoder is None else decoder.latent_frames,
        "receipts": receipts,
        "owed": None if owed is None else [owed.start_frame, owed.index],
        "pending": [{"number": p.receipt.number, "at_frame": p.at_frame, "live": p.live} for p in pending],
        "log": {"events": len(state.log), "bytes": state.log.size, "digest": state.log.digest},
        "header": state.log.header.to_json(),
    }
    return Snapshot(tensors, meta, state.log)


def _encoded_input(
    state: StreamState, source: InputSource | None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and plain values of the live input; None for a stream without."""
    frames, numbers = (torch.empty(0, 0, 0, 3), ()) if source is None else source.waiting()
    tensors: dict[str, Tensor] = {"input.waiting": frames.clone()} if numbers else {}
    if state.controls.mask is not None:
        tensors["input.mask"] = state.controls.mask.clone()
    row: dict[str, Any] = {"numbers": list(numbers)}
    if state.heard is not None:
        held, row["heard"] = heard_tensors(state.heard)
        tensors |= {f"input.{name}": x for name, x in held.items()}
    return tensors, (row if tensors else None)


def _encoded_latents(state: StreamState, outline: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of the cache, the record, and the texts that both speak of."""
    latents = state.latents
    chunks = list({id(chunk): chunk for chunk in (*latents.context, *latents.recent)}.values())
    passage = state.controls.passage
    ends = () if passage is None else (passage.source, passage.target)
    said = (state.controls.text, *ends, *(chunk.text for chunk in chunks))
    texts = list({id(text): text for text in said if text is not None}.values())
    places = {id(chunk): i for i, chunk in enumerate(chunks)}
    words = {id(text): i for i, text in enumerate(texts)}
    cache = {} if outline else latents.ring.state(latents.cursor)
    tensors = {f"cache.{name}": x for name, x in cache.items()}
    for i, text in enumerate(texts):
        assert text.embedding is not None, "texts of streams keep what they are made from"
        tensors[f"text.{i}"] = text.embedding.clone()
    for i, chunk in enumerate(chunks):
        tensors[f"record.{i}.latents"] = chunk.latents.clone()
        if chunk.motion is not None:
            tensors[f"record.{i}.motion"] = chunk.motion.clone()
    meta = {
        "text": words[id(state.controls.text)],
        "texts": [{name: vars(text)[name] for name in _TEXT} for text in texts],
        "passage": None if passage is None else _passage_row(passage, words),
        "cursor": asdict(latents.cursor),
        "held": [latents.intact, latents.ring.sink_intact(latents.cursor)],
        "record": [
            {
                "index": c.index,
                "start": c.start,
                "sigma": c.sigma,
                "drawn": c.drawn,
                "text": words[id(c.text)],
            }
            for c in chunks
        ],
        "context": [places[id(chunk)] for chunk in latents.context],
        "recent": [places[id(chunk)] for chunk in latents.recent],
        "chunk": latents.chunk,
        "scene": list(latents.scene),
        "due": latents.due,
    }
    return tensors, meta


def decode(
    snapshot: Snapshot,
    model: StreamModel,
    noise: NoiseSource | None,
    epoch: int = 0,
    eight_bits: bool = False,
) -> Restored:
    """The state and the waiting events of a snapshot, on a cache of their own; any runner goes on with it.

    Args:
        noise: the stream's source of draws where it is not its seed's.
        eight_bits: whether the cache is to be in eight bits, whatever it was in.

    Raises:
        InputError: another model, size, dtype or source of draws, or damaged.
    """
    meta, tensors = snapshot.meta, snapshot.tensors
    check_fits(meta, model)
    try:
        texts = [_text(row, tensors[f"text.{i}"], model) for i, row in enumerate(meta["texts"])]
        controls = Controls(
            texts[meta["text"]],
            model.settings.updated(meta["settings"]),
            tuple(_gesture(i, row, tensors) for i, row in enumerate(meta["gestures"])),
            _passage(meta.get("passage"), texts),
            None if tensors.get("input.mask") is None else tensors["input.mask"].cpu(),
        )
        ring = model.new_ring(controls.settings, eight_bits)
        latents = _latents(ring, meta, tensors, texts)
        decoder = None
        if model.codec is not None and meta["latent_frames"] is not None:
            held = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
            decoder = _decoder(model.codec, held, latents, int(meta["latent_frames"]))
        pending = [_pending(i, row, tensors, model, epoch) for i, row in enumerate(meta["pending"])]
        draws = _noise(meta, model, noise)
        owed = None
        if meta["owed"] is not None:
            place = (int(meta["owed"][0]), model.geometry.fps, int(meta["owed"][1]), epoch)
            owed = FrameChunk(tensors["owed.frames"].cpu(), *place, (), {}, tensors["owed.latents"])
        opening, receipts = tensors.get("opening"), int(meta["receipts"])
        live = meta.get("input") or {}
        heard = _heard(live.get("heard"), tensors, model)
        numbers = tuple(int(number) for number in live.get("numbers", ()))
        frames = tensors["input.waiting"].cpu() if numbers else torch.empty(0, 0, 0, 3)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"snapshot: does not fit this stream ({error})") from None
    state = StreamState(latents, controls, decoder, snapshot.log, draws, opening, epoch, heard)
    return Restored(state, pending, receipts, owed, frames, numbers)


def check_fits(meta: dict[str, Any], model: StreamModel) -> None:
    """Raise InputError where a snapshot's header names another format, version, model, size, dtype or chunk
    plan.
    """
    check_version(meta)
    for what, expected in _identity(model).items():
        if meta.get(what) != expected:
            raise InputError(f"snapshot: expected {what} {expected}, found {meta.get(what)}")


def check_version(meta: dict[str, Any]) -> None:
    """Raise InputError where a snapshot is not of this version, naming what reads it."""
    found, version = meta.get("format"), meta.get("version")
    if found == "streamgen-snapshot-1":
        found, version = FORMAT, 1
    if found != FORMAT or not isinstance(version, int):
        raise InputError(f"snapshot: expected format {FORMAT}, found {shorten(found)}")
    if version in _READERS:
        raise InputError(
            f"snapshot: expected version {VERSION}, found {version}, which {_READERS[version]} reads"
        )
    if version != VERSION:
        raise InputError(
            f"snapshot: expected version {VERSION}, found {version} of {shorten(meta.get('written_by'))}, "
            "which is newer"
        )


def write_snapshot(snapshot: Snapshot, path: Path, log_file: Path | None = None) -> None:
    """Write a snapshot as one safetensors file, beside its name first and then renamed.

    Args:
        log_file: where the stream's log lies; None puts the log into the file.

    Raises:
        InputError: the file cannot be written.
    """
    meta = snapshot.meta
    tensors = {name: value.detach().cpu().contiguous() for name, value in snapshot.tensors.items()}
    if log_file is None:
        tensors["log"] = _bytes_tensor(snapshot.log.to_bytes())
    else:
        meta = meta | {"log": meta["log"] | {"file": str(log_file.resolve())}}
    part = path.with_name(path.name + ".part")
    try:
        save_file(tensors, part, metadata={"snapshot": json.dumps(meta)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"snapshot {path}: cannot be written ({error})") from None


def read_snapshot(path: Path, device: torch.device, log: Path | None = None) -> Snapshot:
    """Read what `write_snapshot` wrote.

    Args:
        log: the stream's log, where it is not in the file nor where it was.

    Raises:
        InputError: missing, damaged, of another version, or no snapshot; a log that is cut short, or not this
            stream's.
    """
    meta = read_meta(path)
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = LogHeader.from_json(meta["header"])
        inside = tensors.pop("log", None)
        if inside is not None and log is None:
            found = EventLog.from_bytes(header, inside.cpu().numpy().tobytes())
        else:
            found = read_log(log or Path(meta["log"]["file"]))
        named = meta["log"]
        events, digest = int(named["events"]), str(named["digest"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"snapshot {path}: damaged or not a snapshot ({error})") from None
    except InputError as error:
        raise InputError(f"snapshot {path}: {error}") from None
    return Snapshot(tensors, meta, _checked_log(found, header, events, digest, path))


def read_meta(path: Path) -> dict[str, Any]:
    """The plain values of a snapshot file.

    Raises:
        InputError: missing, damaged, of another version, or no snapshot.
    """
    if not path.is_file():
        raise InputError(f"snapshot {path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["snapshot"])
        if not isinstance(meta, dict):
            raise ValueError("no object in its header")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"snapshot {path}: damaged or not a snapshot ({error})") from None
    try:
        check_version(meta)
    except InputError as error:
        raise InputError(f"snapshot {path}: {str(error).removeprefix('snapshot: ')}") from None
    return meta


def _checked_log(found: EventLog, header: LogHeader, events: int, digest: str, path: Path) -> EventLog:
    if found.header != header:
        raise InputError(
            f"snapshot {path}: its log is of another stream (expected seed {header.seed} and {header.noise}, "
            f"found seed {found.header.seed} and {found.header.noise})"
        )
    if len(found) < events:
        raise InputError(
            f"snapshot {path}: its log is cut short: expected {events} events, found {len(found)}"
        )
    log = found.prefix(events)
    if log.digest != digest:
        raise InputError(
            f"snapshot {path}: its log is another one: expected digest {digest[:12]}, found {log.digest[:12]}"
        )
    return log


def _identity(model: StreamModel) -> dict[str, Any]:
    """What a snapshot and the model it is opened on have to share."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model.digest,
        "dtype": str(model.dtype),
        "chunks": [model.plan.first_chunk_frames, model.plan.chunk_frames],
        "size": [model.geometry.width, model.geometry.height],
    }


def _latents(
    ring: CacheRing, meta: dict[str, Any], tensors: dict[str, Tensor], texts: list[Text]
) -> LatentState:
    cursor, prefix = CacheCursor(**meta["cursor"]), "cache."
    held = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    if held:
        ring.load_state(cursor, held)
        whole, sink = meta["held"]
        ring.holds = cursor.content if whole else None
        ring.sink_holds = cursor.sink_content if sink else None
    else:
        ring.lose(cursor)
    chunks = [
        LatentChunk(
            row["index"],
            row["start"],
            tensors[f"record.{i}.latents"].clone(),
            _clone(tensors.get(f"record.{i}.motion")),
            texts[row["text"]],
            float(row["sigma"]),
            bool(row["drawn"]),
        )
        for i, row in enumerate(meta["record"])
    ]
    return LatentState(
        ring,
        cursor,
        tuple(chunks[i] for i in meta["context"]),
        tuple(chunks[i] for i in meta["recent"]),
        int(meta["chunk"]),
        (int(meta["scene"][0]), int(meta["scene"][1])),
        bool(meta["due"]),
    )


def _decoder(
    codec: VideoCodec, held: dict[str, Tensor], latents: LatentState, latent_frames: int
) -> DecoderState:
    """The decoder's state; of an outline the one that the last chunks leave."""
    if held:
        held = {name: x.to(codec.latent_mean.device) for name, x in held.items()}
        return DecoderState(codec.state_from_tensors(held), latent_frames)
    decoder = StreamingDecoder(codec)
    for chunk in latents.recent:
        decoder.push(chunk.latents)
    return DecoderState(decoder.state.tokenizer, latent_frames)


def _noise(meta: dict[str, Any], model: StreamModel, given: NoiseSource | None) -> NoiseSource:
    """The stream's draws.

    Raises:
        InputError: they came from a source that is not given, or another one is.
    """
    identity, seed = meta["noise"], int(meta["seed"])
    if given is None:
        if identity != seed_identity(seed):
            raise InputError(f"snapshot: its draws came from {shorten(identity)}: give that source as noise=")
        return SeededNoise(seed, model.device, model.dtype)
    if given.identity != identity:
        raise InputError(
            f"snapshot: noise: expected draws of {shorten(identity)}, found {shorten(given.identity)}"
        )
    return given


def _text(row: dict[str, Any], embedding: Tensor, model: StreamModel) -> Text:
    blend = tuple((str(prompt), float(weight)) for prompt, weight in row.get("blend") or ())
    text = model.restored_text(str(row["prompt"]), str(row["given"]), embedding, blend)
    text = replace(text, unknown=tuple(row["unknown"]), dropped=int(row["dropped"]))
    # of snapshots from before there were live LoRAs: none
    return model.read_at(text, tuple(map(float, row.get("strengths", ()))))


def _passage_row(passage: Passage, words: dict[int, int]) -> dict[str, Any]:
    """A passage as plain values, its ends by their places among the texts."""
    ends = {"source": words[id(passage.source)], "target": words[id(passage.target)]}
    how = {"over": passage.over.to_json(), "recaches": passage.recaches, "sink": passage.sink}
    return ends | how | {"done": passage.done}


def _passage(row: dict[str, Any] | None, texts: list[Text]) -> Passage | None:
    if row is None:
        return None
    over, ends = Over.of(row["over"]), (texts[row["source"]], texts[row["target"]])
    return Passage(*ends, over, bool(row["recaches"]), row["sink"], int(row["done"]))


def _gesture(i: int, row: dict[str, Any], tensors: dict[str, Tensor]) -> Gesture:
    tracks = TrackSet(*(tensors[f"gesture.{i}.{name}"].cpu() for name in _TRACKS))
    return Gesture(str(row["name"]), tracks, int(row["start"]), tuple(row["asked"]))


def _pending(
    i: int, row: dict[str, Any], tensors: dict[str, Tensor], model: StreamModel, epoch: int
) -> Pending:
    event, _ = decode_event(tensors[f"pending.{i}"].cpu().numpy().tobytes())
    receipt = Receipt(int(row["number"]), epoch=epoch)
    return Pending(event, receipt, int(row["at_frame"]), bool(row["live"]), model.coming_text(event))


def _heard(row: dict[str, Any] | None, tensors: dict[str, Tensor], model: StreamModel) -> Heard | None:
    """What the stream has heard of its input."""
    if row is None:
        return None
    prefix = "input."
    held = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return heard_of(model.tokenizer, held, row)


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
