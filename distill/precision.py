"""Which precision a device is fast in.

Processors differ: with AVX2 alone a product of matrices takes nine times as long in bfloat16 as in float32,
with AVX-512 BF16 half or twice as long, depending on the make, with AMX a fraction. What a processor says
that it can do does not tell, so it is measured.
"""

import time
from dataclasses import replace
from functools import cache
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list

from .config import RunConfig

C = TypeVar("C", bound=RunConfig)

# Rows, inner width and columns of a tiny model's layer over some windows.
_SHAPE = (1024, 256, 1024)
_ROUNDS = 5
# Casting costs time, too: products alone have to be faster by a quarter.
_GAIN = 0.8


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device is faster with products in bfloat16 than in float32; measured once, in some 50 ms."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return _seconds(torch.bfloat16) < _GAIN * _seconds(torch.float32)
    return False


def settled(config: C, device: torch.device) -> C:
    """The config with `precision: auto` replaced by what the device of the main process is fast in."""
    if config.precision != "auto":
        return config
    faster = [multiplies_bfloat16(device)]
    broadcast_object_list(faster)
    return replace(config, precision="bf16" if faster[0] else "fp32")


@cache
def _seconds(dtype: torch.dtype) -> float:
    """The least time of a product of matrices on the processor."""
    rows, inner, columns = _SHAPE
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    times = []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    # the first one builds the kernel
    return min(times[1:])
