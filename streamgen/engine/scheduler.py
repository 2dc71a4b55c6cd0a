"""Flow matching on the straight path between data and noise (arXiv 2210.02747, 2209.03003).

`x_sigma = (1 - sigma) x0 + sigma noise`, the network predicts `v = noise - x0`, timesteps are `1000 sigma`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowMatchScheduler:
    """Noise levels of a sampler.

    Args:
        steps: number of network evaluations per chunk.
        shift: timestep shift k of SD3 (arXiv 2403.03206): `sigma = k s / (1 + (k - 1) s)`.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """

    steps: int = 4
    shift: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler steps must be at least 1, found {self.steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"timestep shift must be above 0 and finite, found {self.shift}")

    def sigmas(self) -> tuple[float, ...]:
        """`steps + 1` falling noise levels from 1 to 0."""
        return tuple(shifted(1 - i / self.steps, self.shift) for i in range(self.steps + 1))


def shifted(sigma: float, shift: float) -> float:
    """The shifted noise level, a bijection of [0, 1]."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """`x_sigma`; a tensor sigma is `(B, T)` and applies per latent frame of `(B, T, C, H, W)`."""
    level = _level(sigma)
    return (1 - level) * x0 + level * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict."""
    return noise - x0


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Clean estimate from a noisy input and its velocity."""
    return x - _level(sigma) * velocity


def _level(sigma: Tensor | float) -> Tensor | float:
    return sigma[..., None, None, None] if isinstance(sigma, torch.Tensor) else sigma
