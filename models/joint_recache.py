"""Rebuilding a stream's context in one forward: LongLive's recache (arXiv 2509.22622; repository
NVlabs/LongLive, branch v1.0, Apache-2.0), as its published code has it.

All latent frames of the last attention span go through the network together and see each other in both
directions: the published code builds a block-causal mask, but its cached attention never reads it. Two things
may become of the sink. Kept (the published inference): its old keys stand in for those of the first recached
frames, whose own are dropped. Replaced: the first recached frames become the sink. Where the span reaches
back to the start of the stream, the published code makes the sink anew in either case: the caller decides.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .attention import attend
from .kv_cache import CacheCursor, CacheRing
from .rope import rotate


class JointRecache:
    """The `AttentionContext` of that one forward; writes the ring's sink and window as it goes.

    Args:
        ring: what is rebuilt; what it held is given up from here on.
        cursor: its clock, the given frames included, which stays.
        frames: the number of latent frames given, the last ones committed.
        keep_sink: leave the sink's keys as they are.

    Raises:
        ValueError: more frames than were committed or than a chunk may attend to.
    """

    def __init__(self, ring: CacheRing, cursor: CacheCursor, frames: int, keep_sink: bool) -> None:
        most = min(cursor.frames, ring.plan.attention_frames)
        if not 1 <= frames <= most:
            raise ValueError(f"joint recache: expected 1 to {most} latent frames, found {frames}")
        self.ring, self.cursor, self.frames = ring, cursor, frames
        self.start = cursor.frames - frames
        self.sink = ring.plan.sink_frames if keep_sink else 0
        times = torch.arange(self.start, cursor.frames, device=ring.device)
        self.tables = ring.rope.tables(times, *ring.shape.grid)
        # with ranks the sink lies before the rest of the span, in the place of the frames it stands in for
        sink_start = self.start if ring.rope_mode == "relative" else cursor.sink_start
        self.sink_tables = ring.sink_tables(sink_start, self.sink) if self.sink else None
        self.content = ring.begin_rebuild(keep_sink)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`; `(B, L, H, D)` of all frames of the span."""
        ring, n = self.ring, self.ring.shape.tokens
        rotated, keys, values = rotate(k, self.tables), None, v
        if self.sink_tables is not None:
            held = self.sink * n
            sink = rotate(ring.sink_keys[layer], self.sink_tables)
            keys = torch.cat([sink, rotated[:, held:]], 1)
            values = torch.cat([ring.values[layer, :, :held], v[:, held:]], 1)
        out = attend(rotate(q, self.tables), rotated if keys is None else keys, values)
        self._write(layer, rotated, k, v)
        return out

    def finish(self) -> CacheCursor:
        """The cursor of the rebuilt cache; call it after the forward."""
        cursor = replace(self.cursor, content=self.content)
        if not self.sink:
            cursor = replace(cursor, sink_content=self.content, sink_start=self.start)
        self.ring.end_rebuild(cursor)
        return cursor

    def _write(self, layer: int, rotated: Tensor, k: Tensor, v: Tensor) -> None:
        ring, n = self.ring, self.ring.shape.tokens
        window = self.cursor.frames - ring.plan.window_frames
        for i in range(self.sink, self.frames):
            # the first frames of the span become the sink, whatever their time
            frame = i if i < ring.plan.sink_frames else self.start + i
            if i < ring.plan.sink_frames or frame >= window:
                part = slice(i * n, (i + 1) * n)
                ring.rewrite(layer, frame, rotated[:, part], k[:, part], v[:, part])
