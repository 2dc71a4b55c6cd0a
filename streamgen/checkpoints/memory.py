"""What a model and its streams take of the memory, told before anything is allocated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import ChunkPlan
from models.kv_cache import CacheShape

from ..engine.geometry import LatentGeometry
from ..engine.quantize import is_rounded
from ..errors import CheckpointError
from .outline import ShapesAlone

GIB = 2**30


@dataclass(frozen=True)
class Bits:
    """What of a model is in eight bits: linear layers of its blocks, the cache of its streams."""

    linears: bool = False
    cache: bool = False


FULL = Bits()


def network_bytes(dit: CausalDiTConfig, dtype: torch.dtype, bits: Bits = FULL) -> int:
    """Bytes of a network's weights."""
    sizes = _sizes(dit)
    if not bits.linears:
        return sizes.numbers * dtype.itemsize
    # a scale in float32 for each output channel
    return (sizes.numbers - sizes.rounded) * dtype.itemsize + sizes.rounded + 4 * sizes.channels


def rounded_numbers(dit: CausalDiTConfig) -> int:
    """How many of a network's weights eight bits round."""
    return _sizes(dit).rounded


@dataclass(frozen=True)
class _Sizes:
    """Numbers of a network, those of them that eight bits round, and the output channels of these layers."""

    numbers: int
    rounded: int
    channels: int


@lru_cache(maxsize=64)
def _sizes(dit: CausalDiTConfig) -> _Sizes:
    with ShapesAlone():
        shapes = {name: x.shape for name, x in CausalDiT(dit).named_parameters()}
    small = [shape for name, shape in shapes.items() if is_rounded(name)]
    return _Sizes(sum(map(prod, shapes.values())), sum(map(prod, small)), sum(shape[0] for shape in small))


def cache_bytes(
    dit: CausalDiTConfig, geometry: LatentGeometry, plan: ChunkPlan, dtype: torch.dtype, bits: Bits = FULL
) -> int:
    """Bytes of one stream's key-value cache; a fork has one, too."""
    shape = CacheShape(dit.layers, dit.heads, dit.head_dim, geometry.token_grid)
    return shape.cache_bytes(plan, dtype, bits.cache)


def prompt_bytes(dit: CausalDiTConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes of the cross-attention keys and values of one prompt of `length` tokens."""
    return 2 * dit.layers * length * dit.dim * dtype.itemsize


def network_step_bytes(
    dit: CausalDiTConfig,
    tokens: int,
    plan: ChunkPlan,
    dtype: torch.dtype,
    *,
    joint: bool,
    bits: Bits = FULL,
) -> int:
    """Most bytes that one forward holds besides weights and cache; estimated from the largest layer.
    Attention is torch's fused kernel, on CPUs too (`models.attention`): scores are never written out.

    Args:
        tokens: of one latent frame.
        joint: whether a recache takes all frames of the attention span at once.
    """
    size = dtype.itemsize
    queries = tokens * (plan.attention_frames if joint else plan.chunk_frames)
    hidden = 2 * size
    if bits.linears:
        # sums in 32 bits beside their numbers; or an input, its float32 and its eight bits
        hidden = max(8, size + 5)
    feed_forward = queries * dit.ffn_dim * hidden
    # the sink's keys are rotated one layer at a time: widened, in halves, put together, and narrowed again
    sink = tokens * plan.sink_frames * dit.dim * (12 + size)
    # one layer's keys and values are read in full precision, the second of them by way of float32
    read = 8 * tokens * plan.attention_frames * dit.dim if bits.cache else 0
    return 6 * queries * dit.dim * size + max(feed_forward, sink, read)


def expect_room(
    parts: Mapping[str, int],
    free: int | None,
    what: str,
    device: torch.device,
    smaller: Callable[[], Sequence[tuple[str, int]]],
) -> None:
    """Raise CheckpointError where parts do not fit into the memory that is free.

    Args:
        parts: bytes by name.
        free: bytes; None where nobody knows, which fits everything.
        what: is to be made, for the message.
        smaller: ways to need less, from the mildest on, with the bytes that each needs.
    """
    total = sum(parts.values())
    if free is None or total <= free:
        return
    rows = ", ".join(f"{name} {gib(value)}" for name, value in parts.items() if 10 * value >= total)
    fitting = [f"{name} ({gib(needed)})" for name, needed in smaller() if needed <= free]
    advice = (
        f"would fit: {'; '.join(fitting[:3])}" if fitting else "nothing smaller at this picture size fits"
    )
    raise CheckpointError(
        f"memory: {what} needs {gib(total)} GiB on {device} ({rows}), {gib(free)} are free; {advice}"
    )


def smaller_windows(plan: ChunkPlan) -> list[int]:
    """Windows of whole chunks below a plan's own, each about half of the one before, down to one chunk."""
    chunk, window = plan.chunk_frames, plan.window_frames
    out = []
    while window > chunk:
        window = max(chunk, window // 2 // chunk * chunk)
        out.append(window)
    return out


def parameter_count(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(x.numel() for x in module.parameters())


def gib(value: int) -> str:
    """Bytes as GiB, for people."""
    return f"{value / GIB:.1f}" if value >= GIB / 10 else f"{value / GIB:.2g}"
