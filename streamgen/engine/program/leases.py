"""Rings whose storage is lent: what one stream has given back the next one gets, at the same addresses, so
that what was captured for one serves the other.
"""

import weakref
from collections import deque

import torch

from models.context import ChunkPlan
from models.kv_cache import CacheRing, CacheShape, RingStorage, RopeMode
from models.rope import RotaryEmbedding3D

_Sizes = tuple[CacheShape, int, int, torch.device, torch.dtype]


class RingPool:
    """Makes rings, and keeps the storage of a few that are no more.

    Args:
        spare: how many are kept; 0 where nothing knows addresses.
    """

    def __init__(self, spare: int) -> None:
        # a stream may end in any thread, also within a collection of garbage: a deque needs no lock
        self._spare: deque[tuple[_Sizes, RingStorage]] = deque(maxlen=spare)

    def ring(
        self,
        shape: CacheShape,
        plan: ChunkPlan,
        rope: RotaryEmbedding3D,
        device: torch.device,
        dtype: torch.dtype,
        rope_mode: RopeMode = "relative",
    ) -> CacheRing:
        """An empty ring, on storage that was given back where some fits."""
        sizes = (shape, plan.attention_frames, plan.sink_frames, device, dtype)
        ring = CacheRing(shape, plan, rope, device, dtype, rope_mode, storage=self._taken(sizes))
        weakref.finalize(ring, self._spare.append, (sizes, ring.storage)).atexit = False
        return ring

    def has(self, shape: CacheShape, plan: ChunkPlan, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the next ring with these sizes needs no memory of its own."""
        sizes = (shape, plan.attention_frames, plan.sink_frames, device, dtype)
        return any(held == sizes for held, _ in list(self._spare))

    def _taken(self, sizes: _Sizes) -> RingStorage | None:
        for _ in range(len(self._spare)):
            try:
                held, storage = self._spare.popleft()
            except IndexError:
                return None
            if held == sizes:
                return storage
            self._spare.append((held, storage))
        return None
