"""Quantised linear layers back to floating point numbers, whatever names their scales have.

Layouts: ComfyUI's scaled fp8 (`X.scale_weight`, the marker `scaled_fp8`) and its newer names
(`X.weight_scale`, `X.input_scale`), LightX2V (int8 or fp8 `X.weight` with `X.weight_scale` per row),
TurboDiffusion (`X.int8_weight` with `X.scale` per block of 128 x 128), fp8 without scales, which are plain
numbers. Scales of activations are for kernels that compute in 8 bits and are dropped.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = 128
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER = "scaled_fp8"


def dequantized(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Tensors with every quantised weight as numbers, and a word for what it was; None where nothing was.

    Weights take the dtype that most unquantised numbers of the file have, bfloat16 where there are none.

    Raises:
        ValueError: a scale is missing, left over or of another shape, or the weights are packed in 4 bits.
    """
    scales = {name for name in tensors if _scale_stem(name) is not None}
    codes = {name for name, tensor in tensors.items() if _is_code(name, tensor)}
    packed = next((n for n, x in tensors.items() if n.endswith(".weight") and x.dtype == torch.uint8), None)
    if packed is not None:
        raise ValueError(
            f"{packed}: expected 8 bits or more for each number, found weights packed in bytes (NVFP4 or "
            "GGUF, which are not read): use the fp8, int8 or bf16 file"
        )
    if not codes and not scales and not any(_is_unused(name) for name in tensors):
        return dict(tensors), None
    dtype = _plain_dtype(tensors, codes | scales)
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if name in scales or _is_unused(name):
            continue
        if name not in codes:
            out[name] = tensor
            continue
        stem = name.removesuffix(".int8_weight").removesuffix(".weight")
        scale = next((stem + end for end in _SCALES if stem + end in scales), None)
        if scale is None and (scales or tensor.dtype == torch.int8):
            raise ValueError(
                f"{name}: {_word(tensor)} numbers without their scale, expected {stem}.weight_scale"
            )
        used |= {scale} if scale is not None else set()
        target = stem + ".weight" if name.endswith(".int8_weight") else name
        out[target] = _numbers(name, tensor, None if scale is None else tensors[scale]).to(dtype)
    if scales - used:
        raise ValueError(f"{min(scales - used)}: a scale without the weights that it is for")
    return out, _words(tensors, codes, used)


def _scale_stem(name: str) -> str | None:
    return next((name.removesuffix(end) for end in _SCALES if name.endswith(end)), None)


def _is_unused(name: str) -> bool:
    return name.endswith(_UNUSED) or name.rpartition(".")[2] == _MARKER


def _is_code(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that are to be scaled."""
    if _is_unused(name):
        return False
    whole = tensor.dtype == torch.int8 and name.endswith((".weight", ".int8_weight"))
    return whole or (tensor.dtype in _FP8 and _scale_stem(name) is None)


def _plain_dtype(tensors: Mapping[str, Tensor], left_out: set[str]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for name, tensor in tensors.items():
        if name not in left_out and tensor.dtype in _PLAIN:
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _numbers(name: str, codes: Tensor, scale: Tensor | None) -> Tensor:
    """`codes` times their scale, in float32."""
    numbers = codes.to(torch.float32)
    if scale is None:
        return numbers
    scale = scale.to(torch.float32)
    rows = codes.shape[0] if codes.dim() else 1
    if scale.numel() == 1:
        return numbers.mul_(scale.reshape(()))
    if scale.shape in ((rows,), (rows, 1)):
        return numbers.mul_(scale.reshape(rows, *(1,) * (codes.dim() - 1)))
    blocks = tuple(-(-size // BLOCK) for size in codes.shape)
    if tuple(scale.shape) == blocks:
        for axis, size in enumerate(codes.shape):
            scale = scale.repeat_interleave(BLOCK, axis).narrow(axis, 0, size)
        return numbers.mul_(scale)
    raise ValueError(
        f"{name}: expected a scale for all of {tuple(codes.shape)}, for each row, or for each block of "
        f"{BLOCK} x {BLOCK}, found shape {tuple(scale.shape)}"
    )


def _word(tensor: Tensor) -> str:
    return "int8" if tensor.dtype == torch.int8 else "fp8"


def _words(tensors: Mapping[str, Tensor], codes: set[str], used: set[str]) -> str | None:
    if not codes:
        return None
    kinds = " and ".join(sorted({_word(tensors[name]) for name in codes}))
    return f"{kinds} ({'scaled' if used else 'without scales'})"
