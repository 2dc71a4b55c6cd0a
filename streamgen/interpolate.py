"""Text embeddings between others: linear and spherical, of two or more.

Spherical interpolation follows Shoemake (SIGGRAPH 1985), token by token, as the transitions of other systems
do (Krea Realtime, Daydream Scope); lengths go linearly.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Way = Literal["linear", "spherical"]

# Tokens whose directions are closer to parallel or opposite than this are interpolated linearly: in float32
# the angle between equal ones comes out as up to 5e-4.
_PARALLEL = 2e-3


def between(first: Tensor, second: Tensor, share: float, way: Way = "linear") -> Tensor:
    """The embedding that lies `share` of the way from one to another.

    Args:
        first, second: `(..., L, dim)`, any dtype; computed in float32.
        share: in [0, 1]; at 0 and 1 it is the one or the other itself.
        way: `linear`, or `spherical` for each token; a token that only one of them has goes linearly.

    Returns:
        `(..., L, dim)` in the dtype of `second`.
    """
    if share <= 0 or share >= 1:
        return first.to(second.dtype) if share <= 0 else second
    a, b = first.float(), second.float()
    straight = torch.lerp(a, b, share)
    if way == "linear":
        return straight.to(second.dtype)
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    unit_a, unit_b = a / lengths[0].clamp_min(1e-12), b / lengths[1].clamp_min(1e-12)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    turned = torch.sin((1 - share) * angle) * unit_a + torch.sin(share * angle) * unit_b
    curved = turned / sine.clamp_min(1e-12) * torch.lerp(lengths[0], lengths[1], share)
    return torch.where(both & (sine > _PARALLEL), curved, straight).to(second.dtype)


def blended(embeddings: Sequence[Tensor], weights: Sequence[float], way: Way = "linear") -> Tensor:
    """The weighted mean of embeddings; spherical ones are joined one after the other.

    Args:
        embeddings: `(..., L, dim)` each.
        weights: at least 0, not all of them 0; their sum does not matter.
    """
    made, sofar = embeddings[0], float(weights[0])
    for embedding, weight in zip(embeddings[1:], weights[1:], strict=True):
        sofar += weight
        if weight > 0:
            made = between(made, embedding, weight / sofar, way)
    return made
