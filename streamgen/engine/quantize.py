"""Linear layers in eight bits: what a network's products of matrices cost, in half the bytes.

Two kinds, both with a scale for each token and one for each output channel, so that neither an unusual token
nor an unusual channel costs the others precision:

- `int8`: whole numbers of -127 to 127 (LLM.int8(), arXiv 2208.07339, without its outliers; SmoothQuant, arXiv
  2211.10438, calls it per-token dynamic), products summed in 32 bits;
- `fp8`: e4m3 (arXiv 2209.05433), up to 448 with 3 bits of mantissa.

Only the linear layers of the blocks that every token passes in every step: not the embeddings, the modulation
and the head, through which everything goes, and not keys and values of the words, which are made once a
prompt: so sessions in eight bits and in full precision share their texts.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig, DiTBlock, twin

from ..errors import InputError
from ..suggest import unknown_key

Quantization = Literal["int8", "fp8"]
# of linear layers, of the cache, of both
QUANTIZATIONS = ("none", "int8", "fp8", "cache", "int8+cache", "fp8+cache")
CACHE = "cache"
# where none is asked for
QUANTIZE_VARIABLE = "STREAMGEN_QUANTIZE"
# of a network's weights, those that are rounded, and what their scales are called in a file
_ROUNDED = re.compile(r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qo]|ffn\.[02])\.weight")
_SCALE = "_scale"
_LARGEST = {"int8": 127.0, "fp8": 448.0}
_STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# rows and columns that kernels want: int8 more than 16 rows and multiples of 8, fp8 multiples of 16
_ROWS, _MULTIPLE = 17, 16


class QuantizedLinear(nn.Module):
    """A linear layer in eight bits, made of one in full precision.

    Args:
        linear: its weights are rounded here, its bias is shared.
        kind: `int8` or `fp8`.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        super().__init__()
        weight, scale = rounded(linear.weight.detach(), kind)
        self._hold(kind, weight, scale)
        self.bias: Tensor | None = linear.bias

    def _hold(self, kind: Quantization, weight: Tensor, scale: Tensor) -> None:
        self.kind: Quantization = kind
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, bias: Tensor | None, kind: Quantization) -> "QuantizedLinear":
        """A layer of weights `(out, in)` that `rounded` has made, with their scale `(out, 1)`."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._hold(kind, weight, scale)
        made.bias = bias
        return made

    @classmethod
    def joined(cls, parts: "Sequence[QuantizedLinear]") -> "QuantizedLinear":
        """Layers of one input as one, their outputs side by side: the same numbers, rounded input included,
        since each output channel has a scale of its own.
        """
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases if b is not None])
        weight, scale = torch.cat([part.weight for part in parts]), torch.cat([part.scale for part in parts])
        return cls.of(weight, scale, bias, parts[0].kind)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` in the dtype of `x`."""
        rows, scale = rounded(x.flatten(0, -2), self.kind)
        out = _PRODUCTS[self.kind](rows, scale, self.weight, self.scale, x.dtype)
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1])


