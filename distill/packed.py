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
    """An `AttentionContext` of `seen` committed latent frames followed by noisy copies of the last `targets`
    of them, for chunks of one latent frame. Equal to `MaskedContext` with rank positions.

    Args:
        rope: rotation of the network.
        plan: chunks of one latent frame, sink and window.
        grid: rows and columns of the token grid.
    """

    def __init__(
        self,
        rope: RotaryEmbedding3D,
        seen: int,
        targets: int,
        plan: ChunkPlan,
        grid: tuple[int, int],
        device: torch.device,
    ) -> None:
        assert plan.chunk_frames == 1, "chunks of one latent frame"
        self.seen, self.targets, self.tokens = seen, targets, grid[0] * grid[1]
        times = torch.arange(seen)
        self.sink = min(plan.sink_frames, seen)
        first = times[:, None] - plan.window_frames
        window = first + torch.arange(plan.window_frames)
        # a sink frame that is still in the window is read there
        in_sink = (torch.arange(self.sink) < first) & (torch.arange(self.sink) < times[:, None])
        visible = torch.cat([in_sink, window >= 0], 1)
        self.window = window.clamp(min=0).flatten().to(device)
        self.hidden = (~visible).repeat_interleave(self.tokens, 1).to(device)[:, None, None]
        self.tables = rope.tables(torch.cat([times, times[seen - targets :]]).to(device), *grid)
        # the sink lies right before the window of whoever reads it
        shifts = torch.tensor([plan.sink_shift(t) for t in range(seen)])
        moved = torch.arange(self.sink) + shifts[:, None]
        self.sink_tables = rope.tables(moved.flatten().to(device), *grid)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`."""
        own = rotate(k, self.tables)
        queries = _by_frame(rotate(q, self.tables) * (1.0 / math.sqrt(q.shape[-1])), self.tokens)
        keys, values = _by_frame(own, self.tokens), _by_frame(v, self.tokens)
        past_keys = torch.cat([self._sink_keys(k), self._windows(keys[:, : self.seen])], 2)
        sink = values[:, : self.sink].flatten(1, 2)[:, None].expand(-1, self.seen, -1, -1, -1)
        past_values = torch.cat([sink, self._windows(values[:, : self.seen])], 2)
        # (B, F, slots, H, D) to (B, F, H, slots, D)
        past_keys, past_values = past_keys.transpose(2, 3), past_values.transpose(2, 3)
        keys, values, queries = keys.transpose(2, 3), values.transpose(2, 3), queries.transpose(2, 3)
        out = []
        for frames, past in ((slice(0, self.seen), 0), (slice(self.seen, None), self.seen - self.targets)):
            asked, mine = queries[:, frames], keys[:, frames]
            scores = asked @ past_keys[:, past:].transpose(-1, -2)
            scores = scores.masked_fill(self.hidden[past:], float("-inf"))
            both = torch.cat([scores, asked @ mine.transpose(-1, -2)], -1)
            shares = at_least_float32(both).softmax(-1).to(v.dtype)
            before, now = shares.split([scores.shape[-1], self.tokens], -1)
            out.append((before @ past_values[:, past:] + now @ values[:, frames]).transpose(2, 3))
        return torch.cat(out, 1).flatten(1, 2)

    def _sink_keys(self, k: Tensor) -> Tensor:
        """The sink's keys as each committed frame reads them, `(B, seen, sink tokens, H, D)`."""
        sink = k[:, : self.sink * self.tokens]
        every = sink.repeat(1, self.seen, 1, 1)
        return rotate(every, self.sink_tables).unflatten(1, (self.seen, -1))

    def _windows(self, x: Tensor) -> Tensor:
        """Of `x (B, seen, tokens, H, D)` each frame's window, `(B, seen, window tokens, H, D)`."""
        gathered = x.index_select(1, self.window)
        return gathered.unflatten(1, (self.seen, -1)).flatten(2, 3)


def _by_frame(x: Tensor, tokens: int) -> Tensor:
    return x.unflatten(1, (-1, tokens))
