"""Which attention kernel a device takes: chosen here, for all passes of a network, and told by `bench` and
`inspect`.

On CPUs torch has one fused kernel (`models.attention` says when scores are written out instead). On GPUs it
has several, and which one it takes by itself changes with its version. Here they are asked for in an order of
our own, best first, of those that torch says it can use on the device:

- from compute capability 9.0 on (Hopper) cuDNN comes first: torch's own FlashAttention 2 is not made for
  what is new there and reaches 35 % of an H100 (FlashAttention-3, arXiv 2407.08608, abstract);
- on 8.x (Ampere, Ada) FlashAttention 2 (arXiv 2307.08691) comes first;
- then the memory-efficient kernel, which takes float32 too, and last `math`, which takes everything.

Another package may stand in for torch's FlashAttention, by torch's own registry, and then comes first.
`STREAMGEN_ATTENTION` says which:

- `auto`: FlashAttention 3 on compute capability 9.x where its package is there, else torch's own;
- `fa3`: the same, or an error where it cannot be had;
- `sage`: SageAttention (arXiv 2410.02367), whose products are in eight bits, so only who asks for it gets it;
- `torch`: none.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    current_flash_attention_impl,
    register_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)

from ..errors import InputError
from ..machine import auto_device, default_dtype
from ..suggest import unknown_key

ATTENTION_VARIABLE = "STREAMGEN_ATTENTION"
ATTENTIONS = ("auto", "torch", "fa3", "sage")
# what torch's registry calls them, and the package that each needs
FA3, SAGE = "FA3", "SageAttention"
_OTHERS = {"fa3": (FA3, "flash_attn_interface"), "sage": (SAGE, "sageattention")}

_NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.MATH: "math",
}


def kernel_order(
    capability: tuple[int, int], usable: Callable[[SDPBackend], bool], replaced: bool = False
) -> tuple[SDPBackend, ...]:
    """The kernels a GPU is asked for, best first; `math` always ends the list.

    Args:
        capability: its compute capability, (9, 0) for instance.
        usable: whether torch can use a kernel there for the tensors at hand.
        replaced: whether another package stands in for torch's FlashAttention.
    """
    first, second = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    if capability >= (9, 0) and not replaced:
        first, second = second, first
    return (*filter(usable, (first, second, SDPBackend.EFFICIENT_ATTENTION)), SDPBackend.MATH)


def attention_kernels(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[SDPBackend, ...]:
    """The kernels of a device for a network's heads, best first; none where torch has but one (CPUs).

    Raises:
        InputError: `STREAMGEN_ATTENTION` asks for what is unknown, not installed, or not for this device.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    replaced = place_flash(capability) is not None
    if capability is None:
        return ()
    return kernel_order(capability, lambda kernel: _usable(kernel, device, dtype, head_dim), replaced)


def place_flash(capability: tuple[int, int] | None) -> str | None:
    """Have what the environment asks for stand in for torch's FlashAttention, in this process.

    Args:
        capability: of the device; None: no GPU.

    Returns:
        the name of what stands in; None: torch's own.

    Raises:
        InputError: it asks for what is unknown, not installed, or not for this device.
    """
    asked = os.environ.get(ATTENTION_VARIABLE) or "auto"
    if asked not in ATTENTIONS:
        raise InputError(unknown_key(asked, ATTENTIONS, noun="attention"))
    if asked == "torch" and current_flash_attention_impl() is not None:
        restore_flash_attention_impl()
    if asked == "torch" or (asked == "auto" and (capability is None or capability[0] != 9)):
        return current_flash_attention_impl()
    name, package = _OTHERS["fa3" if asked == "auto" else asked]
    if current_flash_attention_impl() == name and capability is not None:
        return name
    reason = _why_not(name, package, capability)
    if reason is None:
        return name
    if asked == "auto":
        return current_flash_attention_impl()
    raise InputError(f"attention {asked}: {reason}")


def _why_not(name: str, package: str, capability: tuple[int, int] | None) -> str | None:
    """Have it stand in; why that cannot be, or None."""
    if capability is None:
        return "runs on CUDA devices, and the model is on none"
    if name == FA3 and capability[0] != 9:
        return f"runs on compute capability 9.x, the device has {capability[0]}.{capability[1]}"
    if find_spec(package) is None:
        return f"needs the package {package}"
    if name == SAGE:
        register_flash_attention_impl(SAGE, register_fn=_Sage)
    try:
        activate_flash_attention_impl(name)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        return f"{package} does not work here ({' '.join(str(error).split())[:120]})"
    return None


class _Sage:
    """SageAttention in the place of torch's FlashAttention, until it is removed."""

    def __init__(self) -> None:
        import_module("sageattention")
        self.library: Library | None = Library("aten", "IMPL", "CUDA")
        self.library.impl("_scaled_dot_product_flash_attention", sage_attention, "CUDA")

    def remove(self) -> None:
        """See torch's `FlashAttentionHandle`."""
        self.library = None


def sage_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Torch's `_scaled_dot_product_flash_attention` by SageAttention.

    Args:
        query, key, value: `(B, H, L, D)` and `(B, H, S, D)` twice, in half precision.

    Returns:
        what torch's operation returns, `(B, H, L, D)` first. There is no backward pass in eight bits: what
        one would need is NaN, so that nobody trains through it unseen.
    """
    narrow = [x.transpose(1, 2) for x in (query, key, value)]
    made = import_module("sageattention").sageattn(
        *narrow, tensor_layout="NHD", is_causal=is_causal, sm_scale=scale
    )
    # torch's compiler counts on the query's layout
    out = torch.empty_like(query).copy_(made.transpose(1, 2))
    sums = torch.full(query.shape[:3], torch.nan, device=query.device)
    seed, offset = (torch.zeros(n, dtype=torch.uint64, device=query.device) for n in ((2,), ()))
    return out, sums, None, None, query.shape[2], key.shape[2], seed, offset, query.new_empty(0)


def attention_text(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The choice in words, as `bench` and `inspect` print it."""
    if device.type == "cpu":
        return "torch, fused on the CPU"
    names = [_NAMES[kernel] for kernel in attention_kernels(device, dtype, head_dim)]
    other = current_flash_attention_impl()
    told = [f"{name} ({other})" if other and name == "flash" else name for name in names]
    return ", then ".join(told) or "torch decides"


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
