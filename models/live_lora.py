"""LoRAs that stay beside the weights, so that a stream can change how strong they are while it runs.

A layer computes `W x + sum_i s_i B_i A_i x` (arXiv 2106.09685) with the strengths `s` in a tensor that every
layer of the network reads: one copy before a forward sets all of them, and nothing is merged anew. Tensors
in, tensors out; errors are ValueErrors of one line.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .causal_dit import CausalDiT, twin
from .lora import Lora, check_pair, misfit, scale_of
from .state_dict import Tensors


@dataclass(frozen=True)
class LiveLoras:
    """LoRAs by name, each with the strength that a stream has where its settings do not say."""

    names: tuple[str, ...]
    defaults: tuple[float, ...]
    loras: tuple[Lora, ...]

    def strengths(self, text: str) -> tuple[float, ...]:
        """A strength for each, in order of `names`.

        Args:
            text: see `parse_strengths`.

        Raises:
            ValueError: no such text, or a name that none has.
        """
        asked = parse_strengths(text)
        unknown = [name for name in asked if name not in (*self.names, "")]
        if unknown:
            raise ValueError(f"expected names of {', '.join(self.names)}, found {unknown[0]}")
        pairs = zip(self.names, self.defaults, strict=True)
        return tuple(asked.get(name, asked.get("", default)) for name, default in pairs)


def parse_strengths(text: str) -> dict[str, float]:
    """Strengths by name from `NAME:0.5,OTHER:1`; a bare number is for all that are not named, under "".

    Raises:
        ValueError: a strength that is no finite number, or a name twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.rpartition(":")
        name = name.strip()
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise ValueError(f"expected NAME:STRENGTH with a finite number, found {part!r:.60}")
        if name in found:
            raise ValueError(f"expected each name once, found {name or 'a number for all'} twice")
        found[name] = strength
    return found


class AdaptedLinear(nn.Module):
    """A linear layer with low-rank changes beside it.

    Args:
        base: the layer, in full precision or in eight bits.
        changes: of each LoRA that has one here its number, `down (rank, in)` and `up (out, rank)`, scaled.
        strengths: `(LoRAs,)` of all LoRAs, shared by all layers; read in every forward.
    """

    down: Tensor
    up: Tensor
    which: Tensor
    strengths: Tensor

    def __init__(
        self, base: nn.Module, changes: Sequence[tuple[int, Tensor, Tensor]], strengths: Tensor
    ) -> None:
        super().__init__()
        self.base = base
        which = [number for number, down, _ in changes for _ in range(len(down))]
        self.register_buffer("down", torch.cat([down for _, down, _ in changes]), persistent=False)
        self.register_buffer("up", torch.cat([up for _, _, up in changes], 1), persistent=False)
        self.register_buffer("which", torch.tensor(which, device=strengths.device), persistent=False)
        self.register_buffer("strengths", strengths, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The layer's own."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` in the dtype of `x`."""
        low = (x @ self.down.t()) * self.strengths[self.which].to(x.dtype)
        out: Tensor = self.base(x) + low @ self.up.t()
        return out


def check_live(tensors: Mapping[str, Tensor], lora: Lora) -> None:
    """Raise ValueError where a LoRA does not fit a network, or has changes that can only be merged.

    Args:
        tensors: a DiT under our names.
    """
    problem = misfit(tensors, lora)
    if problem is not None:
        raise ValueError(problem)
    merge = "which cannot be live: merge it"
    if lora.diffs:
        raise ValueError(f"{next(iter(lora.diffs))}: a whole difference, {merge}")
    for layer, pair in lora.pairs.items():
        check_pair(tensors, layer, pair, None)
        if pair.magnitude is not None or pair.bias is not None:
            raise ValueError(f"{layer}: a {'DoRA' if pair.bias is None else 'bias'}, {merge}")
        if tensors[f"{layer}.weight"].dim() != 2:
            raise ValueError(f"{layer}: no linear layer, {merge}")


def adapted(dit: CausalDiT, loras: Sequence[Lora]) -> tuple[CausalDiT, Tensor]:
    """A network over the weights of another one with LoRAs beside its layers, and the strengths `(LoRAs,)` in
    float32 that all of its layers read: 0 until they are set.

    Args:
        dit: in full precision or in eight bits; stays as it is.
        loras: that `check_live` has passed.
    """
    weight = dit.head.head.weight
    made, strengths = twin(dit), torch.zeros(len(loras), device=weight.device)
    changes: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for number, lora in enumerate(loras):
        for layer, pair in lora.pairs.items():
            up = pair.up.float() * scale_of(layer, pair, None)
            placed = (pair.down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype))
            changes.setdefault(layer, []).append((number, *placed))
    for layer, parts in changes.items():
        holder, _, name = layer.rpartition(".")
        owner = made.get_submodule(holder)
        owner._modules[name] = AdaptedLinear(owner.get_submodule(name), parts, strengths)
    return made.eval().requires_grad_(False), strengths


def factor_tensors(loras: LiveLoras) -> Tensors:
    """All numbers of the LoRAs by name, for a fingerprint."""
    return {
        f"{name}.{layer}.{part}": value
        for name, lora in zip(loras.names, loras.loras, strict=True)
        for layer, pair in lora.pairs.items()
        for part, value in (("down", pair.down), ("up", pair.up * scale_of(layer, pair, None)))
    }
