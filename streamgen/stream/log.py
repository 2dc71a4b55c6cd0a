"""The event log: what a stream has applied, as bytes, with motion as binary arrays.

A log is a value that grows at its end: a longer one shares all that it has with the shorter one, so states,
snapshots and forks hold theirs for nothing. A running digest over the entries tells whether a log is what a
snapshot names. `LogFile` keeps a copy on disk, in a file that is only ever appended to.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..live.picture import Picture
from ..motion.tracks import TrackSet
from .events import StreamEvent
from .timeline import Applied, Start, Timeline, words_to_json

_MAGIC = b"streamgen-log 1\n"
_LENGTH = struct.Struct("<I")
_TRACKS = (("points", "<f4"), ("state", "|i1"), ("pinned", "|b1"), ("ids", "<i8"))


@dataclass(frozen=True)
class LogHeader:
    """What a log is of: frames per second, seed, identity of the draws, and the pictures the stream began
    with.
    """

    fps: float
    seed: int
    noise: str
    start: Start | None = None

    def __post_init__(self) -> None:
        # 16 and 16.0 are one rate, and have to be one in the digest
        object.__setattr__(self, "fps", float(self.fps))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Any) -> "LogHeader":
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: another form.
        """
        start = None if row["start"] is None else Start.from_json(row["start"])
        return cls(float(row["fps"]), int(row["seed"]), str(row["noise"]), start)


@dataclass(frozen=True, eq=False)
class _Entry:
    """One applied event and all before it. `digest` is over the entries up to this one."""

    before: "_Entry | None"
    data: bytes
    count: int
    size: int
    digest: bytes
    receipts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EventLog:
    """The events of a stream as applied, oldest first."""

    header: LogHeader
    last: _Entry | None = None

    def __len__(self) -> int:
        return 0 if self.last is None else self.last.count

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return 0 if self.last is None else self.last.size

    @property
    def digest(self) -> str:
        """Fingerprint of header and entries, 32 hex digits."""
        return (_first_digest(self.header) if self.last is None else self.last.digest).hex()

    def appended(
        self, chunk: int, frame: int, event: StreamEvent, receipts: tuple[int, ...] = ()
    ) -> "EventLog":
        """The log with what took effect at a chunk; `receipts` are the numbers of those it answers to."""
        data = encode_event(event, {"chunk": chunk, "frame": frame, "receipts": list(receipts)})
        return self._with(data, receipts)

    def _with(self, data: bytes, receipts: tuple[int, ...]) -> "EventLog":
        before = _first_digest(self.header) if self.last is None else self.last.digest
        digest = hashlib.blake2b(before + data, digest_size=16).digest()
        entry = _Entry(self.last, data, len(self) + 1, self.size + _LENGTH.size + len(data), digest, receipts)
        return EventLog(self.header, entry)

    def has_receipt(self, number: int) -> bool:
        """Whether an event with this receipt is in the log."""
        entry = self.last
        while entry is not None:
            if number in entry.receipts:
                return True
            entry = entry.before
        return False

    def entries(self) -> list[_Entry]:
        """All entries, oldest first."""
        out, entry = [], self.last
        while entry is not None:
            out.append(entry)
            entry = entry.before
        return out[::-1]

    def prefix(self, count: int) -> "EventLog":
        """The log as it was after its first `count` events."""
        entry = self.last
        while entry is not None and entry.count > count:
            entry = entry.before
        return EventLog(self.header, entry)

    def timeline(self) -> Timeline:
        """As a timeline."""
        head = self.header
        events = [_applied(entry.data) for entry in self.entries()]
        return Timeline(head.fps, head.seed, events, head.start, head.noise)

    def to_bytes(self) -> bytes:
        """The entries, each behind its length."""
        return b"".join(_LENGTH.pack(len(entry.data)) + entry.data for entry in self.entries())

    @classmethod
    def from_bytes(cls, header: LogHeader, data: bytes) -> "EventLog":
        """Inverse of `to_bytes`.

        Raises:
            InputError: cut short, or not entries of a log.
        """
        log, at = cls(header), 0
        while at < len(data):
            entry, at = _next_entry(data, at)
            log = log._with(entry, tuple(_read(entry)[0].get("receipts", ())))
        return log


class LogFile:
    """A log on disk: header, entries, and marks of rewinds. Append only.

    Args:
        path: a new file, or the file of the very log that is written on.

    Raises:
        InputError: it cannot be written, or is something else.
    """

    def __init__(self, path: Path, log: EventLog) -> None:
        self.path = path
        self._written = log
        try:
            if path.exists() and path.stat().st_size:
                self._written = read_log(path)
                if not _extends(log, self._written) and not _extends(self._written, log):
                    raise InputError(f"log {path}: is of another stream")
            else:
                path.write_bytes(_head(log.header) + log.to_bytes())
        except OSError as error:
            raise InputError(f"log {path}: cannot be written ({error.strerror or error})") from None

    def write(self, log: EventLog) -> None:
        """Bring the file to where the log is: new entries behind those it has, behind a mark where the stream
        went back.
        """
        if log.last is self._written.last:
            return
        common = _common(log, self._written)
        mark = b"" if common == len(self._written) else _framed(json.dumps({"rewind": common}).encode())
        new = b"".join(_LENGTH.pack(len(e.data)) + e.data for e in log.entries()[common:])
        try:
            with self.path.open("ab") as file:
                file.write(mark + new)
        except OSError as error:
            raise InputError(f"log {self.path}: cannot be written ({error.strerror or error})") from None
        self._written = log


