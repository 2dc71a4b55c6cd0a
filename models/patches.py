"""Tokens of latent frames: square patches, side by side or overlapping."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import fold


@dataclass(frozen=True)
class Patches:
    """How a latent frame is cut into tokens.

    With a `stride` below the `size` patches overlap (the soft split of T2T-ViT, arXiv 2101.11986): tokens lie
    closer, each sees as much as before, and where several tell of a latent cell, their mean counts. No token
    reaches beyond the border.

    Args:
        size: side of a patch in latent cells.
        stride: cells from one patch to the next, a part of the size.

    Raises:
        ValueError: a stride that does not divide the size.
    """

    size: int = 2
    stride: int = 2

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 1 or self.size % self.stride:
            raise ValueError(
                f"patch_stride: expected a number of latent cells that divides the patch ({self.size}), "
                f"found {self.stride}"
            )

    @staticmethod
    def of(size: int, stride: int | None) -> "Patches":
        """Patches of a size; without a stride they lie side by side."""
        return Patches(size, size if stride is None else stride)

    @property
    def overlap(self) -> bool:
        """Whether patches share cells."""
        return self.stride < self.size

    @property
    def spacing(self) -> float:
        """From one token to the next in patches, which is what rotary positions count."""
        return self.stride / self.size

    def fit(self, height: int, width: int) -> bool:
        """Whether latents of this size are cut without a rest."""
        return all(cells >= self.size and cells % self.stride == 0 for cells in (height, width))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for latents of this size."""
        return (height - self.size) // self.stride + 1, (width - self.size) // self.stride + 1

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of latents with such a grid of tokens."""
        rows, columns = grid
        return (rows - 1) * self.stride + self.size, (columns - 1) * self.stride + self.size

    def cut(self, latents: Tensor) -> Tensor:
        """Latents `(B, T, C, H, W)` as tokens `(B, T, rows * columns, C * size * size)`, channel first."""
        p = self.size
        if not self.overlap:
            return rearrange(latents, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        windows = latents.unfold(3, p, self.stride).unfold(4, p, self.stride)
        return rearrange(windows, "b t c h w p q -> b t (h w) (c p q)")

    def joined(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latents `(B, T, C, H, W)` of tokens `(B, T, rows * columns, size * size * C)`, channel last."""
        (rows, columns), p, batch = grid, self.size, len(tokens)
        if not self.overlap:
            return rearrange(tokens, "b t (h w) (p q c) -> b t c (h p) (w q)", h=rows, w=columns, p=p, q=p)
        parts = rearrange(tokens, "b t n (p q c) -> (b t) (c p q) n", p=p, q=p)
        sums = fold(parts, self.cells(grid), p, stride=self.stride) / self._counts(grid, tokens.device)
        return rearrange(sums.to(tokens.dtype), "(b t) c h w -> b t c h w", b=batch)

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Which cells each patch has, `(rows * columns, size * size)`, counted row by row."""
        height, width = self.cells(grid)
        cells = torch.arange(height * width).view(height, width)
        windows = cells.unfold(0, self.size, self.stride).unfold(1, self.size, self.stride)
        return windows.flatten(2).flatten(0, 1)

    def _counts(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Patches that each cell is in, `(H, W)`."""
        (rows, columns), p = grid, self.size
        ones = torch.ones(1, p * p, rows * columns, device=device)
        return fold(ones, self.cells(grid), p, stride=self.stride)[0, 0]
