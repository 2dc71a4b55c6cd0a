"""The KV cache of a stream: a ring of tensors, and an immutable cursor that says what of it counts.

Slot order is [sink | ring]; the ring has places for the window and for one chunk in work. A chunk is written
where it will stay, into places that the cursor does not point to, so committing it copies nothing: it only
moves the cursor. What a chunk attends to, itself included, is one contiguous range of slots at every fill
level; when the ring has turned, the oldest window frames are overwritten. Softmax does not depend on the
order of keys, and positions are ranks in age order, never physical slots.

Positions (see docs/decisions/stream.md, 'Positions are ranks: places in the context, not
times'): attention sees position differences only. A window key is
rotated once at its own cache time; only the sink's keys, kept unrotated, are rotated anew when the window has
moved on, to lie directly before the window, one layer at a time when it is read. Host integers are the truth
about cursors.

A rebuild of the cache under other words does overwrite what the old cursor points to. So that nothing is
mistaken afterwards, a ring knows which rebuild its content comes from (`holds`), and so does a cursor
(`content`): where the two differ the content was lost on the way, and has to be rebuilt from the stream's
record before it is read.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from .attention import attend
from .cache_store import EightBitStore, restored
from .context import ChunkPlan
from .rope import RotaryEmbedding3D, RotaryTables, rotate

RopeMode = Literal["relative", "absolute"]
# latent frames that weights of absolute positions know: Wan's table
MAX_POSITIONS = 1024


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

    def cache_bytes(self, plan: ChunkPlan, dtype: torch.dtype, eight_bits: bool = False) -> int:
        """Bytes of a `CacheRing` of this shape."""
        heads = self.layers * self.batch * self.tokens * self.heads
        full = heads * self.head_dim * dtype.itemsize
        # whole numbers and a scale for each head of each token; the sink's own keys stay as they are
        held = heads * (self.head_dim + torch.float32.itemsize) if eight_bits else full
        return 2 * plan.attention_frames * held + plan.sink_frames * full


@dataclass(frozen=True)
class CacheCursor:
    """What of a ring counts.

    Attributes:
        frames: latent frames committed since the cache was last emptied: the clock of its keys.
        sink_start: time of the sink's first frame with absolute positions: 0 until a joint recache replaces
            it.
        content, sink_content: which rebuild the keys, and those of the sink, come from.
    """

    frames: int = 0
    sink_start: int = 0
    content: int = 0
    sink_content: int = 0

    def moved(self, frames: int) -> "CacheCursor":
        """The cursor once a chunk of so many latent frames is committed; the oldest ones give way."""
        return replace(self, frames=self.frames + frames)


class RingStorage:
    """The tensors of a ring: allocated once, and lent from one stream to the next where that is worth while,
    since programs know their addresses.

    Attributes:
        keys, values: `(layers, B, S, H, D)` of sink, window and the chunk in work; with `eight_bits` stores
            that read and write parts as tensors do.
        sink_keys: `(layers, B, P, H, D)`, unrotated, always in full precision: they are rotated anew again
            and again.
    """

    def __init__(
        self,
        shape: CacheShape,
        plan: ChunkPlan,
        device: torch.device,
        dtype: torch.dtype,
        eight_bits: bool = False,
    ) -> None:
        head, tail = (shape.layers, shape.batch), (shape.heads, shape.head_dim)
        size = (*head, plan.attention_frames * shape.tokens, *tail)
        self.eight_bits = eight_bits
        make = EightBitStore.zeros if eight_bits else _zeros
        # what is read of a store, and what is written, is a tensor
        self.keys, self.values = (cast("Tensor", make(size, device, dtype)) for _ in range(2))
        size = (*head, plan.sink_frames * shape.tokens, *tail)
        self.sink_keys = torch.zeros(size, device=device, dtype=dtype)


class CacheRing:
    """Keys and values of a stream's context, allocated once.

    Use: `view(cursor, n)` is what a chunk of n latent frames after the cursor attends to; any number of
    network forwards over it, the last one of the finished chunk; then `cursor.moved(n)`. Until then the
    context is as it was.

    Args:
        shape: sizes of the network and its token grid.
        plan: chunk, sink and window, in latent frames.
        rope: the network's rotary embedding.
        rope_mode: `relative` (ranks, endless) or `absolute` (every key at its own time, for weights trained
            so).
        max_positions: with `absolute`, the number of latent frames the weights know.
        storage: by default one of its own in full precision; it may be that of a ring which is no more.
    """

    def __init__(
        self,
        shape: CacheShape,
        plan: ChunkPlan,
        rope: RotaryEmbedding3D,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        rope_mode: RopeMode = "relative",
        max_positions: int = MAX_POSITIONS,
        storage: RingStorage | None = None,
    ) -> None:
        self.shape, self.plan, self.rope = shape, plan, rope
        self.device, self.dtype = device, dtype
        self.rope_mode, self.max_positions = rope_mode, max_positions
        self.storage = storage or RingStorage(shape, plan, device, dtype)
        self.keys, self.values = self.storage.keys, self.storage.values
        self.sink_keys = self.storage.sink_keys
        self.holds: int | None = 0
        self.sink_holds: int | None = 0
        self._rebuilding: int | None = None
        self._contents = 0
        # by how much each layer's sink is rotated; None where that is not known
        self.rotated: list[int | None] = [0] * shape.layers

    def intact(self, cursor: CacheCursor) -> bool:
        """Whether what the cursor points to is there."""
        return cursor.frames == 0 or self.holds == cursor.content

    def sink_intact(self, cursor: CacheCursor) -> bool:
        """Whether the sink that the cursor points to, as far as it is filled, is there."""
        nothing = cursor.frames == 0 or self.plan.sink_frames == 0
        return nothing or self.sink_holds == cursor.sink_content

    def emptied(self) -> CacheCursor:
        """A cursor of an empty cache. Nothing is overwritten until a chunk is begun behind it."""
        self._contents += 1
        return CacheCursor(content=self._contents, sink_content=self._contents)

    def begin_rebuild(self, keep_sink: bool) -> int:
        """Give up what the ring holds, but for the sink where it is kept; returns the number of the new
        content.
        """
        self.holds = None
        if not keep_sink:
            self.sink_holds = None
        self._contents += 1
        self._rebuilding = self._contents
        return self._contents

    def end_rebuild(self, cursor: CacheCursor) -> None:
        """Say that all that the new cursor points to has been written."""
        self._rebuilding = None
        self.sink_holds, self.holds = cursor.sink_content, cursor.content

    def context_frames(self, cursor: CacheCursor) -> int:
        """Latent frames in the context: filled sink and window slots."""
        return min(cursor.frames, self.plan.context_frames)

    def fits(self, cursor: CacheCursor, frames: int) -> bool:
        """Whether there are positions for `frames` more latent frames; relative ones never end."""
        return self.rope_mode == "relative" or cursor.frames + frames <= self.max_positions

    def view(self, cursor: CacheCursor, frames: int) -> "CacheView":
        """What a chunk of `frames` latent frames after `cursor` attends to.

        Raises:
            ValueError: more frames than a chunk has, (absolute positions) the end of the position table, or a
                cursor whose content is lost.
        """
        if not 1 <= frames <= self.plan.chunk_frames:
            raise ValueError(f"a chunk has 1 to {self.plan.chunk_frames} latent frames, asked for {frames}")
        if not self.fits(cursor, frames):
            raise ValueError(
                f"absolute positions end at latent frame {self.max_positions}, asked for "
                f"{cursor.frames + frames}; open the stream with relative positions for longer ones"
            )
        if self._rebuilding != cursor.content:
            if not self.intact(cursor):
                raise ValueError("the cache does not hold what this cursor points to: rebuild it first")
            if cursor.frames == 0:
                # the first chunk lies where another content may be: from here on that is lost
                self._rebuilding = None
                self.sink_holds, self.holds = cursor.sink_content, cursor.content
        return CacheView(self, cursor, frames)

    def state(self, cursor: CacheCursor) -> dict[str, Tensor]:
        """The context in age order (sink, then window from old to new), as copies; bounded in size."""
        slots = [self.slot(frame) for frame in self._held(cursor)]
        pick = lambda x: torch.cat([self._frame(x, s) for s in slots], 2) if slots else x[:, :, :0].clone()  # noqa: E731
        sink = min(cursor.frames, self.plan.sink_frames) * self.shape.tokens
        out = {"sink_keys": self.sink_keys[:, :, :sink].clone()}
        for name, buffer in (("keys", self.keys), ("values", self.values)):
            if isinstance(buffer, EightBitStore):
                out |= {name: pick(buffer.whole), f"{name}_scale": pick(buffer.scale)}
            else:
                out[name] = pick(buffer)
        return out

    def load_state(self, cursor: CacheCursor, state: dict[str, Tensor]) -> None:
        """Take over a state of `state()`. Frames go to the slots they came from: what follows is bit-exact,
        unless one of the two is in eight bits and the other is not.

        Raises:
            ValueError: the state is of a cache with other sizes.
        """
        n = self.shape.tokens
        held = self.context_frames(cursor) * n
        sink = min(cursor.frames, self.plan.sink_frames) * n
        for name, length in (("keys", held), ("values", held), ("sink_keys", sink)):
            expected = (*self.keys.shape[:2], length, *self.keys.shape[3:])
            if tuple(state[name].shape) != expected:
                raise ValueError(
                    f"cache state: expected {name} of shape {expected}, found {tuple(state[name].shape)}"
                )
        self.holds = self.sink_holds = None
        slots = [self.slot(frame) for frame in self._held(cursor)]
        for i, slot in enumerate(slots):
            part, place = slice(i * n, (i + 1) * n), slice(slot * n, (slot + 1) * n)
            for name, buffer in (("keys", self.keys), ("values", self.values)):
                scale = state.get(f"{name}_scale")
                _take(buffer, place, state[name][:, :, part], None if scale is None else scale[:, :, part])
        self.sink_keys[:, :, :sink] = state["sink_keys"]
        self.rotated = [None] * self.shape.layers
        self._contents = max(self._contents, cursor.content)
        self.end_rebuild(cursor)

    def lose(self, cursor: CacheCursor) -> None:
        """Take over a cursor without what it points to: that has to be rebuilt first."""
        self.holds = self.sink_holds = None
        self._contents = max(self._contents, cursor.content)

    def allocated_bytes(self) -> int:
        """Bytes held, constant for the life of the cache."""
        return sum(x.nbytes for x in (self.keys, self.values, self.sink_keys))

    def slot(self, frame: int) -> int:
        """Physical frame slot of a frame by its cache time."""
        sink = self.plan.sink_frames
        if frame < sink:
            return frame
        return sink + (frame - sink) % (self.plan.window_frames + self.plan.chunk_frames)

    def sink_shift(self, cursor: CacheCursor) -> int:
        """The time at which the sink's first frame lies for a chunk after the cursor."""
        return self.plan.sink_shift(cursor.frames) if self.rope_mode == "relative" else cursor.sink_start

    def sink_tables(self, start: int, frames: int) -> RotaryTables:
        """Rotation of the sink's first `frames` frames where the first one lies at time `start`."""
        times = torch.arange(start, start + frames, device=self.device)
        return self.rope.tables(times, *self.shape.grid)

    def rotate_sink(self, layer: int, shift: int, held: int, tables: RotaryTables | None) -> None:
        """Let the `held` frames that one layer's sink has lie at time `shift`. `tables` are those of that
        time; None where nothing is held.
        """
        if self.rotated[layer] == shift:
            return
        # cut short in between, the layer's rotation is not known
        self.rotated[layer] = None
        if tables is not None:
            end = held * self.shape.tokens
            self.keys[layer, :, :end] = rotate(self.sink_keys[layer, :, :end], tables)
        self.rotated[layer] = shift

    def rewrite(self, layer: int, frame: int, rotated: Tensor, key: Tensor, value: Tensor) -> None:
        """Put one committed frame's keys and values of one layer, `(B, N, H, D)`, in the place of what is
        there.
        """
        slot, n = self.slot(frame), self.shape.tokens
        self.keys[layer, :, slot * n : (slot + 1) * n] = rotated
        self.values[layer, :, slot * n : (slot + 1) * n] = value
        if frame < self.plan.sink_frames:
            self.sink_keys[layer, :, frame * n : (frame + 1) * n] = key
            self.rotated[layer] = None

    def _held(self, cursor: CacheCursor) -> list[int]:
        """Cache times of the frames in the context, oldest first."""
        sink = min(cursor.frames, self.plan.sink_frames)
        return [*range(sink), *range(max(sink, cursor.frames - self.plan.window_frames), cursor.frames)]

    def _frame(self, buffer: Tensor, slot: int) -> Tensor:
        n = self.shape.tokens
        return buffer[:, :, slot * n : (slot + 1) * n]


