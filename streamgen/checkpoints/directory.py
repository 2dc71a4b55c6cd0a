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

from models.causal_dit import CausalDiTConfig
from models.context import ChunkPlan
from models.rope import RotaryEmbedding3D

from ..errors import CheckpointError, InputError
from ..stream.settings import StreamSettings
from ..structured import build
from ..suggest import shorten

FORMAT = 1
MODEL, TOKENIZER, VOCABULARY, CONFIG = (
    "model.safetensors",
    "tokenizer.safetensors",
    "vocabulary.txt",
    "config.yaml",
)


def with_settings(content: dict[str, Any]) -> dict[str, Any]:
    """A config's content with its plan and settings built: these take sink and window from the plan. A plan
    may give the published total, `attention_frames`, in place of `window_frames`.

    Raises:
        StructureError, InputError: a plan or a setting that does not fit, or a network without heads.
    """
    dit = content.get("dit")
    if isinstance(dit, Mapping) and isinstance(dit.get("heads"), int) and dit["heads"] < 1:
        raise InputError(f"dit.heads: expected a whole number from 1, found {dit['heads']}")
    plan, changes = content.get("plan"), content.get("sampling")
    if not isinstance(plan, Mapping) or not isinstance(changes, Mapping):
        return content
    plan = build(ChunkPlan, _with_window(plan), "plan.")
    base = StreamSettings(sink_frames=plan.sink_frames, window_frames=plan.window_frames)
    try:
        return content | {"plan": plan, "sampling": base.updated(changes)}
    except InputError as error:
        raise InputError(f"sampling: {error}") from None


def _with_window(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan whose window is what is left of its attention frames, where it gives those.

    Raises:
        InputError: a window beside them that is another, or one that would not be whole chunks.
    """
    values = {str(key): value for key, value in plan.items() if key != "attention_frames"}
    total = plan.get("attention_frames")
    if total is None:
        return values
    base = ChunkPlan()
    sink, chunk = (values.get(name, vars(base)[name]) for name in ("sink_frames", "chunk_frames"))
    if any(not isinstance(value, int) or isinstance(value, bool) for value in (total, sink, chunk)):
        if isinstance(total, int):
            # the others say what is wrong with them
            return values | {"window_frames": 0}
        raise InputError(f"plan.attention_frames: expected a whole number, found {shorten(total)}")
    window, given = total - sink - chunk, values.get("window_frames")
    if given is not None and given != window:
        raise InputError(
            f"plan: attention_frames {total} contradict window_frames {shorten(given)}: with sink {sink} and "
            f"chunk {chunk} they leave a window of {window}"
        )
    if chunk > 0 and (window < 0 or window % chunk):
        raise InputError(
            f"plan: attention_frames {total} leave a window of {window} with sink {sink} and chunk {chunk}, "
            f"expected whole chunks of {chunk}"
        )
    return values | {"window_frames": window}


def attention_text(plan: ChunkPlan, settings: StreamSettings) -> str:
    """What a chunk attends to, as a sum; also what the model was trained with, where streams open otherwise.

    Raises:
        InputError: settings that do not fit the plan.
    """

    def summed(one: ChunkPlan) -> str:
        parts = f"sink {one.sink_frames} + window {one.window_frames} + chunk {one.chunk_frames}"
        return f"{parts} = {one.attention_frames} attention frames"

    opened = settings.plan(plan)
    return summed(opened) + ("" if opened == plan else f" (the plan: {summed(plan)})")


def check_heads(dit: CausalDiTConfig) -> None:
    """Raise ValueError where the heads of a network are none that RoPE can turn; that they divide the width
    is checked where the config is made.
    """
    try:
        RotaryEmbedding3D(dit.head_dim)
    except ValueError as error:
        raise ValueError(f"dit.heads: {dit.heads} of {dit.head_dim} ({error})") from None


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
