"""What torch is asked to do: floating-point operations, bytes read and written, kernels; counted, not timed.

Every operation that reaches a device is one kernel here, and reads its inputs and writes its outputs once:
what the networks cost as they read, without any fusion. Fused attention is one kernel on every device, the
meta device too, where nothing is computed: so a network of any size can be counted on a small machine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# these move nothing, though torch does not call them views
_FREE = ("aten::_unsafe_view", "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::detach")


@dataclass
class Work:
    """What was counted.

    Attributes:
        flops: of matrix products, convolutions and attention; a multiplication and an addition are two.
        bytes: read and written by all kernels.
        kernels: how many.
        names: how often each operation came.
    """

    flops: float = 0.0
    bytes: int = 0
    kernels: int = 0
    names: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, flops: float, tensors: list[Tensor]) -> None:
        """One more kernel."""
        self.flops += flops
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        self.kernels += 1
        self.names[name] = self.names.get(name, 0) + 1


@contextmanager
def counted(work: Work) -> Iterator[Work]:
    """While this lasts, what torch does is added to `work`."""
    with _Operations(work) as operations, _Attention(work, operations):
        yield work


class _Operations(TorchDispatchMode):
    """Counts what reaches a device."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.aside = work, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if not self.aside and not func.is_view and name not in _FREE:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            # a value that is changed in place is in both lists, and is read and written
            self.work.add(name, _flops(func, args, kwargs, out), [_stored(x) for x in tensors])
        return out


class _Attention(TorchFunctionMode):
    """Counts torch's attention as one kernel, whatever the device makes of it."""

    def __init__(self, work: Work, operations: _Operations) -> None:
        super().__init__()
        self.work, self.operations = work, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.operations.aside = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.operations.aside = False
        q, k, v = args[:3]
        flops = 2.0 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        self.work.add("attention", flops, [q, k, v, out])
        return out


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    packet = func._overloadpacket
    if packet is torch.ops.aten._int_mm:
        # eight-bit integers are no floating-point numbers, but as much work
        return 2.0 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=out))


def _stored(x: Tensor) -> Tensor:
    """What lies in memory of a tensor: values that were repeated by a stride of 0 are read once."""
    if 0 not in x.stride():
        return x
    return x[tuple(0 if stride == 0 else slice(None) for stride in x.stride())]
