"""Streams whose session is over, or whose server is gone: kept on disk for pages that come back.

A session's folder holds its reels (`recording`), the last snapshot that was written, and a list of what
belongs to it. The folder's name is a digest of the session's id, so that whoever can list the shelf cannot
take a stream from it.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgen.errors import StreamgenError

from .engine import Engine, Stream
from .history import Saved
from .recording import Lineage, Recording

_LIST = "kept.json"
# Touched while a session uses its folder: other servers may share the shelf.
_USED, _USED_SECONDS = "in-use", 200.0
# Seconds between two snapshots of one session, and bytes of the largest that is written whole.
# With a chunk and the writing, a process that dies takes less than 5 s along.
KEEP_SECONDS = 3.0
PLAYING_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Kept:
    """A stream on the shelf: where its snapshot lies, the frame it goes on at, and what it shows."""

    folder: Path
    snapshot: Path
    frame: int
    lineage: Lineage
    strip: tuple[dict[str, Any], ...]
    picture: str

    def recording(self, engine: Engine) -> Recording:
        """What was recorded of it, to be closed by whoever reads it."""
        recording = Recording(engine.info.height, engine.info.width, 0, self.folder)
        recording.reopen(self.lineage, self.frame)
        return recording


class Shelf:
    """Folders of sessions.

    Args:
        root: where they lie; made when it is needed.
        budget: bytes of all together; the oldest that no session uses give way.
        seconds: how long one is kept.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        budget: int = 2 * 2**30,
        seconds: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root, self.budget, self.seconds, self.clock = root, budget, seconds, clock

    def folder(self, token: str) -> Path:
        """The folder of a session, made if it is not there."""
        path = self._path(token)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def find(self, token: str) -> Kept | None:
        """What is kept of a session; None where nothing is, or nothing that can be read."""
        folder = self._path(token)
        try:
            row = json.loads((folder / _LIST).read_text(encoding="utf-8"))
            snapshot, lineage = folder / str(row["snapshot"]), Lineage.from_json(row["pieces"])
            kept = Kept(
                folder, snapshot, int(row["frame"]), lineage, tuple(row["strip"]), str(row["picture"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if kept.snapshot.is_file() else None

    def hand_over(self, kept: Kept, token: str) -> Kept:
        """Give a stream to another session, which goes on in its folder."""
        folder = self._path(token)
        shutil.rmtree(folder, ignore_errors=True)
        kept.folder.rename(folder)
        # whoever had it last has it no more
        (folder / _USED).unlink(missing_ok=True)
        return Kept(folder, folder / kept.snapshot.name, kept.frame, kept.lineage, kept.strip, kept.picture)

    def tidy(self, used: Iterable[str]) -> None:
        """Forget what is too old, and what is beyond the budget; not the folders of sessions in `used`, nor
        those that another server has called used within the last minutes.
        """
        busy, now = {self._path(token).name for token in used}, self.clock()
        for name in busy:
            if (self.root / name).is_dir():
                (self.root / name / _USED).touch()
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for folder in self.root.iterdir():
                sizes = [file.stat() for file in folder.iterdir() if file.is_file()]
                newest = max((s.st_mtime for s in sizes), default=folder.stat().st_mtime)
                mark = folder / _USED
                elsewhere = mark.is_file() and now - mark.stat().st_mtime < _USED_SECONDS
                if folder.name not in busy and not elsewhere:
                    found.append((newest, sum(s.st_size for s in sizes), folder))
        total = sum(size for _, size, _ in found)
        for newest, size, folder in sorted(found):
            if now - newest > self.seconds or total > self.budget:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size

    def _path(self, token: str) -> Path:
        return self.root / hashlib.sha256(token.encode()).hexdigest()[:32]


class Keeper:
    """Writes one session's stream to its folder, off the threads that make and send frames.

    Args:
        folder: of the session.
        executor: does the writing.
    """

    def __init__(self, folder: Path, executor: Executor) -> None:
        self.folder, self.executor = folder, executor
        self._since = float("-inf")
        self._writing: Future[None] | None = None
        self._failed = False

    def due(self, now: float) -> bool:
        """Whether the stream should be written while it plays."""
        busy = self._writing is not None and not self._writing.done()
        return not busy and now - self._since >= KEEP_SECONDS

    def fitting(self, stream: Stream, snapshot: Saved | None) -> Saved:
        """What is written of a stream: a snapshot, the one that was just taken where there is one, or an
        outline where that would be gigabytes.
        """
        if stream.snapshot_bytes > PLAYING_BYTES:
            return stream.outline()
        return stream.snapshot() if snapshot is None else snapshot

    def keep(self, now: float, stream: Stream, snapshot: Saved, frame: int, about: dict[str, Any]) -> None:
        """Write a snapshot before frame `frame`; `about` has `pieces`, `strip` and `picture`."""
        self._since = now
        self._writing = self.executor.submit(self._write, stream, snapshot, frame, about)

    def finish(self, job: Callable[[], None]) -> None:
        """Do something after everything is written."""
        self.executor.submit(job)

    def _write(self, stream: Stream, snapshot: Saved, frame: int, about: dict[str, Any]) -> None:
        path = self.folder / f"stream-{frame}.snapshot"
        row = {"snapshot": path.name, "frame": frame, **about}
        try:
            stream.write(snapshot, path)
            part = self.folder / f"{_LIST}.part"
            part.write_text(json.dumps(row), encoding="utf-8")
            part.replace(self.folder / _LIST)
            for old in self.folder.glob("stream-*.snapshot"):
                if old != path:
                    old.unlink(missing_ok=True)
        except (OSError, StreamgenError) as error:
            # the stream plays on; what is kept of it is older, or nothing
            if not self._failed:
                self._failed = True
                print(
                    f"note: a stream cannot be kept for its page to come back to ({error})", file=sys.stderr
                )
