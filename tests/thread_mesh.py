"""A mesh whose processes are threads, which exchange tensors in the same order and at the same places."""

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch
from torch import Tensor

from streamgen.engine.parallel.mesh import Mesh

CPU = torch.device("cpu")


class Table:
    """Where threads meet and lay down what the others take."""

    def __init__(self, size: int) -> None:
        self.size, self.gate = size, threading.Barrier(size)
        self.laid: list[Any] = [None] * size
        self.lines: defaultdict[tuple[int, int], Queue[Tensor]] = defaultdict(Queue)

    def all(self, rank: int, x: Any) -> list[Any]:
        self.laid[rank] = x
        self.gate.wait(60)
        taken = list(self.laid)
        self.gate.wait(60)
        return taken


@dataclass(frozen=True)
class ThreadMesh(Mesh):
    """A mesh whose processes are threads."""

    table: Table = None  # type: ignore[assignment]

    def exchanged(self, x: Tensor) -> Tensor:
        return torch.stack([other[self.rank] for other in self.table.all(self.rank, x)])

    def gathered(self, x: Tensor, axis: int) -> Tensor:
        return torch.cat(self.table.all(self.rank, x), axis)

    def sent(self, x: Tensor, to: int) -> Callable[[], None]:
        self.table.lines[self.rank, to].put(x.clone())
        return lambda: None

    def received(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> Tensor:
        x = self.table.lines[source, self.rank].get(timeout=30)
        assert (tuple(x.shape), x.dtype) == (tuple(shape), dtype)
        return x

    def any(self, asked: bool) -> bool:
        return any(self.table.all(self.rank, asked))


def together(size: int, work: Callable[[Mesh], Any]) -> list[Any]:
    """What each of the processes comes to; one that fails ends the others."""
    table = Table(size)

    def run(rank: int) -> Any:
        try:
            return work(ThreadMesh(rank, size, CPU, table))
        except BaseException:
            table.gate.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [future.exception(120) for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
