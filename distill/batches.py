"""Micro-batches of a stage, optionally made one ahead in a background thread, and their way to a device."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .stage import Stage, Tick

T = TypeVar("T")


def moved(value: T, device: torch.device) -> T:
    """The same with all tensors on a device; what lies in pinned memory arrives while the host goes on."""
    return each_tensor(value, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor changed: those of dataclasses, mappings, lists and tuples in it, too."""
    if isinstance(value, Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: each_tensor(part, change) for name, part in vars(value).items()})
    if isinstance(value, Mapping):
        return {key: each_tensor(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each_tensor(part, change) for part in value)
    return value


class Batches:
    """Fetches micro-batches; with `ahead` the same micro-batch of the next step is made meanwhile, `pinned`
    where a device can fetch it without the host's waiting.
    """

    def __init__(self, stage: Stage, ahead: bool, pinned: bool = False) -> None:
        self._stage, self._pinned = stage, pinned
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._pending: tuple[Tick, Future[Any]] | None = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, tick: Tick) -> Any:
        """The micro-batch of `tick`."""
        if self._pool is None:
            return self._made(tick)
        pending, self._pending = self._pending, None
        matches = pending is not None and (pending[0].step, pending[0].micro) == (tick.step, tick.micro)
        batch = pending[1].result() if pending is not None and matches else self._made(tick)
        following = replace(tick, step=tick.step + 1)
        self._pending = (following, self._pool.submit(self._made, following))
        return batch

    def _made(self, tick: Tick) -> Any:
        batch = self._stage.batch(tick)
        return each_tensor(batch, _in_pinned_memory) if self._pinned else batch


def _in_pinned_memory(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
