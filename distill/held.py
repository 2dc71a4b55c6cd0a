"""Frozen networks that lie on the CPU and are on the device a part at a time, while that is computed."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import entry_points, units

#: Where weights go while they are used.
Place = Callable[[Tensor], Tensor]


def offload(module: nn.Module, device: torch.device) -> None:
    """Keep the parameters of `module` on the CPU, in place; buffers, which are small, go to the device.

    The parts that sharding gathers together (`distill.sharding.units`: blocks above all) come to the device
    when one of their ways in is entered, and what they took is given up when it is left. So the device holds
    one block and what its network has outside of blocks.
    """
    module.to("cpu")
    pinned = device.type == "cuda"
    for parameter in module.parameters():
        parameter.data = parameter.data.pin_memory() if pinned else parameter.data
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    lend(module, lambda tensor: tensor.to(device, non_blocking=pinned))


def lend(module: nn.Module, place: Place) -> None:
    """Let every part of `module` compute with `place` of its parameters, and with none but while it does."""
    taken: set[nn.Module] = set()
    for part in (*units(module), module):
        # what inner parts hold is theirs
        own = [owner for owner in part.modules() if owner not in taken]
        taken.update(own)
        visit = _Visit(
            [(owner, name) for owner in own for name, p in owner._parameters.items() if p is not None], place
        )
        for name in ("forward", *entry_points(part)):
            # on the instance, as recomputing and sharding do
            setattr(part, name, visit.around(getattr(part, name)))


class _Visit:
    """Parameters, as owners and names, that are elsewhere from the first entry into their part to the last
    exit. Others take their places meanwhile: a gradient through them keeps what it was computed with.
    """

    def __init__(self, parameters: list[tuple[nn.Module, str]], place: Place) -> None:
        self.parameters, self.place = parameters, place
        self._home: list[nn.Parameter] = []
        self._depth = 0

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A way into the part."""

        @wraps(method)
        def enter(*arguments: Any, **named: Any) -> Any:
            if self._depth == 0:
                home = [owner.get_parameter(name) for owner, name in self.parameters]
                away = [nn.Parameter(self.place(p.data), requires_grad=False) for p in home]
                self._home = home
                self._put(away)
            self._depth += 1
            try:
                return method(*arguments, **named)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._put(self._home)

        return enter

    def _put(self, parameters: list[nn.Parameter]) -> None:
        for (owner, name), parameter in zip(self.parameters, parameters, strict=True):
            setattr(owner, name, parameter)
