"""Which attention kernel a device takes: chosen here, for all passes of a network, and told by `bench` and
`inspect`.

On CPUs torch has one fused kernel (`models.attention` says when scores are written out instead). On GPUs it
has several, and which one it takes by itself changes with its version. Here they are asked for in an order of
our own, best first, of those that torch says it can use on the device:

- from compute capability 9.0 on (Hopper) cuDNN comes first: torch's own FlashAttention 2 is not made for
  what is new there and reaches 35 % of an H100 (FlashAttention-3, arXiv 2407.08608, abstract);
- on 8.x (Ampere, Ada) FlashAttention 2 (arXiv 2307.08691) comes first;
- then the memory-efficient kernel, which takes float32 too, and last `math`, which takes everything.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..machine import auto_device, default_dtype

_NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.MATH: "math",
}


def kernel_order(capability: tuple[int, int], usable: Callable[[SDPBackend], bool]) -> tuple[SDPBackend, ...]:
    """The kernels a GPU is asked for, best first; `math` always ends the list.

    Args:
        capability: its compute capability, (9, 0) for instance.
        usable: whether torch can use a kernel there for the tensors at hand.
    """
    first, second = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    if capability >= (9, 0):
        first, second = second, first
    return (*filter(usable, (first, second, SDPBackend.EFFICIENT_ATTENTION)), SDPBackend.MATH)


def attention_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[SDPBackend, ...]:
    """The kernels of a device for a network's heads, best first; none where torch has but one (CPUs)."""
    if device.type != "cuda":
        return ()
    capability = torch.cuda.get_device_capability(device)
    return kernel_order(capability, lambda kernel: _usable(kernel, device, dtype, head_dim))


def attention_text(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The choice in words, as `bench` and `inspect` print it."""
    if device.type == "cpu":
        return "torch, fused on the CPU"
    kernels = attention_kernels(device, dtype, head_dim)
    return ", then ".join(_NAMES[kernel] for kernel in kernels) or "torch decides"


def own_attention_text(head_dim: int) -> str:
    """The choice for a model as it is loaded by default on this machine."""
    device = auto_device()
    return f"{device}: {attention_text(device, default_dtype(device), head_dim)}"


def attention_scope(kernels: tuple[SDPBackend, ...]) -> AbstractContextManager[object]:
    """While this lasts torch takes the kernels in their order; without any it decides by itself."""
    return sdpa_kernel(list(kernels), set_priority=True) if kernels else nullcontext()


def _usable(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch can use a kernel for attention as the networks do it: no mask, nothing dropped."""
    backends = torch.backends.cuda
    probe = {
        SDPBackend.CUDNN_ATTENTION: backends.can_use_cudnn_attention,
        SDPBackend.FLASH_ATTENTION: backends.can_use_flash_attention,
        SDPBackend.EFFICIENT_ATTENTION: backends.can_use_efficient_attention,
    }[kernel]
    x = torch.empty(1, 1, 128, head_dim, device=device, dtype=dtype)
    return bool(probe(backends.SDPAParams(x, x, x, None, 0.0, False, False)))
