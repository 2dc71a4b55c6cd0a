"""A writer: low-rank changes of a network's linear layers that count for latent frames being committed alone.

One set of weights has to write a context and to denoise behind it, and the gradients of both pull two ways.
Self Gradient Forcing+ (arXiv 2610.10429) gives the commit a second full set; here it has a low-rank
difference (LoRA, arXiv 2106.09685).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# which latent frames of a forward are being committed, `(T,)`, 1 or 0; None: none of them
_FRAMES: ContextVar[Tensor | None] = ContextVar("frames that are being committed", default=None)
_PARTS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")


class WrittenLinear(nn.Linear):
    """A linear layer over `(B, T * N, in)` or `(B, T, N, in)` with a writer, which adds nothing at first."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        down = torch.randn(rank, linear.in_features) / linear.in_features**0.5
        self.writer_down = nn.Parameter(down)
        self.writer_up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out, frames = super().forward(x), _FRAMES.get()
        if frames is None:
            return out
        change = F.linear(F.linear(x, self.writer_down), self.writer_up)
        # `(B, T, ...)`, whether tokens lie in frames or in a row
        by_frame = change.unflatten(1, (len(frames), -1))
        shape = (1, -1, *(1 for _ in by_frame.shape[2:]))
        return out + (by_frame * frames.to(out).view(shape)).view_as(out)

    def merged(self) -> nn.Linear:
        """A plain layer that does for every frame what this one does for committed ones."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        change = self.writer_up.detach().float() @ self.writer_down.detach().float()
        weight = self.weight.detach()
        plain.weight = nn.Parameter((weight.float() + change).to(weight.dtype), requires_grad=False)
        plain.bias = self.bias
        return plain


@contextmanager
def written(frames: Tensor | None) -> Iterator[None]:
    """Forwards within take `frames (T,)`, 1 or 0, for those that are being committed; None: none of them."""
    token = _FRAMES.set(frames)
    try:
        yield
    finally:
        _FRAMES.reset(token)


def written_frames() -> Tensor | None:
    """What `written` was told; for blocks that are computed again later."""
    return _FRAMES.get()


def add_writer(block: nn.Module, rank: int) -> None:
    """Give the linear layers of a block a writer of a rank, in place; their weights stay what they are."""
    for name in _PARTS:
        owner, _, part = name.rpartition(".")
        setattr(block.get_submodule(owner), part, WrittenLinear(_linear(block, name), rank))


def merge_writer(block: nn.Module) -> None:
    """Make a block's layers the plain ones of a commit, in place."""
    for name in _PARTS:
        owner, _, part = name.rpartition(".")
        layer = _linear(block, name)
        assert isinstance(layer, WrittenLinear), "a block with a writer"
        setattr(block.get_submodule(owner), part, layer.merged())


def _linear(block: nn.Module, name: str) -> nn.Linear:
    layer = block.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
