"""`manifest.jsonl`: what became of each item, one line each, appended and brought to the disk.

Lines are only ever added, by any number of processes, and the last one about a key counts. A line that a
power cut left half written is passed over and never continued. Times in it are for people: nothing depends on
them.
"""

import json
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from ..errors import OutputError
from ..video.write import reason_of

MANIFEST = "manifest.jsonl"

Status = Literal["ok", "failed"]


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        key: what the item depends on, see `clips.job_key`.
        status: "ok" or "failed".
        name: of the item's files, without suffix.
        index, line, sample_seed: which item it was: place and line in the job file, seed.
        prompt: all of them in order, with an arrow between, for people.
        file: the video's name in the folder; None where it failed.
        bytes, changed_ns, sha256: of the video file: size, time of change as the file system says, digest.
        frames, seconds, peak_memory_mb: length, time it took, memory.
        runner, threads, batch: what computed it, on how many threads of the CPU, and among how many at once.
        error: why it failed.
        worker: host and process that did it.
        at: when, UTC.
    """

    key: str
    status: Status
    name: str
    index: int
    line: int
    sample_seed: int
    prompt: str
    file: str | None = None
    bytes: int = 0
    changed_ns: int = 0
    sha256: str | None = None
    frames: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    runner: str | None = None
    threads: int | None = None
    batch: int | None = None
    error: str | None = None
    worker: str = ""
    at: str = ""

    @classmethod
    def from_json(cls, row: Any) -> "Entry | None":
        """An entry from a line's content; None for what is none, as a foreign hand may have left it."""
        fields = cls.__dataclass_fields__
        if not isinstance(row, Mapping):
            return None
        values = {name: value for name, value in row.items() if name in fields}
        try:
            entry = cls(**values)
        except TypeError:
            return None
        plain = entry.file is None or (
            isinstance(entry.file, str)
            and entry.file == Path(entry.file).name
            and entry.file not in ("", "..")
        )
        good = isinstance(entry.key, str) and isinstance(entry.name, str) and plain
        numbers = (entry.index, entry.line, entry.bytes, entry.changed_ns, entry.frames)
        good = good and all(type(value) is int for value in numbers)
        good = good and isinstance(entry.seconds, int | float)
        return entry if good and entry.status in ("ok", "failed") else None


class Manifest:
    """The manifest of a folder. Reading takes in what was appended since; appending takes the lock."""

    def __init__(self, path: Path, lock: AbstractContextManager[Any]) -> None:
        self.path = path
        self.damaged_lines = 0
        self._lock = lock
        # threads of a batch share what was read
        self._reading = threading.RLock()
        self._offset = 0
        self._rest = b""
        self._last: dict[str, Entry] = {}
        self._order: dict[str, int] = {}
        self._count = 0

    def refresh(self) -> None:
        """Take in lines that were appended since the last time.

        Raises:
            OutputError: the file is there and cannot be read.
        """
        with self._reading:
            self._take_in()

    def _take_in(self) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            size = 0
        except OSError as error:
            raise self._unreadable(error) from None
        if size < self._offset:  # somebody has put another file in its place
            self._offset, self._rest, self._last, self._order = 0, b"", {}, {}
        if size == self._offset:
            return
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError as error:
            raise self._unreadable(error) from None
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._take(line)

    def get(self, key: str) -> Entry | None:
        """The last line about a key, as of the last `refresh`."""
        return self._last.get(key)

    def position(self, key: str) -> int:
        """The number of the last line about a key, from 1; 0 where there is none."""
        return self._order.get(key, 0)

    def __len__(self) -> int:
        """Lines read so far."""
        return self._count

    def entries(self) -> list[Entry]:
        """The last line about each key, in the order of the items."""
        return sorted(self._last.values(), key=lambda entry: (entry.index, entry.name))

    def append(self, entry: Entry) -> None:
        """Add a line and bring it to the disk.

        Raises:
            OutputError: it cannot be written.
        """
        stamped = asdict(entry) | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps({key: value for key, value in stamped.items() if value is not None}) + "\n"
        try:
            with self._reading, self._lock, self.path.open("ab+", buffering=0) as file:
                self._write(file, line.encode())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({reason_of(error)})") from None
        self.refresh()

    def _write(self, file: FileIO, line: bytes) -> None:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line  # a line that was cut short must not swallow this one
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())

    def _take(self, line: bytes) -> None:
        self._count += 1
        if not line.strip():
            return
        try:
            entry = Entry.from_json(json.loads(line))
        except (ValueError, RecursionError):
            entry = None
        if entry is None:
            self.damaged_lines += 1
            return
        self._last[entry.key] = entry
        self._order[entry.key] = self._count

    def _unreadable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be read ({reason_of(error)})")
