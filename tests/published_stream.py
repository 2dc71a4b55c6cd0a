"""The streaming loop of the published causal Wan classes, written down plainly as an oracle for tests.

What it follows is Self-Forcing's CausalInferencePipeline and LongLive v1.0's InteractiveCausalInference:
a list of cached frames with a global and a local end, eviction behind the sink by shifting, rotation at
absolute positions once, timesteps from a table of 1000 shifted levels, four predictions of x0 with fresh
noise between them, a pass at timestep 0 that overwrites the block, and on a switch one forward of the last
`attention` frames over the same cache. Slow, and close to how the published code thinks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.attention import attend
from models.causal_dit import CausalDiT
from models.rope import rotate


def published_levels(steps: list[int], shift: float) -> tuple[list[float], list[float]]:
    """Timesteps and noise levels of a warped denoising_step_list, from the published table."""
    table = torch.linspace(1.0, 0.0, 1001)[:-1]
    table = shift * table / (1 + (shift - 1) * table)
    times = torch.cat([table * 1000, torch.zeros(1)])[[1000 - s for s in steps]]
    nearest = [int((table * 1000 - t).abs().argmin()) for t in times]
    return times.tolist(), [float(table[i]) for i in nearest]


@dataclass
class _Layer:
    keys: Tensor
    values: Tensor


@dataclass
class PublishedStream:
    """One stream; `grid` is the token grid, sizes are in latent frames. `sink_rewrite` is what the published
    code calls not global_sink.
    """

    dit: CausalDiT
    grid: tuple[int, int]
    block: int
    attention: int
    sink: int
    global_sink: bool = True
    layers: list[_Layer] = field(default_factory=list)
    global_end: int = 0
    local_end: int = 0
    output: list[Tensor] = field(default_factory=list)
    _call: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        c, n = self.dit.config, self.grid[0] * self.grid[1]
        zeros = torch.zeros(1, self.attention * n, c.heads, c.head_dim)
        self.layers = [_Layer(zeros.clone(), zeros.clone()) for _ in range(c.layers)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cache update and attention of one layer, for `_call` = (first frame, number of frames)."""
        n = self.grid[0] * self.grid[1]
        start, count = self._call
        end, sink = start + count, self.sink * n
        tables = self.dit.rope.tables(torch.arange(start, end), *self.grid)
        q, k = rotate(q, tables), rotate(k, tables)
        cache = self.layers[layer]
        recompute = end <= self.global_end and start > 0
        local_end = self.local_end + end - self.global_end
        if end > self.global_end and count + self.local_end > self.attention:
            evicted = (count + self.local_end - self.attention) * n
            kept = self.local_end * n - evicted - sink
            for buffer in (cache.keys, cache.values):
                buffer[:, sink : sink + kept] = buffer[:, sink + evicted : sink + evicted + kept].clone()
            local_end -= evicted // n
        first = (local_end - count) * n
        write = max(first, sink) if recompute and self.global_sink else first
        cache.keys[:, write : local_end * n] = k[:, write - first :]
        cache.values[:, write : local_end * n] = v[:, write - first :]
        if layer == len(self.layers) - 1 and not recompute:
            self._ends = (max(end, self.global_end), local_end)
        return attend(q, cache.keys[:, : local_end * n], cache.values[:, : local_end * n])

    def forward(self, x: Tensor, timestep: float, text: Tensor, start: int) -> Tensor:
        """One call of the generator's network."""
        self._call, self._ends = (start, x.shape[1]), (self.global_end, self.local_end)
        times = torch.full(x.shape[:2], timestep)
        flow: Tensor = self.dit(x, times, self.dit.embed_text(text), self)
        self.global_end, self.local_end = self._ends
        return flow

    def recache(self, text: Tensor) -> None:
        """What happens at a switch, before the next block."""
        start = len(self.output)
        if not self.global_sink:
            for cache in self.layers:
                cache.keys.zero_()
                cache.values.zero_()
        if start:
            frames = min(self.attention, start)
            self.forward(torch.cat(self.output[-frames:], 1), 0.0, text, start - frames)

    def generate(
        self, noise: Tensor, text: Tensor, steps: list[int], shift: float, renoise: Callable[[int], Tensor]
    ) -> Tensor:
        """The next block."""
        times, sigmas = published_levels(steps, shift)
        start, x = len(self.output), noise
        for i, (time, sigma) in enumerate(zip(times, sigmas, strict=True)):
            flow = self.forward(x, time, text, start)
            clean = (x.double() - sigma * flow.double()).to(x.dtype)
            if i + 1 < len(times):
                x = (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * renoise(i)
        self.forward(clean, 0.0, text, start)
        self.output += clean.split(1, 1)
        return clean
