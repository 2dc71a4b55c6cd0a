"""From noise to one clean chunk: free functions over a velocity field."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .scheduler import add_noise, x0_from_velocity

Velocity = Callable[[Tensor, float], Tensor]
# told what a step has made: its number, the tensor's name, the tensor
Watch = Callable[[int, str, Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """How a chunk is solved.

    `sigmas` falling from 1 to 0; `renoise` consistency-style steps instead of Euler; `context_sigma` noise
    level at which finished chunks are committed, `commit_noise` whether they get noise of that level or (as
    in the published inference code of Self Forcing) only its timestep; `exit_step` and `with_gradient` are
    for Self Forcing (see `denoise_chunk`).
    """

    sigmas: tuple[float, ...]
    renoise: bool = False
    context_sigma: float = 0.0
    commit_noise: bool = True
    exit_step: int | None = None
    with_gradient: bool = False


def denoise_chunk(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Sequence[float],
    renoise: Callable[[int], Tensor] | None = None,
    exit_step: int | None = None,
    with_gradient: bool = False,
    watch: Watch = lambda step, name, x: None,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solve one chunk from noise to data.

    Args:
        velocity: `(x, sigma) -> v`, the network's prediction of `noise - x0` at one noise level.
        noise: `(B, T, C, H, W)` standard normal, or noised data where the first level is below 1.
        sigmas: falling noise levels, the first that of `noise`, the last 0 (`FlowMatchScheduler.sigmas`).
        renoise: fresh noise after step i: consistency-style sampling of a distilled student (Self Forcing,
            arXiv 2506.08009). None: Euler steps of the probability-flow ODE.
        exit_step: stop after this step (0-based) and return its clean estimate; None runs all.
        with_gradient: let the exit step, and only it, carry gradient.
        watch: told the velocity and the clean estimate of each step.
        keep: what of each clean estimate may stay as it is; the step goes on from what it returns.

    Returns:
        clean latents of the shape of `noise`.

    Raises:
        ValueError: `exit_step` outside the steps.
    """
    steps = len(sigmas) - 1
    last = steps - 1 if exit_step is None else exit_step
    if not 0 <= last < steps:
        raise ValueError(f"exit_step must be in 0..{steps - 1}, found {exit_step}")
    x = noise
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        with torch.set_grad_enabled(with_gradient and i == last):
            v = velocity(x, sigma)
            clean = x0_from_velocity(x, v, sigma)
        watch(i, "velocity", v)
        watch(i, "latents", clean)
        if keep is not None:
            clean = keep(clean)
            # the velocity that leads there
            v = (x - clean) / sigma
        if i == last:
            return clean
        x = x + (following - sigma) * v if renoise is None else add_noise(clean, renoise(i), following)
    raise AssertionError("unreachable: the last step returns")
