"""Checkpoint directories: `config.yaml`, `model.safetensors`, `tokenizer.safetensors`, `vocabulary.txt` and a
card.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.context import ChunkPlan

from ..errors import CheckpointError, InputError
from ..stream.settings import StreamSettings
from ..structured import build

FORMAT = 1
MODEL, TOKENIZER, VOCABULARY, CONFIG = (
    "model.safetensors",
    "tokenizer.safetensors",
    "vocabulary.txt",
    "config.yaml",
)


def with_settings(content: dict[str, Any]) -> dict[str, Any]:
    """A config's content with its plan and settings built: these take sink and window from the plan.

    Raises:
        StructureError, InputError: a plan or a setting that does not fit.
    """
    plan, changes = content.get("plan"), content.get("sampling")
    if not isinstance(plan, Mapping) or not isinstance(changes, Mapping):
        return content
    plan = build(ChunkPlan, plan, "plan.")
    base = StreamSettings(sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    try:
        return content | {"plan": plan, "sampling": base.updated(changes)}
    except InputError as error:
        raise InputError(f"sampling: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated or another format.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"weights {path}: truncated or not safetensors ({error})") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a module, cast to its dtypes.

    Raises:
        CheckpointError: the first keys that are missing or surplus, or the first tensor of another shape.
    """
    check_tensors(module.state_dict(), tensors, where)
    module.load_state_dict(dict(tensors))


def check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError where tensors are not those that a module has (`own`): see `load_into`."""
    for what, names in (("missing", set(own) - set(tensors)), ("surplus", set(tensors) - set(own))):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise CheckpointError(
                f"{where}: {len(names)} {what} tensors ({some}{', ...' if len(names) > 3 else ''})"
            )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected shape {tuple(own[name].shape)}, found {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {name}: expected finite numbers, found NaN or infinity")


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")
    }
