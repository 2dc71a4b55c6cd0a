"""Networks of shapes alone: what they would take is counted before anything is allocated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What only sets numbers, and what makes of numbers as many others.
_SETS = {
    *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.zeros_, nn.init.ones_),
    *(Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_, Tensor.copy_),
}
_SCALES = {Tensor.div, Tensor.mul}


class ShapesAlone(TorchFunctionMode):
    """While it lasts, parameters of new modules have no numbers: they are on the meta device.

    `torch.device("meta")` does it, too, but there torch finds the shape of a draw and of a division in
    Python, and imports its compiler for that: more than all else that a small model needs to be loaded.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in (torch.empty, torch.randn):
            named.pop("generator", None)
            return torch.empty(*args, **(named | {"device": "meta"}))
        first = args[0] if args else named.get("tensor")
        if isinstance(first, Tensor) and first.is_meta:
            if func in _SETS:
                return first
            if func in _SCALES:
                return torch.empty(first.shape, dtype=first.dtype, device="meta")
        return func(*args, **named)