def _zeros(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros(size, device=device, dtype=dtype)


def _take(buffer: Tensor | EightBitStore, place: slice, x: Tensor, scale: Tensor | None) -> None:
    """Put a part of a state into a buffer, either of them in eight bits or not."""
    if isinstance(buffer, EightBitStore) and scale is not None:
        buffer.whole[:, :, place], buffer.scale[:, :, place] = x, scale
        return
    full = x if scale is None else restored(x, scale, buffer.dtype)
    buffer[:, :, place] = full


class CacheView:
    """The `AttentionContext` of one chunk over a ring: made once a chunk, good for all of its forwards."""

    def __init__(self, ring: CacheRing, cursor: CacheCursor, frames: int) -> None:
        self.ring, self.cursor, self.frames = ring, cursor, frames
        plan, n = ring.plan, ring.shape.tokens
        times = torch.arange(cursor.frames, cursor.frames + frames, device=ring.device)
        self.tables = ring.rope.tables(times, *ring.shape.grid)
        self.shift = ring.sink_shift(cursor)
        self.sink_held = min(cursor.frames, plan.sink_frames)
        self.sink_tables = ring.sink_tables(self.shift, self.sink_held) if self.sink_held else None
        # tokens in reach, the chunk's own included, and where in there its frames lie
        self.end = min(cursor.frames + frames, plan.attention_frames) * n
        slots = [ring.slot(frame) for frame in range(cursor.frames, cursor.frames + frames)]
        self.places = runs(slots, n)
        # of the chunk's frames, those that belong to the sink: theirs are kept unrotated, too
        self.sink_new = max(0, min(cursor.frames + frames, plan.sink_frames) - cursor.frames)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the chunk's tokens over sink, window and themselves (see `AttentionContext`).

        Without gradient and at the cache's own batch size, keys and values go to the chunk's own slots. With
        gradient, or for a multiple of the batch (guidance branches over one shared context, one whole batch
        after the other), they stay live and are concatenated to the detached context.
        """
        ring = self.ring
        q, rotated = rotate(q, self.tables), rotate(k, self.tables)
        self.rotate_sink(layer)
        live = torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or q.requires_grad)
        if live or k.shape[0] != ring.shape.batch:
            # branches lie one after the other, each the size of the cache's batch
            branches = k.shape[0] // ring.shape.batch
            past_k, past_v = (
                _repeated([x[layer, :, part] for part in self.past()], branches)
                for x in (ring.keys, ring.values)
            )
            return attend(q, torch.cat([*past_k, rotated], 1), torch.cat([*past_v, v], 1))
        self._write(layer, k, rotated, v)
        return attend(q, ring.keys[layer, :, : self.end], ring.values[layer, :, : self.end])

    def write(self, layer: int, k: Tensor, rotated: Tensor, v: Tensor) -> None:
        """Put the chunk's keys, unrotated and rotated, and values `(B, L, H, D)` into its slots, where no
        cursor points to yet; what lies behind the chunk's tokens in them is left out.
        """
        if self.sink_new:
            # keys of a sink that is being filled lie beside others, all of one rotation
            self.rotate_sink(layer)
        self._write(layer, k, rotated, v)

    def _write(self, layer: int, k: Tensor, rotated: Tensor, v: Tensor) -> None:
        ring, n = self.ring, self.ring.shape.tokens
        for tokens, place in self.places:
            ring.keys[layer, :, place] = rotated[:, tokens]
            ring.values[layer, :, place] = v[:, tokens]
        if self.sink_new:
            first = self.cursor.frames * n
            ring.sink_keys[layer, :, first : first + self.sink_new * n] = k[:, : self.sink_new * n]

    def past(self) -> list[slice]:
        """Where the context lies: all that is in reach but the chunk itself."""
        out, at = [], 0
        for _, place in sorted(self.places, key=lambda run: run[1].start):
            out.append(slice(at, place.start))
            at = place.stop
        return [part for part in (*out, slice(at, self.end)) if part.start < part.stop]

    def rotate_sink(self, layer: int) -> None:
        """Let one layer's sink lie where this chunk sees it."""
        self.ring.rotate_sink(layer, self.shift, self.sink_held, self.sink_tables)


def runs(slots: list[int], n: int) -> list[tuple[slice, slice]]:
    """Where frames in order lie. Pairs of their token range and the range of the cache it goes to, `n` tokens
    a frame: one, or two where the ring turns within them.
    """
    out, first = [], 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            place = slice(slots[first] * n, (slots[i - 1] + 1) * n)
            out.append((slice(first * n, i * n), place))
            first = i
    return out


def _repeated(parts: list[Tensor], times: int) -> list[Tensor]:
    return parts if times == 1 else [x[None].expand(times, *x.shape).flatten(0, 1) for x in parts]
