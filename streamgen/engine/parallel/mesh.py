"""Processes that compute one stream together: who they are, and what goes between them.

All of them run the same program over the same stream. What decides its course (events, draws, steps) is the
same in each; only the work inside of a pass is shared out.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True)
class Mesh:
    """The processes of a launcher (torchrun), as a one-dimensional device mesh.

    Attributes:
        rank, size: which of how many this one is.
        device: that it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def exchanged(self, x: Tensor) -> Tensor:
        """All-to-all: part j of the first axis, which has `size` parts, goes to process j; what comes from
        process j is part j of the result.
        """
        out, x = torch.empty_like(x, memory_format=torch.contiguous_format), x.contiguous()
        dist.all_to_all_single(out, x)
        return out

    def gathered(self, x: Tensor, axis: int) -> Tensor:
        """The parts of all processes along an axis."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        return torch.cat(parts, axis)

    def sent(self, x: Tensor, to: int) -> Callable[[], None]:
        """Send a tensor to another process; what is returned waits until it is on its way."""
        x = x.contiguous()
        work = dist.isend(x, to)

        def wait() -> None:
            # holds the tensor until then
            if work is not None and x.numel():
                work.wait()

        return wait

    def received(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> Tensor:
        """What another process has sent, in the order in which it did."""
        out = torch.empty(shape, dtype=dtype, device=self.device)
        dist.recv(out, source)
        return out

    def share(self, x: Tensor, axis: int) -> Tensor:
        """This process's part of an axis."""
        width = x.shape[axis] // self.size
        return x.narrow(axis, self.rank * width, width)

    def any(self, asked: bool) -> bool:
        """Whether some process says so: what each sees for itself (a signal, a full disk) must not lead them
        different ways.
        """
        flag = torch.tensor([float(asked)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def stopped(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """A question that all processes ask at the same place, and answer alike."""
        return lambda: self.any(stop())


def launched() -> tuple[int, int, int] | None:
    """Rank, number of processes and rank on this machine, as a launcher says; None where there is but one."""
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return None
    return (rank, size, local) if 0 <= rank < size and size > 1 and local >= 0 else None


def joined(device: str = "auto") -> Mesh | None:
    """The mesh of this process's launcher; None where there is none.

    Args:
        device: `auto` takes the GPU of the process's number where there is one.

    Raises:
        InputError: the processes do not find each other, or there are more of them than GPUs.
    """
    place = launched()
    if place is None:
        return None
    rank, size, local = place
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: each process has its own, expected auto, cpu or cuda")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine has no GPU of its own: expected at most "
            f"{torch.cuda.device_count()} processes"
        )
    own = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if on_gpu else "gloo")
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the processes do not find each other ({' '.join(str(error).split())[:200]})"
            ) from None
    return Mesh(rank, size, own)
