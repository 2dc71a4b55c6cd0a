"""Point tracks as channels of the latent grid (MotionStream, arXiv 2511.01266, section 3.1), with explicit
states.

Each track has a random id whose 64-d sinusoid is written at the track's place in each pixel frame; four pixel
frames are then compressed to one latent frame as the tokenizer does (frame 0 alone), and projected. All of it
is linear without bias, so an empty cell is exactly zero and null motion is the absence of tracks. Beyond the
paper: visible, occluded and pinned points carry a channel of their own, so that "hidden" differs from
"unspecified", and on coarse grids a point is spread bilinearly over the four nearest cells, since on an 8x8
grid the nearest cell alone would hide movements of up to an eighth of the picture.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .precision import exactly

UNSPECIFIED, VISIBLE, OCCLUDED = 0, 1, 2
_STATE_CHANNELS = 3


@dataclass(frozen=True)
class Tracks:
    """A batch of tracks over pixel frames.

    `points (B, N, T, 2)` normalised (x, y); `state (B, N, T)` one of UNSPECIFIED, VISIBLE, OCCLUDED; `pinned
    (B, N)` bool; `ids (B, N)` int64. A padding track is UNSPECIFIED throughout.
    """

    points: Tensor
    state: Tensor
    pinned: Tensor
    ids: Tensor


@dataclass(frozen=True, kw_only=True)
class MotionEncoderConfig:
    """Sizes of the motion encoder; `channels` is what the DiT gets as `motion_channels`."""

    channels: int = 16
    id_dim: int = 64
    hidden: int = 32
    temporal: int = 4
    splat: Literal["bilinear", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        if self.splat not in ("bilinear", "nearest"):
            raise ValueError(f"splat must be bilinear or nearest, found {self.splat!r}")


class MotionEncoder(nn.Module):
    """Tracks to motion latents."""

    def __init__(self, config: MotionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        features = config.id_dim + _STATE_CHANNELS
        # one matrix per pixel frame of a group: the stride-4 temporal convolution, applied before scattering
        # since both are linear
        self.temporal = nn.Parameter(torch.randn(config.temporal, features, config.hidden) / features**0.5)
        self.projection = nn.Linear(config.hidden, config.channels, bias=False)

    def forward(self, tracks: Tracks, grid: tuple[int, int], first: bool) -> Tensor:
        """Motion latents of consecutive pixel frames.

        Args:
            tracks: T pixel frames, `1 + 4k` of them when `first` (the stream's frame 0 is a latent frame of
                its own), else `4k`.
            grid: latent rows and columns.
            first: whether the first pixel frame is frame 0 of the stream.

        Returns:
            `(B, latent frames, channels, *grid)`.

        Raises:
            ValueError: a frame count that does not fill whole latent frames.
        """
        batch, _, frames = tracks.state.shape
        pad = self.config.temporal - 1 if first else 0
        if frames == 0 or (frames + pad) % self.config.temporal:
            form = "1 + 4k" if first else "4k"
            raise ValueError(f"tracks must cover {form} pixel frames here, found {frames}")
        latent_frames = (frames + pad) // self.config.temporal
        time = torch.arange(frames, device=tracks.points.device) + pad
        hidden = torch.einsum(
            "bntf,tfh->bnth", self.features(tracks), self.temporal[time % self.config.temporal]
        )
        cells, weights = splat_weights(tracks.points, grid, self.config.splat)
        index = (time // self.config.temporal)[:, None] * (grid[0] * grid[1]) + cells
        index = rearrange(index, "b n t k -> b (n t k)")
        values = rearrange(hidden[..., None, :] * weights[..., None], "b n t k h -> b (n t k) h")
        out = values.new_zeros(batch, latent_frames * grid[0] * grid[1], self.config.hidden)
        out = out.scatter_add(1, index[..., None].expand_as(values), values)
        out = self.projection(out.to(self.projection.weight.dtype))
        return rearrange(out, "b (t h w) c -> b t c h w", t=latent_frames, h=grid[0])

    def features(self, tracks: Tracks) -> Tensor:
        """`(B, N, T, id_dim + 3)`: id sinusoid where visible; visible, occluded, pinned flags; all zero where
        unspecified.
        """
        visible = (tracks.state == VISIBLE).to(self.temporal.dtype)[..., None]
        occluded = (tracks.state == OCCLUDED).to(self.temporal.dtype)[..., None]
        pinned = tracks.pinned[..., None, None] * (visible + occluded)
        phi = id_embedding(tracks.ids, self.config.id_dim).to(visible.dtype)
        return torch.cat([phi[:, :, None] * visible, visible, occluded, pinned], -1)


def id_embedding(ids: Tensor, dim: int) -> Tensor:
    """Sinusoid of track ids: `(...)` int64 -> `(..., dim)` float32, sines first."""

    def waves(values: Tensor) -> Tensor:
        ladder = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=values.device) / (dim // 2))
        angles = values.to(torch.float64)[..., None] * ladder
        return torch.cat([angles.sin(), angles.cos()], -1).float()

    return exactly(waves, ids)


def splat_weights(points: Tensor, grid: tuple[int, int], splat: str) -> tuple[Tensor, Tensor]:
    """Cells and weights of points on a latent grid.

    Args:
        points: `(..., 2)` normalised (x, y); cell centres are at (i + 0.5) / size.
        grid: rows and columns.
        splat: `nearest` (one cell, weight 1) or `bilinear` (four cells, weights that sum to 1; clamped at the
            border).

    Returns:
        flat cell indices `(..., K)` int64 and weights `(..., K)`, K = 1 or 4.
    """
    # plain numbers, not tensors: those would have to be copied to the device in every chunk
    rows, columns = grid
    x, y = points[..., 0] * columns, points[..., 1] * rows
    if splat == "nearest":
        column, row = _cell(x.floor(), columns), _cell(y.floor(), rows)
        return (row * columns + column)[..., None], torch.ones_like(points[..., :1])
    x, y = x - 0.5, y - 0.5
    low_x, low_y = x.floor(), y.floor()
    frac_x, frac_y = x - low_x, y - low_y
    cells, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            cells.append(_cell(low_y + dy, rows) * columns + _cell(low_x + dx, columns))
            weights.append((frac_x if dx else 1 - frac_x) * (frac_y if dy else 1 - frac_y))
    return torch.stack(cells, -1), torch.stack(weights, -1)


def _cell(place: Tensor, cells: int) -> Tensor:
    """The cell of whole places along an axis; those outside go to the border."""
    return place.long().clamp(min=0, max=cells - 1)
