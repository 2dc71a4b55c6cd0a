"""What a chunk may attend to: the chunk plan, and the whole-sequence form of it that training uses.

The same network runs over a whole sequence with a mask (training, teacher) or chunk by chunk over a `KVCache`
(streaming). Which one is decided by the `AttentionContext` that is handed to it; the network itself has a
single path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .attention import attend
from .rope import RotaryEmbedding3D, rotate


@dataclass(frozen=True)
class ChunkPlan:
    """How latent frames are grouped into chunks and which past ones stay in reach, all in latent frames.

    `attention_frames` of a full chunk is sink + window + chunk. Sink and window are whole chunks.

    Raises:
        ValueError: a count is out of range, or sink or window would cut a chunk.
    """

    chunk_frames: int = 1
    first_chunk_frames: int = 1
    sink_frames: int = 1
    window_frames: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.first_chunk_frames <= self.chunk_frames:
            raise ValueError(
                f"first_chunk_frames must be in 1..chunk_frames ({self.chunk_frames}), found "
                f"{self.first_chunk_frames}"
            )
        if self.window_frames < 0 or self.window_frames % self.chunk_frames:
            raise ValueError(
                f"window_frames must be a multiple of chunk_frames ({self.chunk_frames}), found "
                f"{self.window_frames}"
            )
        whole = self.sink_frames == 0 or (self.sink_frames - self.first_chunk_frames) % self.chunk_frames == 0
        if self.sink_frames < 0 or not whole:
            raise ValueError(
                f"sink_frames must be 0 or first_chunk_frames ({self.first_chunk_frames}) plus whole chunks "
                "of "
                f"{self.chunk_frames}, found {self.sink_frames}"
            )

    @property
    def context_frames(self) -> int:
        return self.sink_frames + self.window_frames

    @property
    def attention_frames(self) -> int:
        return self.context_frames + self.chunk_frames

    def start(self, chunk: int) -> int:
        """First latent frame of a chunk."""
        return 0 if chunk == 0 else self.first_chunk_frames + (chunk - 1) * self.chunk_frames

    def length(self, chunk: int) -> int:
        """Latent frames of a chunk."""
        return self.first_chunk_frames if chunk == 0 else self.chunk_frames

    def index_of(self, latent_frame: int) -> int:
        """The chunk that a latent frame belongs to."""
        if latent_frame < self.first_chunk_frames:
            return 0
        return 1 + (latent_frame - self.first_chunk_frames) // self.chunk_frames

    def sink_shift(self, start: int) -> int:
        """By how much the sink has moved forward in time for a chunk that starts at latent frame `start`.

        Positions are ranks in age order, so the sink always lies directly before the window, however old it
        is.
        """
        return max(0, start - self.context_frames)


class AttentionContext(Protocol):
    """Self-attention's view of the past; `q, k, v` are `(B, L, H, D)` of the present tokens, unrotated."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention output `(B, L, H, D)` of the present tokens in one layer."""
        ...


class BidirectionalContext:
    """Every token sees every token: the teacher and the critic."""

    def __init__(
        self, rope: RotaryEmbedding3D, frames: int, grid: tuple[int, int], device: torch.device
    ) -> None:
        self.tables = rope.tables(torch.arange(frames, device=device), *grid)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(rotate(q, self.tables), rotate(k, self.tables), v)


@dataclass(frozen=True)
class SequenceFrame:
    """One latent frame of a training sequence: its index in the stream, and which of the two roles it has.

    With diffusion forcing (arXiv 2407.01392) every frame is `target` and `context` at once. With teacher
    forcing the sequence holds each frame twice: clean with `target=False`, noisy with `context=False`, or
    several times noisy, as different `copy`.
    """

    index: int
    context: bool = True
    target: bool = True
    copy: int = 0


def sequence_mask(frames: Sequence[SequenceFrame], plan: ChunkPlan) -> Tensor:
    """Frame-level visibility `(F, F)`: entry [query, key] is true where the query may look at the key.

    A query sees its own chunk within its own role and copy, and of the context frames those in the sink or
    in the window before its chunk.
    """
    mask = torch.zeros(len(frames), len(frames), dtype=torch.bool)
    for i, query in enumerate(frames):
        chunk = plan.index_of(query.index)
        start = plan.start(chunk)
        for j, key in enumerate(frames):
            same_role = (key.target, key.context, key.copy) == (query.target, query.context, query.copy)
            if plan.index_of(key.index) == chunk:
                mask[i, j] = same_role
            elif key.context and key.index < start:
                mask[i, j] = key.index < plan.sink_frames or key.index >= start - plan.window_frames
    return mask


class MaskedContext:
    """A whole sequence at once under the mask of a chunk plan: the cached rollout, in one forward.

    The sink's keys have to be rotated anew for each query chunk (rank positions). A score is a dot product,
    so the queries carry the two rotations side by side in a doubled head dimension, and each key fills the
    half that belongs to it and leaves the other zero.

    Args:
        rope: rotation of the network.
        frames: the latent frames of the sequence in order.
        plan: chunks, sink and window.
        grid: rows and columns of the token grid.
        relative: rank positions (design default); False keeps every key at its absolute time.
    """

    def __init__(
        self,
        rope: RotaryEmbedding3D,
        frames: Sequence[SequenceFrame],
        plan: ChunkPlan,
        grid: tuple[int, int],
        device: torch.device,
        relative: bool = True,
    ) -> None:
        tokens = grid[0] * grid[1]
        times = torch.tensor([f.index for f in frames], device=device)
        shifts = torch.tensor(
            [plan.sink_shift(plan.start(plan.index_of(f.index))) for f in frames], device=device
        )
        mask = sequence_mask(frames, plan).to(device)
        self.mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        self.tables = rope.tables(times, *grid)
        self.query_tables = None
        if relative and bool((shifts > 0).any()):
            sink = torch.tensor([f.index < plan.sink_frames for f in frames], device=device)
            self.query_tables = rope.tables(times - shifts, *grid)
            self.is_sink = sink.repeat_interleave(tokens)[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = rotate(k, self.tables)
        queries = rotate(q, self.tables)
        if self.query_tables is not None:
            zero = torch.zeros((), dtype=k.dtype, device=k.device)
            # sqrt(2) undoes the scaling by the doubled head dimension
            queries = torch.cat([queries, rotate(q, self.query_tables)], -1) * 2**0.5
            keys = torch.cat(
                [torch.where(self.is_sink, zero, keys), torch.where(self.is_sink, keys, zero)], -1
            )
        return attend(queries, keys, v, self.mask)
