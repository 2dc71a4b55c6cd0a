"""Rebuilding a stream's context in one forward: LongLive's recache (arXiv 2509.22622; repository
NVlabs/LongLive, branch v1.0, Apache-2.0), as its published code has it.

All latent frames of the last attention span go through the network together and see each other in both
directions: the published code builds a block-causal mask, but its cached attention never reads it. Two things
may become of the sink. Kept (the published inference): its old keys stand in for those of the first recached
frames, whose own are dropped. Replaced: the first recached frames become the sink. Where the span reaches
back to the start of the stream, the published code makes the sink anew in either case: the caller decides.
"""

import torch
from torch import Tensor

from .attention import attend
from .kv_cache import KVCache
from .rope import rotate


class JointRecache:
    """The `AttentionContext` of that one forward; writes the cache's sink and window as it goes.

    Args:
        cache: what is rebuilt; its clock stays.
        frames: the number of latent frames given, the last ones committed.
        keep_sink: leave the sink's keys as they are.

    Raises:
        ValueError: more frames than were committed or than a chunk may attend to.
    """

    def __init__(self, cache: KVCache, frames: int, keep_sink: bool) -> None:
        most = min(cache.frames, cache.plan.attention_frames)
        if not 1 <= frames <= most:
            raise ValueError(f"joint recache: expected 1 to {most} latent frames, found {frames}")
        self.cache, self.frames = cache, frames
        self.start = cache.frames - frames
        self.sink = cache.plan.sink_frames if keep_sink else 0
        times = torch.arange(self.start, cache.frames, device=cache.device)
        self.tables = cache.rope.tables(times, *cache.shape.grid)
        # with ranks the sink lies before the rest of the span, in the place of the frames it stands in for
        self.sink_start = self.start if cache.rope_mode == "relative" else cache._sink_start
        self.sink_tables = cache.sink_tables(self.sink_start)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`; `(B, L, H, D)` of all frames of the span."""
        cache, n = self.cache, self.cache.shape.tokens
        rotated, keys, values = rotate(k, self.tables), None, v
        if self.sink:
            held = self.sink * n
            at = cache.plan.chunk_frames * n
            sink = rotate(cache.sink_keys[layer], self.sink_tables)
            keys = torch.cat([sink, rotated[:, held:]], 1)
            values = torch.cat([cache.values[layer, :, at : at + held], v[:, held:]], 1)
        out = attend(rotate(q, self.tables), rotated if keys is None else keys, values)
        self._write(layer, rotated, k, v)
        return out

    def finish(self) -> None:
        """Say where the sink lies now; call it after the forward."""
        if not self.sink and self.cache.plan.sink_frames:
            self.cache.sink_moved(self.start)

    def _write(self, layer: int, rotated: Tensor, k: Tensor, v: Tensor) -> None:
        cache, n = self.cache, self.cache.shape.tokens
        window = cache.frames - cache.plan.window_frames
        for i in range(self.sink, self.frames):
            # the first frames of the span become the sink, whatever their time
            frame = i if i < cache.plan.sink_frames else self.start + i
            if i < cache.plan.sink_frames or frame >= window:
                part = slice(i * n, (i + 1) * n)
                cache.rewrite(layer, frame, rotated[:, part], k[:, part], v[:, part])
