"""One batch over several processes: each has a slab of rows of every latent frame (DeepSpeed-Ulysses, arXiv
2309.14509).

All that a network does with a token alone it does in the process that has the token's row; in attention each
process has all tokens of a share of the heads. So every process has as much to do whatever mask attention
has, and no order of tokens has to be found for that. What is around the network (loss, text, motion,
rollouts) every process of a group computes alike, from equal draws: a gradient that comes back through a
slab is taken as many times as there are slabs, and the mean over processes that data parallelism takes is
then that of the whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import AttentionContext

from .config import require

Group = dist.ProcessGroup
_GROUP: ContextVar[Group | None] = ContextVar("processes that share a batch", default=None)


@contextmanager
def shared_batch(group: Group | None) -> Iterator[None]:
    """Networks within are computed by all processes of a group together; None: by each process alone."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def velocity_of(
    dit: CausalDiT,
    latents: Tensor,
    timesteps: Tensor,
    text: TextContext,
    context: AttentionContext,
    motion: Tensor,
    guidance: Tensor | None,
) -> Tensor:
    """`dit(...)` of the same arguments, by the processes that share the batch where there are several."""
    group = _GROUP.get()
    if group is None:
        alone: Tensor = dit(latents, timesteps, text, context, motion, guidance)
        return alone
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    rows, heads = dit.token_grid(latents, motion)[0], dit.config.heads
    check_slabs(dit, size)
    fits = rows % size == 0 and heads % size == 0
    require(fits, "sequence", f"a divisor of {rows} rows of tokens and of {heads} heads", size)
    shared = _ByHeads(context, group, latents.shape[1])
    x, told = (part.chunk(size, 3)[rank].contiguous() for part in (latents, motion))
    slab: Tensor = dit(x, timesteps, text, shared, told, guidance)
    whole: Tensor = _Gathered.apply(slab.contiguous(), group)
    return whole


def check_slabs(dit: CausalDiT, size: int) -> None:
    """Raise ConfigError where no latents of a network can be shared out to `size` processes."""
    require(not dit.config.patches.overlap, "sequence", "1 where patches overlap", size)


class _ByHeads:
    """An `AttentionContext` of slabs: all tokens of a share of the heads are attended to as in `context`."""

    def __init__(self, context: AttentionContext, group: Group, frames: int) -> None:
        self.context, self.group, self.frames = context, group, frames
        self.size = dist.get_world_size(group)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`; `(B, tokens of the slabs, heads, D)`."""
        out = self.context.attend(layer, *(self._to_heads(x) for x in (q, k, v)))
        return self._to_slabs(out)

    def _to_heads(self, x: Tensor) -> Tensor:
        """`(B, T * n, H, D)` of own rows to `(B, T * N, H / size, D)`, frames in order and rows in order."""
        parts = x.unflatten(1, (self.frames, -1)).unflatten(3, (self.size, -1))
        found = self._exchanged(parts.permute(3, 0, 1, 2, 4, 5))
        return found.permute(1, 2, 0, 3, 4, 5).flatten(1, 3)

    def _to_slabs(self, x: Tensor) -> Tensor:
        """The way back."""
        parts = x.unflatten(1, (self.frames, self.size, -1))
        found = self._exchanged(parts.permute(2, 0, 1, 3, 4, 5))
        return found.permute(1, 2, 3, 0, 4, 5).flatten(3, 4).flatten(1, 2)

    def _exchanged(self, x: Tensor) -> Tensor:
        found: Tensor = _Exchanged.apply(x.contiguous(), self.group)
        return found


class _Exchanged(torch.autograd.Function):
    """`x[i]` goes to process i, and what it sends takes its place; done twice, all is where it was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchanged.apply(gradients[0].contiguous(), ctx.group), None


class _Gathered(torch.autograd.Function):
    """All slabs `(B, T, C, rows, w)` as one, in every process."""

    @staticmethod
    def forward(ctx: Any, slab: Tensor, group: Group) -> Tensor:
        ctx.size, ctx.rank = dist.get_world_size(group), dist.get_rank(group)
        slabs = [torch.empty_like(slab) for _ in range(ctx.size)]
        dist.all_gather(slabs, slab, group=group)
        return torch.cat(slabs, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # every process has computed the same from the whole, and the mean over processes comes later
        return gradients[0].chunk(ctx.size, 3)[ctx.rank] * ctx.size, None
