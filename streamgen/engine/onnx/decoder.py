"""The decoder of the causal video tokenizer as an ONNX graph: later latent frames of a stream, as
`VideoTokenizer.decode_chunk` computes them. A stream's first chunk, once a stream, is decoded by the network.
"""

import numpy as np
import torch
from torch import Tensor

from models.tokenizer_layers import (
    FeedForward,
    PixelRefiner,
    SpatialBlock,
    TemporalBlock,
    TokenNorm,
    WindowAttention,
    axis_shift,
    band_mask,
    time_delta,
)
from models.video_tokenizer import VideoTokenizer

from .graph import CONTRIB, Graph


def decoder_graph(tokenizer: VideoTokenizer, frames: int, grid: tuple[int, int]) -> Graph:
    """The graph of `frames` latent frames on a grid of latent cells.

    Inputs, D width, K latent frames of past:
        `latents (1, T, C, h, w)` raw; `keys, values (layers, 1, h, w, K, D)` as in `TokenizerState`;
        `bias.i (heads, T, K + T)` per temporal layer, see `temporal_bias`.
    Outputs: `video (1, 4 T, 3, H, W)` float; `new_keys, new_values` as the inputs.
    """
    config, decoder = tokenizer.config, tokenizer.decoder
    writer = _Decoder(tokenizer, frames, grid)
    g, dim, (rows, columns) = writer.graph, config.dim, grid
    latents = g.input("latents", (1, frames, config.latent_channels, rows, columns))
    cells = g.op("Transpose", latents, perm=[0, 1, 3, 4, 2])
    cells = g.reshape(cells, writer.tokens, config.latent_channels)
    x = g.linear(cells, _array(decoder.embed.weight), _array(decoder.embed.bias))
    past = (config.decoder_temporal, 1, rows, columns, config.temporal_context - 1, dim)
    keys, values = g.input("keys", past), g.input("values", past)
    kept: list[tuple[str, str]] = []
    for layer, block in enumerate(decoder.temporal.blocks):
        assert isinstance(block, TemporalBlock)
        x, held = writer.temporal(x, block, layer, (keys, values))
        kept.append(held)
    for place, name in enumerate(("new_keys", "new_values")):
        g.output(g.op("Concat", *(held[place] for held in kept), axis=0), name, past)
    for block in decoder.spatial:
        assert isinstance(block, SpatialBlock)
        x = writer.spatial(x, block)
    x = writer.norm(x, decoder.norm)
    head, skip = decoder.head.group, decoder.skip.group
    # both maps end in the same patches: one product of inputs side by side
    joined = np.concatenate([_array(head.weight), _array(skip.weight)], 1)
    patches = g.linear(g.op("Concat", x, cells, axis=1), joined, _array(head.bias) + _array(skip.bias))
    video = writer.refined(writer.unpatchified(patches), decoder.refine)
    size = (1, frames * config.temporal, config.in_channels, rows * config.patch, columns * config.patch)
    g.output(g.reshape(video, *size), "video", size)
    return g


def temporal_bias(tokenizer: VideoTokenizer, layer: int, frames: int, valid: int) -> Tensor:
    """Bias of a temporal layer's scores where `valid` latent frames of past count: `(heads, T, K + T)`."""
    block, config = tokenizer.decoder.temporal.blocks[layer], tokenizer.config
    assert isinstance(block, TemporalBlock)
    slots, device = config.temporal_context - 1, block.attention.time_bias.device
    visible = band_mask(frames, slots + frames, config.temporal_context, device)
    visible = visible & (torch.arange(slots + frames, device=device) >= slots - valid)
    delta = time_delta(frames, slots + frames, device).clamp(0, config.temporal_context - 1)
    bias = block.attention.time_bias.detach()[:, delta]
    return bias.masked_fill(~visible, float("-inf")).contiguous()


