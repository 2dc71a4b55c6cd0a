"""Which precision a device is fast in.

Processors without instructions for bfloat16 emulate it: on one with AVX2 alone a matrix product took nine
times as long as in float32.
"""

from dataclasses import replace
from typing import TypeVar

import torch

from .config import RunConfig

C = TypeVar("C", bound=RunConfig)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device computes products in bfloat16 rather than emulating them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def settled(config: C, device: torch.device) -> C:
    """The config with `precision: auto` replaced by what the device is fast in."""
    if config.precision != "auto":
        return config
    return replace(config, precision="bf16" if multiplies_bfloat16(device) else "fp32")