def rounded(x: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Rows `(N, D)` in eight bits, and the scale `(N, 1)` in float32 that each is to be multiplied with."""
    wide = x.float()
    # of the two ends, since absolute values would be another tensor of its size
    largest = torch.maximum(wide.amax(-1, keepdim=True), -wide.amin(-1, keepdim=True))
    scale = largest.clamp(min=1e-12) / _LARGEST[kind]
    small = wide / scale if wide is x else wide.div_(scale)
    if kind == "int8":
        return small.round_().to(torch.int8), scale
    # beyond its largest number the format has none
    return small.clamp(-_LARGEST[kind], _LARGEST[kind]).to(_STORED[kind]), scale


def _int8_product(
    rows: Tensor, scale: Tensor, weight: Tensor, channels: Tensor, dtype: torch.dtype
) -> Tensor:
    count = len(rows)
    if count < _ROWS:
        rows = F.pad(rows, (0, 0, 0, _ROWS - count))
    sums = torch._int_mm(rows, weight.t())[:count].float()
    return sums.mul_(scale).mul_(channels).to(dtype)


def _fp8_product(rows: Tensor, scale: Tensor, weight: Tensor, channels: Tensor, dtype: torch.dtype) -> Tensor:
    # with a scale for each row GPUs give bfloat16 alone
    out = dtype if rows.device.type == "cpu" else torch.bfloat16
    product = torch._scaled_mm(rows, weight.t(), scale, channels[None], out_dtype=out)
    return product.to(dtype)


_PRODUCTS = {"int8": _int8_product, "fp8": _fp8_product}


def product(kind: Quantization, rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A square of rounded rows with itself, `rows @ rows.T`: what a kernel is tried and timed with."""
    return _PRODUCTS[kind](rows, scale, rows, scale.flatten(), dtype)


def quantized(dit: CausalDiT, kind: Quantization) -> CausalDiT:
    """A network whose blocks' linear layers are in eight bits. All else it shares with the given one, which
    stays as it is.

    Raises:
        InputError: the device, torch or the network's sizes do not allow it.
    """
    reason = unsupported(dit, kind)
    if reason is not None:
        raise InputError(f"quantize {kind}: {reason}")
    made = twin(dit)
    with torch.no_grad():
        for block in made.blocks:
            for holder, name in _places(cast(DiTBlock, block)):
                holder._modules[name] = QuantizedLinear(cast(nn.Linear, holder._modules[name]), kind)
    return made.eval()


def hold_rounded(dit: nn.Module, held: Mapping[str, tuple[Tensor, Tensor]], kind: Quantization) -> None:
    """Put weights in eight bits into a network in place of its own, which need not be there: `(out, in)` with
    scales `(out, 1)`, as `rounded` makes them, by the names of those that `is_rounded`.
    """
    for name, (weight, scale) in held.items():
        layer = name.removesuffix(".weight")
        holder, _, place = layer.rpartition(".")
        owner = dit.get_submodule(holder)
        bias = cast(nn.Linear, owner._modules[place]).bias
        owner._modules[place] = QuantizedLinear.of(weight, scale, bias, kind)


def is_rounded(name: str) -> bool:
    """Whether a tensor of a network is a weight that eight bits round."""
    return _ROUNDED.fullmatch(name) is not None


def stored(tensors: Mapping[str, Tensor], kind: Quantization) -> dict[str, Tensor]:
    """Tensors of a network for a file: the weights that `quantized` rounds in eight bits, each with its scale
    `(out, 1)` in float32 under `<name>_scale`; the others as they are.
    """
    out = dict(tensors)
    for name in filter(is_rounded, tensors):
        out[name], out[name + _SCALE] = rounded(tensors[name], kind)
    return out


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file that `stored` made, in float32 where they were rounded: rounding them once more gives
    the same eight bits. Others come back as they are.
    """
    scales = {name for name in tensors if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors}
    out = {name: x for name, x in tensors.items() if name not in scales}
    for scale in scales:
        name = scale.removesuffix(_SCALE)
        out[name] = tensors[name].float() * tensors[scale]
    return out


def quantization(dit: CausalDiT) -> Quantization | None:
    """In which eight bits a network computes; None in full precision."""
    first = next((m for m in dit.modules() if isinstance(m, QuantizedLinear)), None)
    return None if first is None else first.kind


def of_linears(name: str) -> str:
    """What a quantisation says of linear layers: `none`, `int8` or `fp8`."""
    return name.removesuffix(CACHE).removesuffix("+") or "none"


def check_cache(runner: str, asked: bool, processes: int | None) -> None:
    """Raise InputError where a cache in eight bits cannot be had: the plain runner reads one, alone.

    Args:
        processes: that share a stream; None for a stream of this one.
    """
    if processes is not None:
        raise InputError(f"quantize cache: not over {processes} processes")
    if asked and runner not in ("auto", "plain"):
        raise InputError(f"quantize cache: with runner plain, found {runner}")


def keeps_cache(name: str | None) -> bool:
    """Whether a quantisation has the cache in eight bits."""
    return name is not None and name.endswith(CACHE)


def default_quantization() -> str | None:
    """What is taken where none is asked for or recorded, as the environment says; None where it does not.

    Raises:
        InputError: the environment names an unknown one.
    """
    told = os.environ.get(QUANTIZE_VARIABLE)
    return check_quantization(told) if told else None


def check_quantization(name: str) -> str:
    """One of `QUANTIZATIONS`.

    Raises:
        InputError: another one.
    """
    if name not in QUANTIZATIONS:
        raise InputError(unknown_key(name, QUANTIZATIONS, noun="quantisation"))
    return name


def unsupported(dit: CausalDiT, kind: Quantization) -> str | None:
    """Why a network cannot compute in eight bits where it lies; None where it can."""
    weight = dit.head.head.weight
    return cannot_be(dit.config, weight.device, weight.dtype, kind)


def cannot_be(
    config: CausalDiTConfig, device: torch.device, dtype: torch.dtype, kind: Quantization
) -> str | None:
    """`unsupported` of a network that is not there yet."""
    for what, size in (("dim", config.dim), ("ffn_dim", config.ffn_dim)):
        if size % _MULTIPLE:
            return f"expected a {what} that is a multiple of {_MULTIPLE}, found {size}"
    return kernel_missing(device, dtype, kind)


def kernel_missing(device: torch.device, dtype: torch.dtype, kind: Quantization) -> str | None:
    """Why a device has no kernel for products in eight bits, in one line; None where it has one: it is
    tried.
    """
    try:
        with torch.no_grad():
            out = product(kind, *rounded(torch.ones(32, 32, device=device, dtype=dtype), kind), dtype)
            if not bool((out - 32).abs().max() < 1):
                return f"the kernel of torch {torch.__version__} on {device} gives other numbers"
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        return f"torch {torch.__version__} has no kernel for it on {device} ({why})"
    return None


def _places(block: DiTBlock) -> list[tuple[nn.Module, str]]:
    """Where a block's linear layers are that every token passes."""
    own = [(block.self_attn, name) for name in ("q", "k", "v", "o")]
    words = [(block.cross_attn, name) for name in ("q", "o")]
    return [*own, *words, (block.ffn, "0"), (block.ffn, "2")]
