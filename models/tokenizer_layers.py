"""Layers of the causal video tokenizer: spatial window attention, temporal causal attention, refinement.

All token tensors are `(B, N, H, W, D)`: batch, latent frames, token rows, token columns, channels. Every norm
is a norm over the channels of one token, so no layer but the temporal attention moves information between
latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention `(..., L, D)` with an additive bias broadcastable to `(..., L, L_key)`.

    Written out because its backward pass on a CPU is much faster than scaled_dot_product_attention with a
    bias.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = (scores + bias).softmax(dim=-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def band_mask(queries: int, keys: int, context: int, device: torch.device) -> Tensor:
    """Boolean `(queries, keys)`, True = visible: each query sees itself and the `context - 1` keys before it.

    The last query is aligned with the last key, so that `keys > queries` means that the first keys are older
    ones.
    """
    delta = time_delta(queries, keys, device)
    return (delta >= 0) & (delta < context)


def time_delta(queries: int, keys: int, device: torch.device) -> Tensor:
    """Age `(queries, keys)` of each key as seen by each query, in latent frames; negative is the future."""
    query_time = torch.arange(keys - queries, keys, device=device)
    return query_time[:, None] - torch.arange(keys, device=device)[None, :]


def axis_shift(cells: int, window: int, shift: int) -> int:
    """The shift used along an axis of `cells` tokens: none where one window already covers the axis."""
    return shift if cells > window else 0


def window_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor | None:
    """Boolean `(windows, window**2, window**2)`, True = visible: a grid padded to whole windows, rolled.

    Rolling by `shift` brings cells of opposite borders into one window; they are in different regions and do
    not see each other, and nobody sees padding (padding sees padding, so that no row is empty). None where
    all is visible.
    """
    if height % window == 0 and width % window == 0 and shift == 0:
        return None
    regions = []
    for cells in (height, width):
        padded = -(-cells // window) * window
        offset = axis_shift(cells, window, shift)
        index = (torch.arange(padded, device=device) + offset) % padded
        regions.append(torch.where(index < cells, (index < offset).long(), 2))
    rows, columns = regions
    padding = (rows == 2)[:, None] | (columns == 2)[None, :]
    label = torch.where(padding, -1, rows[:, None] * 2 + columns[None, :])
    label = rearrange(label, "(a m) (b n) -> (a b) (m n)", m=window, n=window)
    return label[:, :, None] == label[:, None, :]


class TokenNorm(nn.RMSNorm):
    """RMS norm over the channels of a token, computed in the precision of its weight."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(..., D)` to tokens of the same shape."""
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """Pre-norm two-layer GELU network with residual."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        self.norm = TokenNorm(dim)
        self.up = nn.Linear(dim, dim * mult)
        self.down = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(..., D)` to tokens of the same shape."""
        return x + self.down(F.gelu(self.up(self.norm(x))))


