"""The KV cache of a stream: sink, ring of window slots, and the provisional slots of the chunk in work.

Slot order is [provisional chunk | sink | ring]; a chunk is written at the end of its slots, so that what it
attends to is one contiguous range at every fill level and nothing is ever copied on eviction: the ring's
oldest slots are overwritten. Softmax does not depend on the order of keys, and positions are ranks in age
order, never physical slots.

Positions (see docs/decisions/stream.md, 'Positions are ranks'): attention sees position differences only. A
window key is rotated once at its own cache time; only the sink's keys, kept unrotated, are rotated anew when
the window has moved on, to lie directly before the window. Host integers are the truth about cursors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .attention import attend
from .context import ChunkPlan
from .rope import RotaryEmbedding3D, RotaryTables, rotate

RopeMode = Literal["relative", "absolute"]


@dataclass(frozen=True)
class CacheShape:
    """Static sizes of a cache: what the network and the latent geometry dictate."""

    layers: int
    heads: int
    head_dim: int
    grid: tuple[int, int]
    batch: int = 1

    @property
    def tokens(self) -> int:
        """Tokens per latent frame."""
        return self.grid[0] * self.grid[1]


class KVCache:
    """Keys and values of a stream's context, allocated once.

    Use: `begin(n)`, any number of network forwards (each overwrites the provisional slots), one last forward
    of the finished chunk, then `commit()`. Until `commit` returns, the context is as before: an exception in
    between costs nothing.

    Args:
        shape: sizes of the network and its token grid.
        plan: chunk, sink and window, in latent frames.
        rope: the network's rotary embedding.
        rope_mode: `relative` (ranks, endless) or `absolute` (every key at its own time, for weights trained
            so).
        max_positions: with `absolute`, the number of latent frames the weights know.
    """

    def __init__(
        self,
        shape: CacheShape,
        plan: ChunkPlan,
        rope: RotaryEmbedding3D,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        rope_mode: RopeMode = "relative",
        max_positions: int = 1024,
    ) -> None:
        self.shape, self.plan, self.rope = shape, plan, rope
        self.device, self.dtype = device, dtype
        self.rope_mode, self.max_positions = rope_mode, max_positions
        n = shape.tokens
        head = (shape.layers, shape.batch)
        tail = (shape.heads, shape.head_dim)
        self.keys = torch.zeros(*head, plan.attention_frames * n, *tail, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.sink_keys = torch.zeros(*head, plan.sink_frames * n, *tail, device=device, dtype=dtype)
        self.frames = 0
        self._begun = 0
        self._sink_shift = 0
        # the time of the sink's first frame with absolute positions: 0 until a joint recache replaces it
        self._sink_start = 0
        self._tables: RotaryTables | None = None

    def reset(self, keep_sink: bool = False) -> None:
        """Forget everything, or everything but the sink; nothing is freed or allocated."""
        self.frames = min(self.frames, self.plan.sink_frames) if keep_sink else 0
        self._begun = self._sink_start = 0
        # whatever position the sink was rotated to, `begin` rotates it again
        self._sink_shift = -1 if self.frames else 0

    @property
    def context_frames(self) -> int:
        """Latent frames in the context now: filled sink and window slots."""
        return min(self.frames, self.plan.context_frames)

    def fits(self, frames: int) -> bool:
        """Whether there are positions for `frames` more latent frames; relative ones never end."""
        return self.rope_mode == "relative" or self.frames + frames <= self.max_positions

    def begin(self, frames: int) -> None:
        """Prepare positions for a chunk of `frames` latent frames that follows what is committed.

        Raises:
            ValueError: more frames than a chunk has, or (absolute positions) the end of the position table.
        """
        if not 1 <= frames <= self.plan.chunk_frames:
            raise ValueError(f"a chunk has 1 to {self.plan.chunk_frames} latent frames, asked for {frames}")
        if not self.fits(frames):
            raise ValueError(
                f"absolute positions end at latent frame {self.max_positions}, asked for "
                f"{self.frames + frames}; "
                "open the stream with relative positions for longer ones"
            )
        times = torch.arange(self.frames, self.frames + frames, device=self.device)
        self._tables = self.rope.tables(times, *self.shape.grid)
        self._begun = frames
        self._rotate_sink()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the chunk's tokens over sink, window and themselves (see `AttentionContext`).

        Without gradient and at the cache's own batch size, keys and values go to the provisional slots. With
        gradient, or for a multiple of the batch (guidance branches over one shared context, one whole batch
        after the other), they stay live and are concatenated to the detached context.
        """
        if self._tables is None or not self._begun:
            raise RuntimeError("KVCache.attend before KVCache.begin")
        q, rotated = rotate(q, self._tables), rotate(k, self._tables)
        n = self.shape.tokens
        split = self.plan.chunk_frames * n
        end = split + self.context_frames * n
        live = torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or q.requires_grad)
        if live or k.shape[0] != self.shape.batch:
            # branches lie one after the other, each the size of the cache's batch
            branches = (k.shape[0] // self.shape.batch, -1, -1, -1, -1)
            past_k = self.keys[layer, None, :, split:end].expand(branches).flatten(0, 1)
            past_v = self.values[layer, None, :, split:end].expand(branches).flatten(0, 1)
            return attend(q, torch.cat([rotated, past_k], 1), torch.cat([v, past_v], 1))
        start = split - self._begun * n
        self.keys[layer, :, start:split] = rotated
        self.values[layer, :, start:split] = v
        sink = min(self.frames + self._begun, self.plan.sink_frames) - self.frames
        if sink > 0:
            self.sink_keys[layer, :, self.frames * n : (self.frames + sink) * n] = k[:, : sink * n]
        return attend(q, self.keys[layer, :, start:end], self.values[layer, :, start:end])

    def commit(self) -> None:
        """Make the last in-place forward's chunk part of the context (the oldest window frames give way)."""
        if not self._begun:
            raise RuntimeError("KVCache.commit before KVCache.begin")
        first = self.plan.chunk_frames - self._begun
        for i in range(self._begun):
            slot = self._slot(self.frames + i)
            if slot is not None:
                self._frame(self.keys, slot).copy_(self._frame(self.keys, first + i))
                self._frame(self.values, slot).copy_(self._frame(self.values, first + i))
        self.frames += self._begun
        self._begun = 0

    def state(self) -> dict[str, Tensor]:
        """The context in age order (sink, then window from old to new), as copies; bounded in size."""
        slots = [s for f in self._held() if (s := self._slot(f)) is not None]
        pick = lambda x: torch.cat([self._frame(x, s) for s in slots], 2) if slots else x[:, :, :0].clone()  # noqa: E731
        sink = min(self.frames, self.plan.sink_frames) * self.shape.tokens
        return {
            "keys": pick(self.keys),
            "values": pick(self.values),
            "sink_keys": self.sink_keys[:, :, :sink].clone(),
            "cursor": torch.tensor([self.frames, self._sink_shift, self._sink_start]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a state of `state()`. Frames go to the slots they came from: what follows is bit-exact.

        Raises:
            ValueError: the state is of a cache with other sizes.
        """
        # states saved before there were joint recaches have no third number
        frames, shift, start = (*state["cursor"].tolist(), 0)[:3]
        n = self.shape.tokens
        held = min(frames, self.plan.context_frames) * n
        sink = min(frames, self.plan.sink_frames) * n
        for name, length in (("keys", held), ("values", held), ("sink_keys", sink)):
            expected = (*self.keys.shape[:2], length, *self.keys.shape[3:])
            if tuple(state[name].shape) != expected:
                raise ValueError(
                    f"cache state: expected {name} of shape {expected}, found {tuple(state[name].shape)}"
                )
        self.frames, self._sink_shift, self._sink_start, self._begun = frames, shift, start, 0
        slots = [s for f in self._held() if (s := self._slot(f)) is not None]
        for i, slot in enumerate(slots):
            self._frame(self.keys, slot).copy_(state["keys"][:, :, i * n : (i + 1) * n])
            self._frame(self.values, slot).copy_(state["values"][:, :, i * n : (i + 1) * n])
        self.sink_keys[:, :, :sink] = state["sink_keys"]

    def allocated_bytes(self) -> int:
        """Bytes held, constant for the life of the cache."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values, self.sink_keys))

    def _held(self) -> list[int]:
        """Cache times of the frames in the context, oldest first."""
        sink = min(self.frames, self.plan.sink_frames)
        return [*range(sink), *range(max(sink, self.frames - self.plan.window_frames), self.frames)]

    def _slot(self, frame: int) -> int | None:
        """Physical frame slot of a committed frame; None if there is neither a sink nor a window place for
        it.
        """
        if frame < self.plan.sink_frames:
            return self.plan.chunk_frames + frame
        if self.plan.window_frames == 0:
            return None
        ring = (frame - self.plan.sink_frames) % self.plan.window_frames
        return self.plan.chunk_frames + self.plan.sink_frames + ring

    def _frame(self, buffer: Tensor, slot: int) -> Tensor:
        n = self.shape.tokens
        return buffer[:, :, slot * n : (slot + 1) * n]

    def _rotate_sink(self) -> None:
        relative = self.rope_mode == "relative"
        shift = self.plan.sink_shift(self.frames) if relative else self._sink_start
        if shift == self._sink_shift or self.plan.sink_frames == 0:
            return
        n, at = self.shape.tokens, self.plan.chunk_frames * self.shape.tokens
        end = at + self.plan.sink_frames * n
        self.keys[:, :, at:end] = rotate(self.sink_keys, self.sink_tables(shift))
        self._sink_shift = shift

    def sink_tables(self, start: int) -> RotaryTables:
        """Rotation of the sink's keys where its first frame lies at time `start`."""
        times = torch.arange(start, start + self.plan.sink_frames, device=self.device)
        return self.rope.tables(times, *self.shape.grid)

    def rewrite(self, layer: int, frame: int, rotated: Tensor, key: Tensor, value: Tensor) -> None:
        """Put one committed frame's keys and values of one layer, `(B, N, H, D)`, in the place of what is
        there; nothing where neither sink nor window has a place for it.
        """
        slot, n = self._slot(frame), self.shape.tokens
        if slot is None:
            return
        self.keys[layer, :, slot * n : (slot + 1) * n] = rotated
        self.values[layer, :, slot * n : (slot + 1) * n] = value
        if frame < self.plan.sink_frames:
            self.sink_keys[layer, :, frame * n : (frame + 1) * n] = key

    def sink_moved(self, start: int) -> None:
        """Say that the sink now holds frames from time `start` on, rotated there."""
        self._sink_start = self._sink_shift = start
