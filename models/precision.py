"""Angles in float64 on every device: where a device has none (Apple's GPUs), the host computes them."""

from collections.abc import Callable

from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)


def exactly(compute: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What a function of float64 arithmetic makes of values, on their device; in float32 where that has no
    float64.
    """
    if values.device.type not in WITHOUT_FLOAT64:
        return compute(values)
    return _on_host(compute, values).to(values.device)


def _on_host(compute: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    return compute(values.cpu()).float()