class PositionConv(nn.Module):
    """Depthwise 3x3 convolution over the cells of one frame, with residual: a positional encoding generator.

    Conditional positional encodings, arXiv 2102.10882; it has no temporal extent, unlike OmniTokenizer's.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, N, H, W, D)` to tokens of the same shape."""
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        return x + self.conv(frames).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class WindowAttention(nn.Module):
    """Pre-norm attention inside `window x window` cells of one latent frame, with residual.

    After Swin (arXiv 2103.14030). The windows are displaced by `shift` cells; there is no wrap-around.
    Positions enter only as a learned bias per head and relative offset. The grid may have any size: it is
    padded to whole windows and the padding is masked.
    """

    relative_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, shift: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm = TokenNorm(dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.query_norm = TokenNorm(dim // heads) if qk_norm else nn.Identity()
        self.key_norm = TokenNorm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)
        self.relative_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        cells = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"), -1)
        offset = cells.reshape(-1, 1, 2) - cells.reshape(1, -1, 2) + window - 1
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, N, H, W, D)` to tokens of the same shape."""
        batch, frames, height, width, _ = x.shape
        window = self.window
        shifts = (axis_shift(height, window, self.shift), axis_shift(width, window, self.shift))
        qkv = self.qkv(self.norm(x)).flatten(0, 1)
        qkv = F.pad(qkv, (0, 0, 0, -width % window, 0, -height % window))
        if any(shifts):
            qkv = qkv.roll((-shifts[0], -shifts[1]), dims=(1, 2))
        pattern = "f (a m) (b n) (s k d) -> s f (a b) k (m n) d"
        query, key, value = rearrange(qkv, pattern, s=3, k=self.heads, m=window, n=window)
        y = attend(self.query_norm(query), self.key_norm(key), value, self.position_bias(height, width))
        rows = qkv.shape[1] // window
        y = rearrange(y, "f (a b) k (m n) d -> f (a m) (b n) (k d)", a=rows, m=window)
        if any(shifts):
            y = y.roll(shifts, dims=(1, 2))
        y = y[:, :height, :width].unflatten(0, (batch, frames))
        return x + self.out(y)

    def position_bias(self, height: int, width: int) -> Tensor:
        """Position bias and mask, `(windows or 1, heads, window**2, window**2)`."""
        bias = self.relative_bias[self.relative_index].permute(2, 0, 1)[None]
        visible = window_mask(height, width, self.window, self.shift, bias.device)
        return bias if visible is None else bias.masked_fill(~visible[:, None], float("-inf"))


class SpatialBlock(nn.Module):
    """Position convolution, window attention, feed-forward: nothing crosses latent frames."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, ffn_mult: int, qk_norm: bool) -> None:
        super().__init__()
        self.position = PositionConv(dim)
        self.attention = WindowAttention(dim, heads, window, shift, qk_norm)
        self.feed_forward = FeedForward(dim, ffn_mult)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, N, H, W, D)` to tokens of the same shape."""
        return self.feed_forward(self.attention(self.position(x)))


@dataclass(frozen=True)
class Past:
    """Keys and values `(B, H, W, context - 1, D)` of the latest latent frames, newest last.

    Only the last `valid` of them count.
    """

    keys: Tensor
    values: Tensor
    valid: int


class TemporalAttention(nn.Module):
    """Pre-norm causal attention over time at each cell, with residual.

    A latent frame sees itself and the `context - 1` before it. Time enters only as a learned bias per head
    and age, so a stream has no last position. `forward` is the one-shot path under a band mask, `step` the
    streaming path.
    """

    def __init__(self, dim: int, heads: int, context: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.norm = TokenNorm(dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.query_norm = TokenNorm(dim // heads) if qk_norm else nn.Identity()
        self.key_norm = TokenNorm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)
        self.time_bias = nn.Parameter(torch.zeros(heads, context))

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip `(B, N, H, W, D)` to tokens of the same shape."""
        query, key, value = self._project(x)
        visible = band_mask(x.shape[1], x.shape[1], self.context, x.device)
        return x + self._attend(query, key, value, visible)

    def step(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        """The next latent frames `(B, n, H, W, D)` of a stream; returns theirs and the new past (views)."""
        query, key, value = self._project(x)
        key = torch.cat([past.keys.to(key.dtype), key], dim=-2)
        value = torch.cat([past.values.to(value.dtype), value], dim=-2)
        steps, slots, length = x.shape[1], past.keys.shape[-2], key.shape[-2]
        visible = band_mask(steps, length, self.context, x.device)
        visible = visible & (torch.arange(length, device=x.device) >= slots - past.valid)
        y = x + self._attend(query, key, value, visible)
        kept = slice(length - slots, length)
        new_keys = key[..., kept, :].to(past.keys.dtype)
        new_values = value[..., kept, :].to(past.values.dtype)
        return y, Past(new_keys, new_values, min(past.valid + steps, slots))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value `(B, H, W, N, D)`; the key is already normalised."""
        query, key, value = self.qkv(self.norm(x)).movedim(1, 3).chunk(3, dim=-1)
        heads = self.heads
        query = self.query_norm(query.unflatten(-1, (heads, -1))).flatten(-2)
        key = self.key_norm(key.unflatten(-1, (heads, -1))).flatten(-2)
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attention of `(B, H, W, N, D)` queries over older and own keys; returns `(B, N, H, W, D)`."""
        delta = time_delta(query.shape[-2], key.shape[-2], query.device).clamp(0, self.context - 1)
        bias = self.time_bias[:, delta].masked_fill(~visible, float("-inf"))
        split = "b h w n (k d) -> b h w k n d"
        query, key, value = (rearrange(part, split, k=self.heads) for part in (query, key, value))
        y = attend(query, key, value, bias)
        return self.out(rearrange(y, "b h w k n d -> b n h w (k d)"))


class TemporalBlock(nn.Module):
    """Temporal causal attention and feed-forward: nothing crosses cells."""

    def __init__(self, dim: int, heads: int, context: int, ffn_mult: int, qk_norm: bool) -> None:
        super().__init__()
        self.attention = TemporalAttention(dim, heads, context, qk_norm)
        self.feed_forward = FeedForward(dim, ffn_mult)

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip `(B, N, H, W, D)` to tokens of the same shape."""
        return self.feed_forward(self.attention(x))

    def step(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        """The next latent frames of a stream, see `TemporalAttention.step`."""
        y, past = self.attention.step(x, past)
        return self.feed_forward(y), past


class PixelRefiner(nn.Module):
    """Residual convolutions on single frames at half resolution, to remove the borders between patches."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(in_channels * 4, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, in_channels * 4, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        """Video `(B, T, C, H, W)` to video of the same shape; H and W even."""
        frames = F.pixel_unshuffle(video.flatten(0, 1), 2)
        change = F.pixel_shuffle(self.outer(F.silu(self.inner(frames))), 2)
        return video + change.unflatten(0, video.shape[:2])
