"""The one attention entry point. Legend: B batch, L tokens (S of keys), H heads, D head dimension."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rope import at_least_float32

Backend = Literal["auto", "explicit", "sdpa"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """Softmax attention.

    Args:
        q: `(B, L, H, D)` queries.
        k, v: `(B, S, H, D)` keys and `(B, S, H, Dv)` values.
        mask: boolean, broadcastable to `(B, H, L, S)`, true where a query may look at a key; None means
            everywhere.
        backend: `auto` is `chosen_backend`.

    Returns:
        `(B, L, H, Dv)`.
    """
    if backend == "auto":
        half_trained = q.requires_grad and q.dtype in (torch.bfloat16, torch.float16)
        backend = chosen_backend(q.device.type, q.shape[-1], v.shape[-1], half_trained)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (at_least_float32(scores).softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2)


def chosen_backend(device_type: str, width: int, value_width: int, half_trained: bool = False) -> Backend:
    """What `auto` stands for: torch's fused kernel, `sdpa`, with and without a mask.

    On CPUs scores are written out, `explicit`, where values are not as wide as keys (the doubled keys of
    `MaskedContext`), which torch's CPU kernel does not take, and in half precision with gradient: its
    backward pass takes up to seven times as long there at the few tokens of a latent frame (measured:
    docs/decisions/speed.md).

    Args:
        width, value_width: of one head's keys and values.
        half_trained: in half precision, with gradient.
    """
    return "explicit" if device_type == "cpu" and (width != value_width or half_trained) else "sdpa"


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale, computed in float32 (arXiv
    1910.07467).
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        # under autocast the weight is wider than `x`, and would widen all that follows
        return normed.to(x.dtype) * self.weight.to(x.dtype)
