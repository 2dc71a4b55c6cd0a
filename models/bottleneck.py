"""Bottlenecks of the video tokenizer: what becomes of the encoder's features before they are a latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# A standard deviation of 0.05 at the start: small beside latents of about unit size, so that a freshly
# initialised tokenizer reconstructs almost as well from a sample as from the mean.
INITIAL_LOGVAR = -6.0
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; `mean` and `logvar` are `(B, T, C, H, W)`, T latent frames."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw `(B, T, C, H, W)`; the generator must live on the device of the mean."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + noise * torch.exp(0.5 * self.logvar)

    def kl(self) -> Tensor:
        """Divergence from the unit Gaussian in nats, averaged over all latent numbers (a scalar)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).mean()


class KLBottleneck(nn.Module):
    """Continuous bottleneck: features and the linear skip's latent give a Gaussian (arXiv 1312.6114)."""

    def __init__(self, dim: int, latent_channels: int) -> None:
        super().__init__()
        self.moments = nn.Linear(dim, 2 * latent_channels)
        self.reset_output()

    def reset_output(self) -> None:
        """Let the network contribute nothing: the mean is the skip's latent, the variance a constant."""
        nn.init.zeros_(self.moments.weight)
        nn.init.zeros_(self.moments.bias)
        with torch.no_grad():
            self.moments.bias[self.moments.out_features // 2 :] = INITIAL_LOGVAR

    def forward(self, features: Tensor, skip: Tensor) -> Posterior:
        """Features `(B, N, H, W, D)` and skip latents `(B, N, H, W, C)` to a posterior `(B, N, C, H, W)`."""
        change, logvar = self.moments(features).to(skip.dtype).movedim(-1, 2).chunk(2, dim=2)
        return Posterior(skip.movedim(-1, 2) + change, logvar.clamp(*LOGVAR_RANGE))
