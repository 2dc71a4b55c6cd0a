"""Keys that processes of a wavefront pass on, from older chunks to younger ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..parallel.mesh import Mesh


class Passing:
    """A process's place in the row, for one forward.

    Args:
        mesh: the processes.
        shape: `(1, L, H, D)` of the keys of all chunks that processes before it compute.
        dtype: of keys and values.
    """

    def __init__(self, mesh: Mesh, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.mesh, self.shape, self.dtype = mesh, shape, dtype
        self._sent: list[Callable[[], None]] = []

    def joined(self, layer: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `models.frontier.Link`."""
        rank, parts = self.mesh.rank, []
        if rank:
            parts.append(self.mesh.received((2, *self.shape), self.dtype, rank - 1))
        if k is not None and v is not None:
            parts.append(torch.stack([k, v]))
        both = torch.cat(parts, 2)
        if rank + 1 < self.mesh.size:
            self._sent.append(self.mesh.sent(both, rank + 1))
        keys, values = both.unbind(0)
        return keys, values

    def finish(self) -> None:
        """Wait until all is on its way."""
        for wait in self._sent:
            wait()
        self._sent.clear()
