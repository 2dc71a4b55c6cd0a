"""Several consecutive chunks in one forward over a ring: the frontier of a stream.

Each chunk attends to what it would attend to by itself: its sink, its own window of the chunks before it, and
itself. Those before it that are committed lie in the ring; those that are not are in the same forward, at
whatever noise level they have there, and lend the keys that they make in it. The first one may be a finished
chunk that is being committed; no other leaves anything in the ring.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .attention import attend
from .kv_cache import CacheCursor, CacheRing, CacheView, runs
from .rope import RotaryTables, rotate


class Link(Protocol):
    """Where the keys of chunks come from that another process computes."""

    def joined(self, layer: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values `(1, L, H, D)`, unrotated, of all older chunks of the forward and these; None where
        a process has no chunk in it.
        """
        ...


class Alone:
    """One process computes all chunks of a forward."""

    def joined(self, layer: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Link`."""
        if k is None or v is None:
            raise ValueError("a process by itself computes some of the chunks of each forward")
        return k, v


@dataclass(frozen=True)
class _Reach:
    """What one chunk attends to.

    Attributes:
        own: its tokens among those of this process.
        held, coming: tokens of the sink that are committed, and that the forward's first ones are.
        sink: rotation of both.
        kept: ranges of the ring, of the window.
        flight: range of the forward's tokens, of the window and the chunk itself.
    """

    own: slice
    held: int
    coming: int
    sink: RotaryTables
    kept: list[slice]
    flight: slice


class FrontierContext:
    """The `AttentionContext` of consecutive chunks, batch 1, without gradient.

    Args:
        ring, cursor: the cache, and what of it counts.
        lengths: latent frames of the chunks, which follow the cursor.
        commits: whether the first one is being committed: its keys and values go behind the cursor.
        first, stop: which of them this process computes.
        link: to those that it does not.

    Raises:
        ValueError: a cursor whose content is lost, or the end of absolute positions.
    """

    def __init__(
        self,
        ring: CacheRing,
        cursor: CacheCursor,
        lengths: Sequence[int],
        commits: bool,
        first: int = 0,
        stop: int | None = None,
        link: Link | None = None,
    ) -> None:
        if not ring.intact(cursor):
            raise ValueError("the cache does not hold what this cursor points to: rebuild it first")
        if not ring.fits(cursor, sum(lengths)):
            raise ValueError(f"absolute positions end at latent frame {ring.max_positions}")
        self.ring, self.cursor, self.link = ring, cursor, link or Alone()
        self.view: CacheView | None = ring.view(cursor, lengths[0]) if commits else None
        stop, n = len(lengths) if stop is None else stop, ring.shape.tokens
        starts = [cursor.frames + sum(lengths[:i]) for i in range(len(lengths) + 1)]
        times = torch.arange(cursor.frames, starts[stop], device=ring.device)
        self.tables = ring.rope.tables(times, *ring.shape.grid)
        before = (starts[first] - cursor.frames) * n
        self.own = RotaryTables(self.tables.cos[before:], self.tables.sin[before:])
        self.reaches = [self._reach(starts[i], lengths[i], starts[first]) for i in range(first, stop)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`; `(1, L, H, D)` of the tokens of this process's chunks."""
        keys, values = self.link.joined(layer, k, v)
        rotated, q = rotate(keys, self.tables), rotate(q, self.own)
        self._commit(layer, keys, rotated, values)
        return torch.cat([self._attended(layer, q, keys, rotated, values, each) for each in self.reaches], 1)

    def absorb(self, layer: int) -> None:
        """The part of a process without a chunk: to keep what is committed."""
        keys, values = self.link.joined(layer, None, None)
        self._commit(layer, keys, rotate(keys, self.tables), values)

    def _reach(self, start: int, frames: int, first: int) -> _Reach:
        ring, plan, n, committed = self.ring, self.ring.plan, self.ring.shape.tokens, self.cursor.frames
        sink = min(start, plan.sink_frames)
        held = min(committed, sink)
        moved = plan.sink_shift(start) if ring.rope_mode == "relative" else self.cursor.sink_start
        lowest = max(plan.sink_frames, start - plan.window_frames)
        slots = [ring.slot(frame) for frame in range(lowest, committed)]
        flight = min(max(lowest, committed), start)
        return _Reach(
            slice((start - first) * n, (start + frames - first) * n),
            held * n,
            (sink - held) * n,
            ring.sink_tables(moved, sink),
            [place for _, place in runs(slots, n)],
            slice((flight - committed) * n, (start + frames - committed) * n),
        )

    def _attended(
        self, layer: int, q: Tensor, keys: Tensor, rotated: Tensor, values: Tensor, reach: _Reach
    ) -> Tensor:
        ring, parts_k, parts_v = self.ring, [], []
        if reach.held or reach.coming:
            sink = torch.cat([ring.sink_keys[layer, :, : reach.held], keys[:, : reach.coming]], 1)
            parts_k.append(rotate(sink, reach.sink))
            parts_v += [ring.values[layer, :, : reach.held], values[:, : reach.coming]]
        for place in reach.kept:
            parts_k.append(ring.keys[layer, :, place])
            parts_v.append(ring.values[layer, :, place])
        parts_k.append(rotated[:, reach.flight])
        parts_v.append(values[:, reach.flight])
        return attend(q[:, reach.own], torch.cat(parts_k, 1), torch.cat(parts_v, 1))

    def _commit(self, layer: int, keys: Tensor, rotated: Tensor, values: Tensor) -> None:
        if self.view is not None:
            self.view.write(layer, keys, rotated, values)
