"""Teacher forcing over whole clips at the price of what each frame sees: its context and itself.

`models.context.MaskedContext` computes all scores of a sequence and throws away what the mask hides, which
for a clip of 21 latent frames behind a window of 8 is four fifths of them. Here every frame gathers the keys
of its own context: the same numbers, several times fewer.
"""

import math

import torch
from torch import Tensor

from models.context import ChunkPlan
from models.rope import RotaryEmbedding3D, at_least_float32, rotate


class PackedContext:
    """An `AttentionContext` of `seen` committed latent frames followed by `copies` of the last `targets` of
    them, each noisy in its own way, for chunks of one latent frame on a `grid` of rows and columns of tokens.
    A copy sees the committed frames and itself. With one copy equal to `MaskedContext` with rank positions.
    """

    def __init__(
        self,
        rope: RotaryEmbedding3D,
        seen: int,
        targets: int,
        plan: ChunkPlan,
        grid: tuple[int, int],
        device: torch.device,
        copies: int = 1,
    ) -> None:
        assert plan.chunk_frames == 1, "chunks of one latent frame"
        self.seen, self.tokens = seen, grid[0] * grid[1]
        times = torch.arange(seen)
        self.sink = min(plan.sink_frames, seen)
        # nobody looks further back than the last frame does
        reach = min(plan.window_frames, seen - 1)
        first = times[:, None] - reach
        window = first + torch.arange(reach)
        # a sink frame that is still in the window is read there
        in_sink = (torch.arange(self.sink) < first) & (torch.arange(self.sink) < times[:, None])
        visible = torch.cat([in_sink, window >= 0], 1)
        self.window = window.clamp(min=0).flatten().to(device)
        self.hidden = (~visible).repeat_interleave(self.tokens, 1).to(device)[:, None]
        own = times[seen - targets :]
        self.tables = rope.tables(torch.cat([times, *[own] * copies]).to(device), *grid)
        # the sink lies right before the window of whoever reads it
        shifts = torch.tensor([plan.sink_shift(t) for t in range(seen)])
        moved = torch.arange(self.sink) + shifts[:, None]
        self.sink_tables = rope.tables(moved.flatten().to(device), *grid)
        #: frames of the sequence, and the committed ones in whose places they are
        self.groups = [(slice(0, seen), slice(0, seen))]
        for start in range(seen, seen + copies * targets, targets):
            self.groups.append((slice(start, start + targets), slice(seen - targets, seen)))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # (B, H, F, tokens, D): every product below is one of contiguous matrices
        queries = self._by_frame(rotate(q, self.tables) * (1.0 / math.sqrt(q.shape[-1])))
        keys, values = self._by_frame(rotate(k, self.tables)), self._by_frame(v)
        sink_keys = self._sink_keys(k)
        sink_values = values[:, :, : self.sink].flatten(2, 3)[:, :, None]
        past_keys, past_values = self._windows(keys), self._windows(values)
        widths = [sink_keys.shape[3], past_keys.shape[3], self.tokens]
        out = []
        for frames, places in self.groups:
            asked = queries[:, :, frames]
            before = torch.cat([asked @ x[:, :, places].mT for x in (sink_keys, past_keys)], -1)
            before = before.masked_fill(self.hidden[places], float("-inf"))
            scores = torch.cat([before, asked @ keys[:, :, frames].mT], -1)
            shares = at_least_float32(scores).softmax(-1).to(v.dtype)
            to_sink, to_past, to_own = shares.split(widths, -1)
            found = to_past @ past_values[:, :, places] + to_own @ values[:, :, frames]
            out.append(found + to_sink @ sink_values)
        return torch.cat(out, 2).flatten(2, 3).transpose(1, 2)

    def _by_frame(self, x: Tensor) -> Tensor:
        """`x (B, F * tokens, H, D)` as `(B, H, F, tokens, D)`."""
        return x.transpose(1, 2).unflatten(2, (-1, self.tokens)).contiguous()

    def _sink_keys(self, k: Tensor) -> Tensor:
        """The sink's keys as each committed frame reads them, `(B, H, seen, sink tokens, D)`."""
        every = k[:, : self.sink * self.tokens].repeat(1, self.seen, 1, 1)
        return rotate(every, self.sink_tables).unflatten(1, (self.seen, -1)).permute(0, 3, 1, 2, 4)

    def _windows(self, x: Tensor) -> Tensor:
        """Of `x (B, H, F, tokens, D)` each committed frame's window, `(B, H, seen, window tokens, D)`."""
        return x.index_select(2, self.window).unflatten(2, (self.seen, -1)).flatten(3, 4)
