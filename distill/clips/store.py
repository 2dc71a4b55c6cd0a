"""What is made of clips, kept on disk: each result a file of its own, made once, by whoever comes first.

A result is named after everything it depends on, so that nothing is ever out of date: what changes gets
another name. It is written beside its final name and renamed; what failed leaves a file with the reason.
"""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.tensor_file import write_tensors
from streamgen.checkpoints.digest import file_sha256
from streamgen.errors import InputError, OutputError
from streamgen.video.write import reason_of

Tensors = dict[str, Tensor]

_STALE_SECONDS = 3600.0


def fingerprint(*parts: Any) -> str:
    """16 hex digits of plain values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class Shelf:
    """Results of one kind under one set of settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the result of a key is or will be."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the result is there."""
        return self.path(key).is_file()

    def failure(self, key: str) -> str | None:
        """Why the result could not be made, where an earlier attempt failed."""
        try:
            return str(json.loads(self._failed(key).read_text(encoding="utf-8"))["why"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def settled(self, key: str, retry: bool = False) -> bool:
        """Whether there is nothing to do: the result is there, or failed before and is not tried again."""
        return self.has(key) or (not retry and self.failure(key) is not None)

    def make(self, key: str, compute: Callable[[], Tensors]) -> None:
        """Keep what `compute` returns, or the text of the InputError it raises.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            tensors = {name: value.contiguous() for name, value in compute().items()}
        except OutputError:
            raise
        except InputError as error:
            return self.fail(key, str(error))
        write_whole(self.path(key), lambda part: write_tensors(tensors, part))
        self._failed(key).unlink(missing_ok=True)
        return None

    def fail(self, key: str, why: str) -> None:
        """Keep why a result cannot be made; raises as `make`."""
        text = json.dumps({"why": why}, ensure_ascii=False)
        write_whole(self._failed(key), lambda part: part.write_text(text, encoding="utf-8"))

    def load(self, key: str) -> Tensors:
        """All tensors of a result; raises InputError where it is not there, or damaged."""
        with self._open(key) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def length(self, key: str, name: str) -> int:
        """First size of one tensor of a result, which is not read; raises as `load`."""
        with self._open(key) as file:
            return int(file.get_slice(name).get_shape()[0])

    def part(self, key: str, name: str, start: int, stop: int) -> Tensor:
        """Rows `[start, stop)` of one tensor of a result; no others are read; raises as `load`."""
        with self._open(key) as file:
            rows: Tensor = file.get_slice(name)[start:stop]
            return rows

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[Any]:
        try:
            with safe_open(self.path(key), "pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{self.path(key)}: missing or damaged, delete it and start again") from error

    def _failed(self, key: str) -> Path:
        return self.folder / f"{key}.failed.json"


class FileIndex:
    """Digests of files' contents, so that each content is read once.

    A file whose place, size and time of change are known is not read again; one that was only moved, copied
    or touched has the digest it had. Every process adds lines to a file of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = self._read()
        self._own = folder / f"files-{uuid.uuid4().hex[:12]}.jsonl"

    def refresh(self) -> None:
        """Take in what other processes have found."""
        self._rows = self._read()

    def known(self, file: Path) -> str | None:
        """The digest that was found for a file, None where it could not be read or nobody has looked."""
        digest = self._rows.get(str(file.resolve()), {}).get("digest")
        return digest if isinstance(digest, str) else None

    def why_not(self, file: Path) -> str | None:
        """Why a file could not be read."""
        why = self._rows.get(str(file.resolve()), {}).get("why")
        return why if isinstance(why, str) else None

    def digest(self, file: Path) -> str | None:
        """sha256 of a file's content, None where it cannot be read.

        Raises:
            OutputError: the index cannot be written.
        """
        name = str(file.resolve())
        row: dict[str, Any] = {"path": name}
        try:
            stat = file.stat()
            row |= {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            old = self._rows.get(name, {})
            if all(old.get(key) == value for key, value in row.items()) and "digest" in old:
                return str(old["digest"])
            row["found_ns"] = time.time_ns()
            row["digest"] = file_sha256(file)
        except OSError as error:
            row["found_ns"] = time.time_ns()
            row["why"] = f"cannot be read ({error.strerror or error})"
        self._rows[name] = row
        self._add(row)
        return row.get("digest")

    def _add(self, row: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._own.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(f"{self._own}: cannot be written ({reason_of(error)})") from None

    def _read(self) -> dict[str, dict[str, Any]]:
        """The newest row of each file; a last line that a killed process left unfinished is passed over."""
        rows: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("files-*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    if row["found_ns"] >= rows.get(row["path"], row)["found_ns"]:
                        rows[row["path"]] = row
                except (ValueError, KeyError, TypeError):
                    continue
        return rows


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, which then takes its place.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({reason_of(error)})") from None


def remove_stale_parts(folder: Path) -> None:
    """Remove unfinished files that nobody has written to for an hour: those of killed processes."""
    for part in folder.rglob("*.part"):
        # another process may be faster
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