def read_log(path: Path) -> EventLog:
    """The log of a file that `LogFile` wrote.

    Raises:
        InputError: missing, cut short, or no log.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"log {path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    try:
        if not data.startswith(_MAGIC):
            raise InputError("not the log of a stream")
        head, at = _next_entry(data, len(_MAGIC), marks=True)
        log = EventLog(LogHeader.from_json(json.loads(head)))
        while at < len(data):
            entry, at = _next_entry(data, at, marks=True)
            if entry[:1] == b"{":
                log = log.prefix(int(json.loads(entry)["rewind"]))
            else:
                log = log._with(entry, tuple(_read(entry)[0].get("receipts", ())))
        return log
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"log {path}: {error}") from None


def encode_event(event: StreamEvent, place: dict[str, Any]) -> bytes:
    """An event as bytes: what fits into JSON behind its length, then the arrays."""
    arrays: list[np.ndarray] = []

    def tracks(motion: TrackSet | None) -> list[int] | None:
        if motion is None:
            return None
        arrays.extend(vars(motion)[name].numpy().astype(kind) for name, kind in _TRACKS)
        return [motion.num_tracks, motion.num_frames]

    row: dict[str, Any] = place | {
        name: vars(event)[name]
        for name in ("prompt", "settings", "cache", "sink")
        if vars(event)[name] is not None
    }
    row |= words_to_json(event)
    if event.motion is not None:
        row["motion"] = tracks(event.motion)
    if event.gestures:
        row["gestures"] = {name: tracks(motion) for name, motion in event.gestures.items()}
    if event.prompt_embeds is not None:
        arrays.append(event.prompt_embeds.float().cpu().numpy().astype("<f4"))
        row["prompt_embeds"] = list(event.prompt_embeds.shape)
    if event.mask is not None:
        arrays.append(event.mask.numpy().astype("<f4"))
        row["mask"] = list(event.mask.shape)
    if event.picture is not None:
        arrays.append(np.frombuffer(event.picture.png(), np.uint8))
        row["picture"] = {"use": event.picture.use, "bytes": arrays[-1].nbytes}
    if event.input is not None:
        row["input"] = list(event.input)
    text = json.dumps(row, ensure_ascii=False).encode()
    # never begins as a mark does: a length of 2 GiB of JSON is none
    return b"".join([b"\0", _LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays)])


def decode_event(data: bytes) -> tuple[StreamEvent, dict[str, Any]]:
    """Inverse of `encode_event`: the event, and the JSON part with its place.

    Raises:
        InputError: damaged.
    """
    row, at = _read(data)

    def array(kind: str, shape: tuple[int, ...]) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        found = np.frombuffer(data, kind, count, at).reshape(shape)
        at += found.nbytes
        return torch.from_numpy(found.copy())

    def tracks(size: list[int] | None) -> TrackSet | None:
        if size is None:
            return None
        n, t = size
        points, state = array("<f4", (n, t, 2)), array("|i1", (n, t))
        return TrackSet(points, state, array("|b1", (n,)), array("<i8", (n,)))

    try:
        motion = tracks(row.get("motion"))
        gestures = {name: tracks(size) for name, size in row.get("gestures", {}).items()} or None
        shape = row.get("prompt_embeds")
        embeds = None if shape is None else array("<f4", tuple(shape))
        mask = None if row.get("mask") is None else array("<f4", tuple(row["mask"]))
        picture = None
        if row.get("picture") is not None:
            png = array("|u1", (row["picture"]["bytes"],))
            picture = Picture.of_png(png.numpy().tobytes(), row["picture"]["use"])
        event = StreamEvent(
            row.get("prompt"),
            motion,
            row.get("settings"),
            row.get("cache"),
            row.get("sink"),
            gestures,
            embeds,
            row.get("blend"),
            row.get("over"),
            mask,
            picture,
            row.get("input"),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"damaged entry ({error})") from None
    return event, row


def _applied(data: bytes) -> Applied:
    event, row = decode_event(data)
    return Applied(int(row["chunk"]), int(row["frame"]), event)


def _read(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON part of an entry and where its arrays begin."""
    try:
        length = _LENGTH.unpack_from(data, 1)[0]
        at = 1 + _LENGTH.size + length
        row = json.loads(data[1 + _LENGTH.size : at])
    except (struct.error, ValueError) as error:
        raise InputError(f"damaged entry ({error})") from None
    if not isinstance(row, dict):
        raise InputError("damaged entry (no object)")
    return row, at


def _next_entry(data: bytes, at: int, marks: bool = False) -> tuple[bytes, int]:
    if at + _LENGTH.size > len(data):
        raise InputError("cut short")
    length = _LENGTH.unpack_from(data, at)[0]
    at += _LENGTH.size
    if at + length > len(data):
        raise InputError("cut short")
    entry = data[at : at + length]
    if not marks and entry[:1] != b"\0":
        raise InputError("damaged entry")
    return entry, at + length


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _head(header: LogHeader) -> bytes:
    return _MAGIC + _framed(json.dumps(header.to_json(), sort_keys=True).encode())


def _first_digest(header: LogHeader) -> bytes:
    return hashlib.blake2b(json.dumps(header.to_json(), sort_keys=True).encode(), digest_size=16).digest()


def _extends(longer: EventLog, shorter: EventLog) -> bool:
    return longer.prefix(len(shorter)).digest == shorter.digest


def _common(first: EventLog, second: EventLog) -> int:
    """How many of their first events two logs share."""
    a, b = first.last, second.last
    while a is not None and b is not None and a.digest != b.digest:
        if a.count >= b.count:
            a = a.before
        else:
            b = b.before
    return a.count if a is not None and b is not None else 0
