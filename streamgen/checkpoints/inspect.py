"""What is in a safetensors file of ours, and how tensors compare with what a config asks for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .digest import tensor_digest
from .directory import read_tensors

_SHOWN_KEYS = 8


def inspect_file(path: Path) -> dict[str, Any]:
    """A report on a safetensors file of ours: weights, or a saved stream.

    Raises:
        CheckpointError: truncated, or no safetensors.
    """
    tensors, metadata = read_tensors(path), _metadata(path)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.split(".")[0], {})[name] = tensor
    report: dict[str, Any] = {
        "path": str(path),
        "kind": "saved stream" if "snapshot" in metadata else "weights",
        "digest": tensor_digest(tensors),
        "parts": {name: _sizes(group) for name, group in sorted(groups.items())},
        "problems": [],
    }
    if "snapshot" in metadata:
        try:
            meta = json.loads(metadata["snapshot"])
            report["stream"] = {key: meta.get(key) for key in ("model", "prompt", "seed", "chunk", "dtype")}
        except (ValueError, AttributeError):
            report["problems"].append("the header of the saved stream is damaged")
    elif metadata:
        report["metadata"] = metadata
    return report


def read_or_note(path: Path, problems: list[str]) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, or None and a line in `problems`."""
    try:
        return read_tensors(path)
    except CheckpointError as error:
        problems.append(str(error))
        return None


def compare_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str, problems: list[str]
) -> dict[str, Any]:
    """Sizes of the tensors found, and how names and shapes differ from what is expected; a line in
    `problems` for each kind of difference.
    """
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = {
        name: {"expected": list(expected[name].shape), "found": list(tensor.shape)}
        for name, tensor in found.items()
        if name in expected and tensor.shape != expected[name].shape
    }
    infinite = [n for n, t in found.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    for what, names in (
        ("missing", missing),
        ("surplus", surplus),
        ("of another shape", sorted(shapes)),
        ("with NaN or infinity", sorted(infinite)),
    ):
        if names:
            some = ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")
            problems.append(f"{where}: {len(names)} tensors {what}: {some}")
    return _sizes(found) | {"missing": missing, "surplus": surplus, "shapes": shapes}


def _sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "parameters": sum(t.numel() for t in tensors.values()),
        "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
    }


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"weights {path}: truncated or not safetensors ({error})") from None
