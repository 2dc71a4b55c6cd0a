"""LoRAs that stay beside the weights, so that a stream can change how strong they are while it runs.

A layer computes `W x + sum_i s_i B_i A_i x` (arXiv 2106.09685) with the strengths `s` in a tensor that every
layer of the network reads: one copy before a forward sets all of them, and nothing is merged anew. Tensors
in, tensors out; errors are ValueErrors of one line.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .causal_dit import CausalDiT, twin
from .lora import Lora, check_pair, misfit, scale_of
from .state_dict import Tensors

# A LoRA is made for 1; nobody means more than this.
MAX_STRENGTH = 100.0

# scaled factors of LoRAs side by side: `down (ranks, in)`, `up (out, ranks)`, and which LoRA each rank is of
LayerFactors = tuple[Tensor, Tensor, Tensor]
Factors = Mapping[str, LayerFactors]


@dataclass(frozen=True)
class LiveLoras:
    """LoRAs by name, each with the strength that a stream has where its settings do not say."""

    names: tuple[str, ...]
    defaults: tuple[float, ...]
    loras: tuple[Lora, ...]
    _placed: dict[tuple[torch.device, torch.dtype], Factors] = field(default_factory=dict, compare=False)

    def factors(self, device: torch.device, dtype: torch.dtype) -> Factors:
        """Their factors where a network lies, made once: all networks there read the same."""
        if (device, dtype) not in self._placed:
            self._placed[device, dtype] = self._made(device, dtype)
        return self._placed[device, dtype]

    def _made(self, device: torch.device, dtype: torch.dtype) -> Factors:
        layers = dict.fromkeys(layer for lora in self.loras for layer in lora.pairs)
        return {layer: self._beside(layer, device, dtype) for layer in layers}

    def _beside(self, layer: str, device: torch.device, dtype: torch.dtype) -> LayerFactors:
        pairs = [(n, lora.pairs[layer]) for n, lora in enumerate(self.loras) if layer in lora.pairs]
        down = torch.cat([pair.down.to(device, dtype) for _, pair in pairs])
        scaled = (pair.up.float() * scale_of(layer, pair, None) for _, pair in pairs)
        up = torch.cat([x.to(device, dtype) for x in scaled], 1)
        which = [number for number, pair in pairs for _ in range(len(pair.down))]
        return down, up, torch.tensor(which, device=device)

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
        ValueError: a strength that is no number in -100..100, or a name twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.rpartition(":")
        name = name.strip()
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not abs(strength) <= MAX_STRENGTH:
            most = f"{MAX_STRENGTH:g}"
            raise ValueError(f"expected NAME:STRENGTH with a number in -{most}..{most}, found {part!r:.60}")
        if name in found:
            raise ValueError(f"expected each name once, found {name or 'a number for all'} twice")
        found[name] = strength
    return found


def factor_count(loras: Sequence[Lora]) -> int:
    """How many numbers the factors of LoRAs have."""
    return sum(pair.down.numel() + pair.up.numel() for lora in loras for pair in lora.pairs.values())


class AdaptedLinear(nn.Module):
    """A linear layer with low-rank changes beside it.

    Args:
        base: the layer, in full precision or in eight bits.
        factors: of the layer.
        strengths: `(LoRAs,)` of all LoRAs, shared by all layers; read in every forward.
    """

    down: Tensor
    up: Tensor
    which: Tensor
    strengths: Tensor

    def __init__(self, base: nn.Module, factors: LayerFactors, strengths: Tensor) -> None:
        super().__init__()
        self.base = base
        for name, value in zip(("down", "up", "which"), factors, strict=True):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("strengths", strengths, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The layer's own."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` in the dtype of `x`."""
        low = (x @ self.down.t()) * self.strengths[self.which].to(x.dtype)
        out: Tensor = self.base(x)
        # into the layer's own output: another of its size is what a step would not have room for
        out.flatten(0, -2).addmm_(low.flatten(0, -2), self.up.t())
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


def adapted(dit: CausalDiT, loras: LiveLoras) -> tuple[CausalDiT, Tensor]:
    """A network over the weights of another one with LoRAs beside its layers, and the strengths `(LoRAs,)` in
    float32 that all of its layers read: 0 until they are set.

    Args:
        dit: in full precision or in eight bits; stays as it is.
        loras: that `check_live` has passed.
    """
    weight = dit.head.head.weight
    made, strengths = twin(dit), torch.zeros(len(loras.names), device=weight.device)
    for layer, factors in loras.factors(weight.device, weight.dtype).items():
        holder, _, name = layer.rpartition(".")
        owner = made.get_submodule(holder)
        owner._modules[name] = AdaptedLinear(owner.get_submodule(name), factors, strengths)
    return made.eval().requires_grad_(False), strengths


def factor_tensors(loras: LiveLoras) -> Tensors:
    """All numbers of the LoRAs by name, for a fingerprint."""
    return {
        f"{name}.{layer}.{part}": value
        for name, lora in zip(loras.names, loras.loras, strict=True)
        for layer, pair in lora.pairs.items()
        for part, value in (("down", pair.down), ("up", pair.up * scale_of(layer, pair, None)))
    }
