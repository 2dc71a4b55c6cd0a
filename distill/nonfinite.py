"""What is kept when a loss or gradient is not finite: the batches of that update, and what was found."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_batches(directory: Path, rank: int, batches: Sequence[Any], report: Mapping[str, Any]) -> None:
    """Write this process' micro-batches and report to `directory`; raises OSError when that cannot be done.

    `batch-rank-NNNNN-micro-NN.pt` holds the tensors in dicts and lists, which `torch.load` reads without
    running code.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for micro, batch in enumerate(batches):
        torch.save(to_tensors(batch), directory / f"batch-rank-{rank:05d}-micro-{micro:02d}.pt")
    text = json.dumps(dict(report), indent=1)
    (directory / f"report-rank-{rank:05d}.json").write_text(text, encoding="utf-8")


def to_tensors(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, tensors on the CPU, anything else as text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_tensors(vars(value)[item.name]) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tensors(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
