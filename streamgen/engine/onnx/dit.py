"""The diffusion transformer as an ONNX graph: one pass of one chunk over the cache, as `models.causal_dit`
and `models.kv_cache` compute it.

The same graph denoises and commits: it always gives the chunk's own keys and values, which its caller lets it
write to the places where the chunk stays. What does not change within a chunk comes in as it is: the context
as the parts of the ring before and behind the chunk's own places, rotation tables, the motion's share of the
first layer, and the modulation of all layers at a noise level.
"""

import threading
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig, DiTBlock, Head, timestep_embedding

from .graph import CONTRIB, Graph

# shift, scale and gate of attention, and of the feed-forward
_PARTS = 6


@dataclass(frozen=True)
class PassShape:
    """What a graph is made for: latent frames of the chunk, and the token grid."""

    frames: int
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Tokens of the chunk."""
        return self.frames * self.grid[0] * self.grid[1]


def dit_graph(dit: CausalDiT, shape: PassShape) -> Graph:
    """The graph of one pass.

    Inputs, R tokens in the chunk, P and Q of the context before and behind its places, D width:
        `x (1, T, C, H, W)` noisy latents; `base (R, D)`, see `base_of`; `cos, sin (R, head_dim / 2)`;
        `modulation`, see `Modulation`; per layer i `past_key.i, past_value.i (1, P, D)`,
        `next_key.i, next_value.i (1, Q, D)` rotated, `text_key.i, text_value.i (1, words, D)`.
    Outputs: `velocity` of the shape of x; per layer `key.i` rotated, `raw_key.i`, `value.i`, all `(1, R, D)`.
    """
    config, t = dit.config, shape.frames
    dim, channels = config.dim, config.latent_channels
    graph = Graph("dit")
    shaped = (1, t, channels, *config.patches.cells(shape.grid))
    x = graph.input("x", shaped)
    base = graph.input("base", (shape.tokens, dim))
    tables = (
        graph.input("cos", (shape.tokens, config.head_dim // 2)),
        graph.input("sin", (shape.tokens, config.head_dim // 2)),
        graph.constant(np.array([0])),
    )
    count = config.layers * _PARTS + 2
    size = (count * dim,) if t == 1 else (count, t, 1, dim)
    modulation = graph.split(graph.input("modulation", size), count, 0)
    patches = _cut(graph, x, shape, config)
    weight = dit.patch_embedding.weight.detach()[:, :channels].flatten(1)
    hidden = graph.op("Add", graph.linear(patches, weight.numpy()), base)
    writer = _Blocks(graph, dit, shape, tables)
    for layer, block in enumerate(dit.blocks):
        assert isinstance(block, DiTBlock)
        hidden = writer.block(hidden, block, layer, modulation[layer * _PARTS : (layer + 1) * _PARTS])
    shift, scale = modulation[-2:]
    out = writer.modulated(hidden, shift, scale, dit.head.eps)
    out = graph.linear(out, _array(dit.head.head.weight), _array(dit.head.head.bias))
    graph.output(graph.reshape(_joined(graph, out, shape, config), *shaped), "velocity", shaped)
    return graph


def _cut(graph: Graph, x: str, shape: PassShape, config: CausalDiTConfig) -> str:
    """As `Patches.cut`: `(R, C * size * size)`."""
    (rows, columns), t, p, channels = shape.grid, shape.frames, config.patch, config.latent_channels
    if config.patches.overlap:
        cells = config.patches.places(shape.grid)
        x = graph.reshape(x, t, channels, -1)
        x = graph.op("Gather", x, graph.constant(cells.flatten().numpy()), axis=2)
        x = graph.op("Transpose", graph.reshape(x, t, channels, *cells.shape), perm=[0, 2, 1, 3])
    else:
        x = graph.reshape(x, t, channels, rows, p, columns, p)
        x = graph.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
    return graph.reshape(x, shape.tokens, channels * p * p)


def _joined(graph: Graph, out: str, shape: PassShape, config: CausalDiTConfig) -> str:
    """As `Patches.joined` of `(R, size * size * C)`: with as many numbers as the latents, in their order."""
    (rows, columns), t, p, channels = shape.grid, shape.frames, config.patch, config.latent_channels
    if not config.patches.overlap:
        out = graph.reshape(out, t, rows, columns, p, p, channels)
        return graph.op("Transpose", out, perm=[0, 5, 1, 3, 2, 4])
    cells = config.patches.places(shape.grid).flatten()
    # the mean of what is told of each cell
    told = torch.nn.functional.one_hot(cells).T.float()
    told = told / told.sum(1, keepdim=True)
    out = graph.op("MatMul", graph.weight(told.numpy()), graph.reshape(out, t, -1, channels))
    return graph.op("Transpose", out, perm=[0, 2, 1])


class _Blocks:
    """Writes blocks into a graph; hidden tokens are `(R, D)`."""

    def __init__(self, graph: Graph, dit: CausalDiT, shape: PassShape, tables: tuple[str, str, str]) -> None:
        self.graph, self.config, self.shape = graph, dit.config, shape
        self.cos, self.sin, self.offset = tables
        self.ones = graph.constant(np.ones(dit.config.dim, np.float32))
        self.flat = graph.constant(np.array([shape.tokens, dit.config.dim]))
        self.framed = graph.constant(np.array([1, shape.frames, -1, dit.config.dim]))
        self.batched = graph.constant(np.array([1, -1, dit.config.dim]))

    def block(self, x: str, block: DiTBlock, layer: int, modulation: tuple[str, ...]) -> str:
        """As `DiTBlock.forward`."""
        g = self.graph
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        attended = self._self_attention(self.modulated(x, shift1, scale1, block.eps), block, layer)
        x = g.op("Add", x, self._gated(attended, gate1))
        weight, bias = _array(block.norm3.weight), _array(block.norm3.bias)
        normed = g.op(
            "LayerNormalization", x, g.weight(weight), g.weight(bias), axis=-1, epsilon=block.norm3.eps
        )
        x = g.op("Add", x, self._cross_attention(normed, block, layer))
        up, down = cast("nn.Linear", block.ffn[0]), cast("nn.Linear", block.ffn[2])
        hidden = g.op(
            "FastGelu",
            g.op("MatMul", self.modulated(x, shift2, scale2, block.eps), g.weight(_array(up.weight).T)),
            g.weight(_array(up.bias)),
            domain=CONTRIB,
        )
        hidden = g.linear(hidden, _array(down.weight), _array(down.bias))
        return g.op("Add", x, self._gated(hidden, gate2))

    def modulated(self, x: str, shift: str, scale: str, eps: float) -> str:
        """Norm, scale and shift; of one frame all in one operator. `scale` has its 1 already."""
        g = self.graph
        if self.shape.frames == 1:
            return g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)
        normed = g.op("LayerNormalization", x, self.ones, axis=-1, epsilon=eps)
        framed = g.op("Reshape", normed, self.framed)
        return g.op("Reshape", g.op("Add", g.op("Mul", framed, scale), shift), self.flat)

    def _gated(self, x: str, gate: str) -> str:
        g = self.graph
        if self.shape.frames == 1:
            return g.op("Mul", x, gate)
        return g.op("Reshape", g.op("Mul", g.op("Reshape", x, self.framed), gate), self.flat)

    def _self_attention(self, x: str, block: DiTBlock, layer: int) -> str:
        g, attention = self.graph, block.self_attn
        linears = (attention.q, attention.k, attention.v)
        joined = [np.concatenate([_array(getattr(each, name)) for each in linears]) for name in _LINEAR]
        q, k, v = g.split(g.linear(x, *joined), 3, -1)
        q = g.rms_norm(q, _array(attention.norm_q.weight), attention.norm_q.eps)
        k = g.rms_norm(k, _array(attention.norm_k.weight), attention.norm_k.eps)
        q, k, v = (g.op("Reshape", each, self.batched) for each in (q, k, v))
        turned, rotated = self._rotated(q), self._rotated(k)
        own, around = (1, self.shape.tokens, self.config.dim), []
        for name, value in (("key", rotated), ("value", v)):
            past = g.input(f"past_{name}.{layer}", (1, "past", self.config.dim))
            following = g.input(f"next_{name}.{layer}", (1, "next", self.config.dim))
            around.append(g.op("Concat", past, value, following, axis=1))
            g.output(value, f"{name}.{layer}", own)
        g.output(k, f"raw_key.{layer}", own)
        return g.linear(self._attend(turned, *around), _array(attention.o.weight), _array(attention.o.bias))

    def _cross_attention(self, x: str, block: DiTBlock, layer: int) -> str:
        g, attention = self.graph, block.cross_attn
        q = g.linear(x, _array(attention.q.weight), _array(attention.q.bias))
        q = g.rms_norm(q, _array(attention.norm_q.weight), attention.norm_q.eps)
        words = (1, "words", self.config.dim)
        key, value = (g.input(f"text_{name}.{layer}", words) for name in ("key", "value"))
        out = self._attend(g.op("Reshape", q, self.batched), key, value)
        return g.linear(out, _array(attention.o.weight), _array(attention.o.bias))

    def _attend(self, q: str, k: str, v: str) -> str:
        """Attention of `(1, L, D)` over `(1, S, D)`, as tokens `(R, D)`."""
        out = self.graph.op("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=self.config.heads)
        return self.graph.op("Reshape", out, self.flat)

    def _rotated(self, x: str) -> str:
        """Rotation of adjacent pairs, as `models.rope.rotate`."""
        return self.graph.op(
            "RotaryEmbedding",
            x,
            self.offset,
            self.cos,
            self.sin,
            domain=CONTRIB,
            interleaved=1,
            num_heads=self.config.heads,
        )


_LINEAR = ("weight", "bias")


class Modulation:
    """What noise level and guidance strengths do to every layer, kept for the last few of them: a stream asks
    for the same ones in every chunk.

    Args:
        most: how many are kept.
    """

    def __init__(self, dit: CausalDiT, most: int = 32) -> None:
        self.dit, self.most = dit, most
        # streams of several threads ask
        self._looking = threading.Lock()
        self._kept: dict[tuple[float, tuple[float, float] | None, int], Tensor] = {}

    @torch.no_grad()
    def at(self, timestep: float, strengths: tuple[float, float] | None, frames: int) -> Tensor:
        """Of each layer shift, 1 + scale and gate of attention and of the feed-forward, then shift and
        1 + scale of the head.

        Returns:
            `(count x D,)` for one frame, `(count, T, 1, D)` for more; not to be changed.
        """
        key = (timestep, strengths, frames)
        with self._looking:
            found = self._kept.pop(key, None)
            if found is None:
                found = self._made(timestep, strengths, frames)
            self._kept[key] = found
            if len(self._kept) > self.most:
                self._kept.pop(next(iter(self._kept)))
            return found

    def _made(self, timestep: float, strengths: tuple[float, float] | None, frames: int) -> Tensor:
        dit = self.dit
        waves = timestep_embedding(torch.full((1, frames), timestep), dit.config.freq_dim)
        time = dit.time_embedding(waves.to(dit.head.head.weight.dtype))
        if strengths is not None:
            time = time + dit.embed_guidance(torch.tensor(strengths).expand(1, frames, 2), time.dtype)
        parts = dit.time_projection(time).unflatten(-1, (_PARTS, dit.config.dim))
        rows = []
        for block in dit.blocks:
            assert isinstance(block, DiTBlock)
            shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + parts).unbind(2)
            rows += [shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2]
        assert isinstance(dit.head, Head)
        shift, scale = (dit.head.modulation + time[:, :, None]).unbind(2)
        table = torch.cat([*rows, shift, 1 + scale]).contiguous()
        return table.flatten() if frames == 1 else table[:, :, None].contiguous()


@torch.no_grad()
def base_of(dit: CausalDiT, shape: PassShape, motion: Tensor | None) -> Tensor:
    """What the first layer makes of motion latents `(1, T, channels, H, W)`, bias included: `(R, D)`."""
    bias = dit.patch_embedding.bias
    assert bias is not None
    if motion is None:
        return bias.expand(shape.tokens, -1).contiguous()
    patches = dit.config.patches.cut(motion)
    weight = dit.patch_embedding.weight[:, dit.config.latent_channels :].flatten(1)
    made: Tensor = torch.nn.functional.linear(patches.flatten(0, 2), weight, bias)
    return made.contiguous()


def _array(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().float().cpu().numpy()