class _Decoder:
    """Writes layers of the decoder into a graph; tokens are `(T h w, D)`."""

    def __init__(self, tokenizer: VideoTokenizer, frames: int, grid: tuple[int, int]) -> None:
        self.graph, self.config = Graph("decoder"), tokenizer.config
        self.frames, self.grid = frames, grid
        self.tokens = frames * grid[0] * grid[1]

    def norm(self, x: str, norm: TokenNorm) -> str:
        """As `TokenNorm`."""
        assert norm.eps is not None
        return self.graph.rms_norm(x, _array(norm.weight), norm.eps)

    def feed_forward(self, x: str, layer: FeedForward) -> str:
        """As `FeedForward`."""
        g = self.graph
        hidden = g.op("MatMul", self.norm(x, layer.norm), g.weight(_array(layer.up.weight).T))
        hidden = g.op("BiasGelu", hidden, g.weight(_array(layer.up.bias)), domain=CONTRIB)
        return g.op("Add", x, g.linear(hidden, _array(layer.down.weight), _array(layer.down.bias)))

    def temporal(
        self, x: str, block: TemporalBlock, layer: int, past: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        """As `TemporalBlock.step`; returns tokens and the layer's new keys and values."""
        g, attention, (rows, columns) = self.graph, block.attention, self.grid
        heads, slots, dim = attention.heads, self.config.temporal_context - 1, self.config.dim
        cells, length = rows * columns, self.config.temporal_context - 1 + self.frames
        qkv = g.linear(self.norm(x, attention.norm), _array(attention.qkv.weight), _array(attention.qkv.bias))
        qkv = g.op("Transpose", g.reshape(qkv, self.frames, cells, 3 * dim), perm=[1, 0, 2])
        query, key, value = g.split(qkv, 3, 2)
        query = self._head_norm(query, attention.query_norm, heads)
        key = self._head_norm(key, attention.key_norm, heads)
        joined, kept = [], []
        for held, own in zip(past, (key, value), strict=True):
            old = g.reshape(g.slice(held, layer, layer + 1, 0), cells, slots, dim)
            both = g.op("Concat", old, own, axis=1)
            joined.append(both)
            newest = g.slice(both, length - slots, length, 1)
            kept.append(g.reshape(newest, 1, 1, rows, columns, slots, dim))
        split = lambda part, count: g.op(  # noqa: E731
            "Transpose", g.reshape(part, cells, count, heads, dim // heads), perm=[0, 2, 1, 3]
        )
        bias = g.input(f"bias.{layer}", (heads, self.frames, length))
        y = self._attend(split(query, self.frames), split(joined[0], length), split(joined[1], length), bias)
        y = g.reshape(g.op("Transpose", y, perm=[2, 0, 1, 3]), self.tokens, dim)
        x = g.op("Add", x, g.linear(y, _array(attention.out.weight), _array(attention.out.bias)))
        return self.feed_forward(x, block.feed_forward), (kept[0], kept[1])

    def spatial(self, x: str, block: SpatialBlock) -> str:
        """As `SpatialBlock`."""
        g, (rows, columns), dim = self.graph, self.grid, self.config.dim
        conv = block.position.conv
        planes = g.op("Transpose", g.reshape(x, self.frames, rows, columns, dim), perm=[0, 3, 1, 2])
        changed = self._conv(planes, conv, dim)
        changed = g.reshape(g.op("Transpose", changed, perm=[0, 2, 3, 1]), self.tokens, dim)
        x = self._windows(g.op("Add", x, changed), block.attention)
        return self.feed_forward(x, block.feed_forward)

    def _windows(self, x: str, attention: WindowAttention) -> str:
        """As `WindowAttention.forward`."""
        g, (rows, columns), dim = self.graph, self.grid, self.config.dim
        heads, m = attention.heads, attention.window
        qkv = g.linear(self.norm(x, attention.norm), _array(attention.qkv.weight), _array(attention.qkv.bias))
        qkv = g.reshape(qkv, self.frames, rows, columns, 3 * dim)
        below, right = -rows % m, -columns % m
        if below or right:
            pads = g.constant(np.array([0, 0, 0, 0, 0, below, right, 0]))
            qkv = g.op("Pad", qkv, pads)
        height, width = rows + below, columns + right
        shifts = [axis_shift(cells, m, attention.shift) for cells in self.grid]
        for axis, shift in enumerate(shifts, 1):
            qkv = self._rolled(qkv, shift, (height, width)[axis - 1], axis)
        a, b = height // m, width // m
        qkv = g.reshape(qkv, self.frames, a, m, b, m, 3 * heads, dim // heads)
        qkv = g.op("Transpose", qkv, perm=[5, 0, 1, 3, 2, 4, 6])
        qkv = g.reshape(qkv, 3, heads, self.frames, a * b, m * m, dim // heads)
        parts = [g.op("Transpose", part, perm=[0, 2, 3, 1, 4, 5]) for part in g.split(qkv, 3, 0)]
        query, key, value = (g.reshape(p, self.frames, a * b, heads, m * m, dim // heads) for p in parts)
        query, key = (
            self.norm(part, norm) if isinstance(norm, TokenNorm) else part
            for part, norm in ((query, attention.query_norm), (key, attention.key_norm))
        )
        bias = attention.position_bias(rows, columns).detach().numpy()
        y = self._attend(query, key, value, g.weight(bias))
        y = g.reshape(y, self.frames, a, b, heads, m, m, dim // heads)
        y = g.op("Transpose", y, perm=[0, 1, 4, 2, 5, 3, 6])
        y = g.reshape(y, self.frames, height, width, dim)
        for axis, shift in enumerate(shifts, 1):
            size = (height, width)[axis - 1]
            y = self._rolled(y, (size - shift) % size, size, axis)
        if below or right:
            y = g.slice(g.slice(y, 0, rows, 1), 0, columns, 2)
        y = g.reshape(y, self.tokens, dim)
        return g.op("Add", x, g.linear(y, _array(attention.out.weight), _array(attention.out.bias)))

    def unpatchified(self, patches: str) -> str:
        """Patches `(T h w, P)` of groups of frames as pictures `(4 T, 3, H, W)`."""
        g, c, (rows, columns) = self.graph, self.config, self.grid
        x = g.reshape(patches, self.frames, rows, columns, c.temporal, c.patch, c.patch, c.in_channels)
        x = g.op("Transpose", x, perm=[0, 3, 6, 1, 4, 2, 5])
        return g.reshape(x, self.frames * c.temporal, c.in_channels, rows * c.patch, columns * c.patch)

    def refined(self, video: str, refiner: PixelRefiner) -> str:
        """As `PixelRefiner`, on pictures `(4 T, 3, H, W)`."""
        g, c = self.graph, self.config
        count, (height, width) = self.frames * c.temporal, (self.grid[0] * c.patch, self.grid[1] * c.patch)
        x = g.reshape(video, count, c.in_channels, height // 2, 2, width // 2, 2)
        x = g.op("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
        x = g.reshape(x, count, 4 * c.in_channels, height // 2, width // 2)
        x = self._conv(x, refiner.inner, 1)
        x = self._conv(g.op("Mul", x, g.op("Sigmoid", x)), refiner.outer, 1)
        x = g.op("DepthToSpace", x, blocksize=2, mode="CRD")
        return g.op("Add", video, x)

    def _attend(self, query: str, key: str, value: str, bias: str) -> str:
        """As `models.tokenizer_layers.attend`, on `(..., L, D)`."""
        g, width = self.graph, self.config.dim // self.config.heads
        turned = g.op("Transpose", key, perm=_last_swapped(4 if self._is_temporal(bias) else 5))
        query = g.op("Mul", query, g.constant(np.array(width**-0.5, np.float32)))
        scores = g.op("Add", g.op("MatMul", query, turned), bias)
        return g.op("MatMul", g.op("Softmax", scores, axis=-1), value)

    def _is_temporal(self, bias: str) -> bool:
        return bias.startswith("bias.")

    def _head_norm(self, x: str, norm: torch.nn.Module, heads: int) -> str:
        """A norm per head on `(cells, T, D)`, where there is one."""
        if not isinstance(norm, TokenNorm):
            return x
        width = self.config.dim // heads
        cells = self.grid[0] * self.grid[1]
        split = self.graph.reshape(x, cells, self.frames, heads, width)
        return self.graph.reshape(self.norm(split, norm), cells, self.frames, heads * width)

    def _conv(self, x: str, conv: torch.nn.Conv2d, group: int) -> str:
        """A 3 x 3 convolution that keeps the size."""
        g = self.graph
        weight, bias = g.weight(_array(conv.weight)), g.weight(_array(conv.bias))
        return g.op("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=group)

    def _rolled(self, x: str, shift: int, size: int, axis: int) -> str:
        """Cells moved towards the front by `shift`, around the border."""
        if shift == 0:
            return x
        parts = self.graph.slice(x, shift, size, axis), self.graph.slice(x, 0, shift, axis)
        return self.graph.op("Concat", *parts, axis=axis)


def _last_swapped(count: int) -> list[int]:
    return [*range(count - 2), count - 1, count - 2]


def _array(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().float().cpu().numpy()
