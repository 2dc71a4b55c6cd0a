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
        backend = chosen_backend(q.device.type, q.shape[-1], v.shape[-1])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (at_least_float32(scores).softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2)


def chosen_backend(device_type: str, width: int, value_width: int) -> Backend:
    """What `auto` stands for: torch's fused kernel, `sdpa`, with and without a mask and with gradient.

    On CPUs scores are written out, `explicit`, where values are not as wide as keys (the doubled keys of
    `MaskedContext`): torch's CPU kernel does not take those, and what it falls back to is slower (measured:
    docs/decisions/speed.md).

    Args:
        width, value_width: of one head's keys and values.
    """
    return "explicit" if device_type == "cpu" and width != value_width else "sdpa"


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
        return normed.to(x.dtype) * self.weight
