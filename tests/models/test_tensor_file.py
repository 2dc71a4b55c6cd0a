"""Files of tensors are as readable as any other new file."""

import ast
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.tensor_file import write_tensors

ROOT = Path(__file__).resolve().parents[2]
#: What holds prompts is its owner's alone.
PRIVATE = {"streamgen/stream/snapshot.py", "streamgen/wan/text.py", "models/tensor_file.py"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_new_file(mask: int, tmp_path: Path) -> None:
    tensors, path = {"a": torch.arange(3.0)}, tmp_path / "a.safetensors"
    # one that was written when they were not
    path.touch(mode=0o600)
    before = os.umask(mask)
    try:
        write_tensors(tensors, path, {"format": "pt"})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert torch.equal(load_file(path)["a"], tensors["a"])


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors"):
            write_tensors({"a": torch.zeros(4096)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_else_writes_safetensors() -> None:
    """So that every export and cache can be read by whom any other file can."""
    found = []
    for room in ("models", "streamgen", "distill", "demo"):
        for file in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            if any(alias.name == "save_file" for node in imports for alias in node.names):
                found.append(str(file.relative_to(ROOT)))
    assert set(found) == PRIVATE
