"""Atomic checkpoints: a directory appears under its final name only when everything in it is on disk."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamgen.errors import CheckpointError

STATE_FILE = "state.pt"
META_FILE = "meta.json"
_NAME = re.compile(r"step-(\d{9})")


def save_checkpoint(
    root: Path, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], keep: int
) -> Path:
    """Write `root/step-NNNNNNNNN` and remove all but the newest `keep` checkpoints.

    `state` holds tensors in plain containers, `meta` JSON values. On a failure (disk full, killed) no
    complete checkpoint is lost. Raises CheckpointError when the files cannot be written.
    """
    final = root / f"step-{step:09d}"
    partial = root / f".partial-{final.name}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with open(partial / STATE_FILE, "wb") as file:
            torch.save(dict(state), file)
            _flush(file.fileno())
        size = (partial / STATE_FILE).stat().st_size
        with open(partial / META_FILE, "w", encoding="utf-8") as text:
            json.dump({**meta, "step": step, "state_bytes": size}, text, indent=1)
            text.flush()
            _flush(text.fileno())
        _flush_directory(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush_directory(root)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"checkpoint {final} could not be written: {error}") from error
    _prune(root, keep)
    return final


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
        meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        return bool((path / STATE_FILE).stat().st_size == meta["state_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (state, meta). Raises CheckpointError when the checkpoint is missing, incomplete or unreadable."""
    if not is_complete(path):
        raise CheckpointError(f"checkpoint {path}: missing or incomplete")
    meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
    try:
        state = torch.load(path / STATE_FILE, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path}: {STATE_FILE} cannot be read ({type(error).__name__})"
        ) from error
    return state, meta


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


def _prune(root: Path, keep: int) -> None:
    for path in list_checkpoints(root)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
