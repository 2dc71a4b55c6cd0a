"""What is in a checkpoint directory or a safetensors file, and whether it fits its own config."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from models.causal_dit import CausalDiT
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer

from .checkpoint import (
    MODEL,
    TOKENIZER,
    VOCABULARY,
    CheckpointConfig,
    read_config,
    read_tensors,
    read_vocabulary,
)
from .digest import tensor_digest
from .errors import CheckpointError
from .foreign import SUFFIXES
from .wan.config import config_file
from .wan.inspect import foreign_report, inspect_foreign, inspect_wan

_MODEL_PARTS = ("dit", "text_encoder", "motion_encoder")
_SHOWN_KEYS = 8


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """A report of plain values; `problems` has a line for each thing that keeps the checkpoint from loading.

    Args:
        path: a checkpoint directory, or a weights file: ours, a published one, a LoRA, a saved stream.

    Raises:
        CheckpointError: nothing there, a config that cannot be read, or a file that is no safetensors.
    """
    wan = config_file(path)
    if wan is not None or (path.is_file() and path.suffix == ".yaml"):
        return inspect_wan(wan or path)
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file or directory")
    if path.suffix == ".safetensors":
        return foreign_report(path) or _file(path)
    # a saved stream may have any name
    return inspect_foreign(path) if path.suffix in SUFFIXES else _file(path)


def _file(path: Path) -> dict[str, Any]:
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


def _directory(path: Path) -> dict[str, Any]:
    config = read_config(path)
    problems: list[str] = []
    parts: dict[str, Any] = {}
    report: dict[str, Any] = {
        "path": str(path),
        "kind": "checkpoint",
        "family": config.family,
        "size": {"width": config.width, "height": config.height, "fps": config.fps},
    }
    all_tensors: dict[str, torch.Tensor] = {}
    expected = _networks(config)
    tokens = _read(path / TOKENIZER, problems)
    if tokens is not None:
        parts["tokenizer"] = _compare(tokens, expected["tokenizer"], TOKENIZER, problems)
        found = tensor_digest(tokens)
        report["tokenizer"] = {
            "expected": config.tokenizer_digest,
            "found": found,
            "match": found == config.tokenizer_digest,
        }
        if found != config.tokenizer_digest:
            problems.append(
                f"{TOKENIZER}: not the tokenizer that the model was trained on "
                f"(expected {config.tokenizer_digest[:12]}, found {found[:12]})"
            )
        all_tensors |= {f"tokenizer.{name}": value for name, value in tokens.items()}
    tensors = _read(path / MODEL, problems)
    if tensors is not None:
        own = {
            part: {n[len(part) + 1 :]: t for n, t in tensors.items() if n.startswith(part + ".")}
            for part in _MODEL_PARTS
        }
        for part, group in own.items():
            parts[part] = _compare(group, expected[part], f"{MODEL} ({part})", problems)
        report["surplus"] = sorted(n for n in tensors if n.split(".")[0] not in _MODEL_PARTS)
        all_tensors |= tensors
    try:
        words = len(read_vocabulary(path / VOCABULARY, config.text_encoder).words)
        report["vocabulary"] = words
    except CheckpointError as error:
        problems.append(str(error))
    report["digest"] = tensor_digest(all_tensors) if tokens is not None and tensors is not None else None
    report["parameters"] = sum(part["parameters"] for part in parts.values())
    report["parts"] = parts
    report["chunk_plan"] = asdict(config.plan)
    report["settings"] = config.sampling.to_json()
    return report | {"problems": problems}


def _networks(config: CheckpointConfig) -> dict[str, Mapping[str, torch.Tensor]]:
    """Names and shapes that the config asks for, without memory for values."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "tokenizer": VideoTokenizer(config.tokenizer),
            "dit": CausalDiT(config.dit),
            "text_encoder": TextEncoder(config.text_encoder),
            "motion_encoder": MotionEncoder(config.motion_encoder),
        }
    return {name: module.state_dict() for name, module in modules.items()}


def _read(path: Path, problems: list[str]) -> dict[str, torch.Tensor] | None:
    try:
        return read_tensors(path)
    except CheckpointError as error:
        problems.append(str(error))
        return None


def _compare(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str, problems: list[str]
) -> dict[str, Any]:
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
