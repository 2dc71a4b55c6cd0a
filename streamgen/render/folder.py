"""The output folder of a run, shared by any number of processes: its manifest, claims on items, file names.

Claims are locks that the operating system gives up when their process dies, however it dies; no clock and no
lease is involved. They lie in `.streamgen/`.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import OutputError
from ..video.outputs import Outputs
from ..video.write import reason_of
from .items import RenderItem
from .manifest import MANIFEST, Entry, Manifest, Status
from .records import read_record, sidecar_path

PAGE = "index.html"
STRIPS = "page"
_HIDDEN = ".streamgen"
# Lock files are never removed (removing one that somebody waits for would let two in), so there is a fixed
# number of them. Items that share one are merely not rendered at the same time.
_LOCK_FILES = 4096


class OutputFolder:
    """A folder of videos.

    Args:
        path: made where it is missing, with `make`.

    Raises:
        OutputError: it cannot be made or written.
    """

    def __init__(self, path: Path, make: bool = True) -> None:
        self.path = path
        self._hidden = path / _HIDDEN
        if make:
            try:
                (self._hidden / "locks").mkdir(parents=True, exist_ok=True)
                (path / STRIPS).mkdir(exist_ok=True)
            except OSError as error:
                raise OutputError(f"-o {path}: cannot be made ({reason_of(error)})") from None
        elif path.exists() and not path.is_dir():
            raise OutputError(f"-o {path}: is a file, expected a folder")
        self.manifest = Manifest(path / MANIFEST, self._lock("manifest", blocking=True))
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def outputs(self, outputs: Outputs) -> Outputs:
        """Outputs with the place for this folder's contact strips."""
        return Outputs(outputs.png, outputs.preview, self.path / STRIPS)

    @contextlib.contextmanager
    def claim(self, item: RenderItem, key: str) -> Iterator[bool]:
        """Whether this process alone may render the item now, for as long as the context lasts.

        Both the key and the name are claimed: two job files may ask for one video under two names, or for two
        videos under one.

        Raises:
            OutputError: the file system has no locks, or cannot be written.
        """
        places = sorted({_bucket(f"key {key}"), _bucket(f"name {item.name.casefold()}")})
        with contextlib.ExitStack() as held:
            try:
                for place in places:
                    held.enter_context(self._lock(place, blocking=False))
            except Timeout:
                yield False
                return
            except (OSError, NotImplementedError) as error:
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                raise OutputError(f"{self._hidden}: locks do not work here ({reason})") from None
            yield True

    def done(self, key: str, outputs: Outputs) -> Entry | None:
        """The manifest's line of a finished item whose files are all there and intact, as of its last
        `refresh`.
        """
        entry = self.manifest.get(key)
        if entry is None or entry.status != "ok" or entry.file is None:
            return None
        video = self.path / entry.file
        complete = sidecar_path(video).is_file() and all(path.exists() for path in outputs.paths(video))
        return entry if complete and _intact(video, entry) else None

    def adopt(self, item: RenderItem, key: str, outputs: Outputs) -> Entry | None:
        """The line of an item that is finished though the manifest lacks it: its process died between the
        video's last rename and the line, or the manifest was lost. The line is added.

        Raises:
            OutputError: it cannot be added.
        """
        for name in self._names(item, key):
            video = self.path / f"{name}.mp4"
            record = read_record(sidecar_path(video)) if video.is_file() else None
            if record is None or record.get("key") != key:
                continue
            entry = self.entry_of(item, key, video, record)
            whole = entry is not None and _file_sha256(video) == entry.sha256
            if entry is not None and whole and all(path.exists() for path in outputs.paths(video)):
                self.manifest.append(entry)
                return entry
        return None

    def place(self, item: RenderItem, key: str, overwrite: bool) -> Path:
        """Where an item's video goes: under the item's name, or beside a video that has that name and is of
        another job (a digest of the key is added), unless that is to be overwritten.

        Raises:
            OutputError: both places are taken by files that are not ours.
        """
        known = self.manifest.get(key)
        if known is not None and known.file is not None:
            video = self.path / known.file
            lost_record = not sidecar_path(video).exists() and _intact(video, known)
            if lost_record or self._is_ours(video, key):
                return video
        for name in self._names(item, key):
            video = self.path / f"{name}.mp4"
            if self._is_ours(video, key) or (overwrite and read_record(sidecar_path(video)) is not None):
                return video
        raise OutputError(f"{self.path / item.name}.mp4: is taken by a file that is not of this run")

    def entry_of(self, item: RenderItem, key: str, video: Path, record: dict[str, Any]) -> Entry | None:
        """The line of a rendered item; None for a record that says nothing about the file."""
        file, timings = record.get("file"), record.get("timings")
        if not isinstance(file, dict) or not isinstance(timings, dict):
            return None
        about = video.stat()
        return self._entry(
            item,
            key,
            "ok",
            file=video.name,
            bytes=about.st_size,
            changed_ns=about.st_mtime_ns,
            sha256=str(file.get("sha256")),
            frames=int(record.get("frames", 0)),
            seconds=float(timings.get("wall", 0.0)),
            peak_memory_mb=float(record.get("peak_memory_mb", 0.0)),
            runner=record.get("runner"),
            threads=record.get("threads"),
            batch=(record.get("batch") or {}).get("size"),
        )

    def failed_entry(self, item: RenderItem, key: str, error: str) -> Entry:
        """The line of an item that failed."""
        return self._entry(item, key, "failed", error=error)

    def _entry(self, item: RenderItem, key: str, status: Status, **results: Any) -> Entry:
        return Entry(
            key=key,
            status=status,
            name=item.name,
            index=item.job.index,
            line=item.job.line,
            sample_seed=item.job.seed,
            prompt=" → ".join(" + ".join(shot.words) for shot in item.job.shots if shot.words),
            worker=self.worker,
            **results,
        )

    @contextlib.contextmanager
    def page_claim(self) -> Iterator[bool]:
        """Whether this process may write the page now."""
        try:
            with self._lock("page", blocking=False):
                yield True
        except Timeout:
            yield False

    def _lock(self, name: str, blocking: bool) -> FileLock:
        path = self._hidden / "locks" / f"{name}.lock"
        # a lock by the mere existence of a file would outlive its process
        return FileLock(path, timeout=-1 if blocking else 0, fallback_to_soft=False)

    def _names(self, item: RenderItem, key: str) -> tuple[str, str]:
        return item.name, f"{item.name}-k{key[:8]}"

    def _is_ours(self, video: Path, key: str) -> bool:
        """Whether a place is free or holds (what is left of) this very item."""
        sidecar = sidecar_path(video)
        if sidecar.exists():
            record = read_record(sidecar)
            return record is not None and record.get("key") == key
        return not video.exists()


def _bucket(text: str) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:4])
    return f"{number % _LOCK_FILES:03x}"


def _intact(video: Path, entry: Entry) -> bool:
    """Whether a file is still the one that was rendered. Its content is read only where size and time of
    change do not already say so, as after copying the folder.
    """
    try:
        about = video.stat()
        if about.st_size != entry.bytes:
            return False
        return about.st_mtime_ns == entry.changed_ns or _file_sha256(video) == entry.sha256
    except OSError:
        return False


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
