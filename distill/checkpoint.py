"""Atomic checkpoints: a directory appears under its final name only when everything in it is on disk."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamgen.errors import CheckpointError

from .shards import SHARDS, write_shards

STATE_FILE = "state.pt"
META_FILE = "meta.json"
_NAME = re.compile(r"step-(\d{9})")
_PARTIAL = ".partial-"
_STAGE_FILE = re.compile(r"stage-rank-\d{5}\.pt")

# Given what failed on this process (None: nothing), returns what failed on any.
Agree = Callable[[str | None], list[str]]


def alone(error: str | None) -> list[str]:
    """The agreement of a single process."""
    return [] if error is None else [error]


def stage_file(rank: int) -> str:
    """Where the stage's own state of process `rank` lies in a checkpoint."""
    return f"stage-rank-{rank:05d}.pt"


class CheckpointWriter:
    """Writes checkpoints under `root` and keeps the newest `keep`.

    All processes call `save` together and share the file system; `agree` tells each what failed on any, so
    that they go on or stop as one. `main` is true in the process that makes and renames the directory.
    """

    def __init__(self, root: Path, keep: int, main: bool = True, agree: Agree = alone) -> None:
        self._root, self._keep, self._main, self._agree = root, keep, main, agree

    def save(
        self,
        step: int,
        files: Mapping[str, Mapping[str, Any]],
        meta: Mapping[str, Any],
        shares: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write `root/step-NNNNNNNNN` out of the `files` of every process, its `shares` of tensors, and
        the main one's `meta`.

        `files` hold tensors and plain values by file name, `meta` JSON values. On a failure (disk full,
        killed) no complete checkpoint is lost.

        Raises:
            CheckpointError: on every process, when any could not write.
        """
        final = self._root / f"step-{step:09d}"
        partial = self._root / f"{_PARTIAL}{final.name}"
        self._together(final, lambda: self._begin(partial))
        self._together(final, lambda: _write_files(partial, files))
        if shares is not None:
            self._together(final, lambda: write_shards(partial / SHARDS, shares))
        self._together(final, lambda: self._finish(partial, final, {**meta, "step": step}))
        return final

    def _together(self, final: Path, work: Callable[[], None]) -> None:
        cause: Exception | None = None
        try:
            work()
        except (OSError, RuntimeError) as error:
            cause = error
        failures = self._agree(None if cause is None else " ".join(str(cause).split()))
        if failures:
            if self._main:
                _remove_partial(self._root)
            raise CheckpointError(f"checkpoint {final} could not be written: {failures[0]}") from cause

    def _begin(self, partial: Path) -> None:
        if self._main:
            self._root.mkdir(parents=True, exist_ok=True)
            # Also what a process that was killed has left.
            _remove_partial(self._root)
            partial.mkdir()

    def _finish(self, partial: Path, final: Path, meta: Mapping[str, Any]) -> None:
        if not self._main:
            return
        written = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in written}
        with open(partial / META_FILE, "w", encoding="utf-8") as text:
            json.dump({**meta, "files": sizes}, text, indent=1)
            text.flush()
            _flush(text.fileno())
        _flush_directory(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush_directory(self._root)
        for path in list_checkpoints(self._root)[: -self._keep]:
            shutil.rmtree(path, ignore_errors=True)


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Rename the checkpoints of `root` beyond `step`, so that a run which goes on from there is the latest.

    They keep their content under `replaced-N-step-NNNNNNNNN`, where they are neither found nor removed.
    """
    moved = []
    for path in list_checkpoints(root):
        if int(path.name.removeprefix("step-")) > step:
            number = next(n for n in itertools.count(1) if not (root / f"replaced-{n}-{path.name}").exists())
            moved.append(path.rename(root / f"replaced-{number}-{path.name}"))
    return moved


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints under `root`, oldest first; partial or damaged directories are passed over."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and is_complete(path)]
    return sorted(found, key=lambda path: path.name)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = list_checkpoints(root)
    return found[-1] if found else None


def is_complete(path: Path) -> bool:
    """Whether a checkpoint's files are there in their recorded size."""
    try:
        sizes = _sizes(json.loads((path / META_FILE).read_text(encoding="utf-8")))
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_checkpoint(path: Path, mapped: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (state, meta), tensors on the CPU; `mapped` ones are read as far as they are used.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete or unreadable.
    """
    if not is_complete(path):
        raise CheckpointError(f"checkpoint {path}: missing or incomplete")
    meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
    return _read(path, STATE_FILE, mapped), meta


def load_stage_state(path: Path, rank: int, world: int) -> dict[str, Any]:
    """The stage's own state of process `rank`, tensors on the CPU.

    Raises:
        CheckpointError: the checkpoint has none, or that of another number of processes than `world`.
    """
    names = _sizes(json.loads((path / META_FILE).read_text(encoding="utf-8")))
    saved = sum(1 for name in names if _STAGE_FILE.fullmatch(name))
    if saved != world:
        raise CheckpointError(
            f"checkpoint {path}: holds the running state of {saved} processes, this run has {world}; "
            f"start it with {saved}"
            if saved
            else f"checkpoint {path}: holds no running state, which this stage needs to go on"
        )
    return _read(path, stage_file(rank))


def check_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError naming the keys and shapes in which `found` differs from `expected`."""
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    for key in expected:
        if key in found and found[key].shape != expected[key].shape:
            problems.append(f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"{where} does not fit this config: {'; '.join(problems[:4])}{more}")


def _write_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, content in files.items():
        with open(directory / name, "wb") as file:
            torch.save(dict(content), file)
            _flush(file.fileno())


def _read(path: Path, name: str, mapped: bool = False) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path / name, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise CheckpointError(f"checkpoint {path}: {name} cannot be read ({type(error).__name__})") from error
    return content


def _sizes(meta: dict[str, Any]) -> dict[str, int]:
    """Bytes of a checkpoint's files by name; in a checkpoint of one file they have a key of their own."""
    sizes: dict[str, int] = meta["files"] if "files" in meta else {STATE_FILE: meta["state_bytes"]}
    return sizes


def _remove_partial(root: Path) -> None:
    for path in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
