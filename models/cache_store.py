"""Keys and values of a cache in eight bits, read and written as if they were in full precision."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LARGEST = 127.0


@dataclass(frozen=True)
class EightBitStore:
    """A buffer `(layers, B, S, H, D)` of whole numbers with a scale for each head of each token (KIVI, arXiv
    2402.02750, calls it per-token). A part that is read comes back in full precision, a copy; a part that is
    assigned is rounded. So what holds a store need not know that it is none of plain numbers.

    Attributes:
        whole: int8, -127 to 127.
        scale: `(layers, B, S, H, 1)` float32.
        dtype: of what is read.
    """

    whole: Tensor
    scale: Tensor
    dtype: torch.dtype

    @classmethod
    def zeros(cls, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> "EightBitStore":
        """A store of zeros."""
        scale = torch.zeros(*size[:-1], 1, device=device)
        return cls(torch.zeros(size, device=device, dtype=torch.int8), scale, dtype)

    @property
    def shape(self) -> torch.Size:
        """Of the buffer."""
        return self.whole.shape

    def __getitem__(self, part: Any) -> Tensor:
        """A part in full precision."""
        return restored(self.whole[part], self.scale[part], self.dtype)

    def __setitem__(self, part: Any, x: Tensor | float) -> None:
        """Round numbers into a part."""
        if isinstance(x, Tensor):
            self.whole[part], self.scale[part] = rounded(x)
        else:
            assert x == 0, "a part is emptied or given numbers"
            self.whole[part] = 0
            self.scale[part] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.numel() * x.element_size() for x in (self.whole, self.scale))


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers `(..., D)` as int8, and the scale `(..., 1)` in float32 of each row."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / _LARGEST
    return (wide / scale.clamp(min=1e-12)).round().to(torch.int8), scale


def restored(whole: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that `rounded` has left."""
    return (whole * scale).to(dtype)
