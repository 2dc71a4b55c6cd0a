"""Three-dimensional rotary position embedding over (latent frame, row, column).

Source: RoFormer (arXiv 2104.09864); the split of the head dimension over the three axes is that of Wan2.1
(Apache-2.0 repository Wan-Video/Wan2.1). Adjacent elements (2i, 2i + 1) form a rotated pair. Angles are
computed in float64, so that a stream whose time index has grown to millions still has exact position
differences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .precision import exactly


@dataclass(frozen=True)
class RotaryTables:
    """Cosines and sines of the rotation of every token, each `(L, D / 2)` float32."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> "RotaryTables":
        return RotaryTables(self.cos.to(device), self.sin.to(device))


class RotaryEmbedding3D:
    """Rotation tables for tokens in (frame, row, column) order.

    Args:
        head_dim: size D of one attention head; even. Rows and columns get `2 * (D // 6)` dimensions each,
            time the rest.
        theta: base of the geometric frequency ladder; each axis has its own ladder over its own dimensions.
        spacing: what rows and columns count from one token to the next; below 1 where patches overlap.

    Raises:
        ValueError: `head_dim` is odd or leaves an axis without dimensions.
    """

    def __init__(self, head_dim: int, theta: float = 10000.0, spacing: float = 1.0) -> None:
        space = 2 * (head_dim // 6)
        if head_dim % 2 or space == 0:
            raise ValueError(f"head_dim must be even and at least 6 for 3-D RoPE, found {head_dim}")
        self.head_dim = head_dim
        across = _ladder(space, theta) * spacing
        self.frequencies = (_ladder(head_dim - 2 * space, theta), across, across)
        # copied to a device once, not in every chunk
        self._placed: dict[torch.device, tuple[Tensor, ...]] = {}

    def tables(self, frames: Tensor, height: int, width: int) -> RotaryTables:
        """Tables for all tokens of the given frames.

        Args:
            frames: `(F,)` time positions, any integer or float64 values.
            height, width: the token grid.

        Returns:
            tables with `L = F * height * width` rows, on the device of `frames`.
        """
        cos, sin = exactly(lambda times: self._waves(times, height, width), frames).unbind()
        return RotaryTables(cos, sin)

    def _waves(self, frames: Tensor, height: int, width: int) -> Tensor:
        """Cosines and sines `(2, L, D / 2)` in float32, from angles in float64."""
        device = frames.device
        if device not in self._placed:
            self._placed[device] = tuple(f.to(device) for f in self.frequencies)
        time, row, column = self._placed[device]
        angles_t = frames.to(torch.float64)[:, None] * time
        angles_h = torch.arange(height, dtype=torch.float64, device=device)[:, None] * row
        angles_w = torch.arange(width, dtype=torch.float64, device=device)[:, None] * column
        grid = (len(frames), height, width)
        angles = torch.cat(
            [
                angles_t[:, None, None].expand(*grid, -1),
                angles_h[None, :, None].expand(*grid, -1),
                angles_w[None, None, :].expand(*grid, -1),
            ],
            dim=-1,
        ).flatten(0, 2)
        return torch.stack([angles.cos().float(), angles.sin().float()])


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate `x (..., L, H, D)` by tables of L rows; returns the dtype of `x`."""
    cos, sin = tables.cos[:, None, :], tables.sin[:, None, :]
    wide = at_least_float32(x)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _ladder(dim: int, theta: float) -> Tensor:
    # on the host, whatever device modules are being made on: it may have no float64
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
