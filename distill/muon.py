"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/), in what a device is fast in.

`torch.optim.Muon` makes steps orthogonal in bfloat16 whatever the device. Where that is emulated it took four
fifths of a training's time. The arithmetic here is the same, matrices of one size are done together, and
state and arguments are those of torch's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .precision import multiplies_bfloat16


class Muon(torch.optim.Muon):
    """Momentum whose steps are made orthogonal; see `torch.optim.Muon` for the arguments."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, gradients, buffers)
            if parameters:
                _update(group, parameters, gradients, buffers)
        return loss


def _update(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]
) -> None:
    momentum = group["momentum"]
    torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    steps = [
        gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        for gradient, buffer in zip(gradients, buffers, strict=True)
    ]
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, parameter in enumerate(parameters):
        alike.setdefault(tuple(parameter.shape), []).append(index)
    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
    for (rows, columns), indices in alike.items():
        stacked = torch.stack([steps[index] for index in indices])
        whitened = orthogonal(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for index, matrix in zip(indices, whitened, strict=True):
            parameters[index].add_(matrix, alpha=-rate)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly orthogonal matrices `(N, rows, columns)` of the same singular directions, singular values about
    1: `steps` of the quintic Newton-Schulz iteration with `coefficients`, in bfloat16 where the device
    computes in it, else in float32.
    """
    a, b, c = coefficients
    x = matrices.bfloat16() if multiplies_bfloat16(matrices.device) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    # singular values are at most 1
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
