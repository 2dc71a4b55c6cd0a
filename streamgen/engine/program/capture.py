"""Captures: what a function did once, done again at the same addresses and without the host.

A captured function takes nothing and gives nothing: it reads and writes tensors that stay where they are.
Whatever in it was a number of the host is what it was.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

Work = Callable[[], None]
# runs before a capture: first ones choose kernels and allocate what libraries keep
_WARM = 2


class Capture(Protocol):
    """A way to capture."""

    def capture(self, work: Work) -> Work:
        """Run a function, capture it, and return what replays it. Its effects are those of having run."""
        ...


class CudaCapture:
    """CUDA graphs. Captures share one pool of memory, since no two of them run at once; other threads may
    use the device meanwhile (`thread_local`).

    Args:
        device: of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def capture(self, work: Work) -> Work:
        """See `Capture`. What was captured is kept after its first replay alone.

        Raises:
            RuntimeError: something in the work cannot be captured.
        """
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            aside = torch.cuda.Stream(self.device)
            aside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(aside):
                for _ in range(_WARM):
                    work()
            torch.cuda.current_stream(self.device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
            graph.replay()
            torch.cuda.current_stream(self.device).synchronize()
        return graph.replay


class EagerCapture:
    """What a CUDA graph does, on any device: the operations of one run are kept, each with the tensors and
    numbers that it was given, and done again in their order. Tests hold programs against it: whatever depends
    on the host is found as it would be on a GPU.
    """

    def capture(self, work: Work) -> Work:
        """See `Capture`."""
        with _Recorder() as recorder:
            work()
        return recorder.replay


class _Recorder(TorchDispatchMode):
    """Keeps operations as they reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if "local_scalar" in str(func):
            raise RuntimeError("a value is read on the host, which no capture can repeat")
        self.steps.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        now: dict[int, Tensor] = {}
        placed = lambda x: now.get(id(x), x) if isinstance(x, Tensor) else x  # noqa: E731
        for func, args, kwargs, out in self.steps:
            made = func(*tree_map(placed, args), **tree_map(placed, kwargs))
            for before, after in zip(_tensors(out), _tensors(made), strict=True):
                now[id(before)] = after


def _tensors(out: Any) -> list[Tensor]:
    return [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor)]
