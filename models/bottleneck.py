"""Bottlenecks of the video tokenizer: what becomes of the encoder's features before they are a latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    def commitment(self) -> Tensor:
        """What holds features and their codes together (a scalar): zero where there is no codebook."""
        return self.mean.new_zeros(())


@dataclass(frozen=True)
class Quantized(Posterior):
    """Latents that are codes: the mean `(B, T, C, H, W)` is all there is, channel c having `levels[c]` values
    evenly spaced in [-1, 1].
    """

    levels: tuple[int, ...]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The codes."""
        return self.mean

    def kl(self) -> Tensor:
        """Zero: codes need no pull towards a prior."""
        return self.mean.new_zeros(())

    def indices(self) -> Tensor:
        """One number `(B, T, H, W)` int64 per place, below the product of the levels."""
        index = torch.zeros_like(self.mean[:, :, 0], dtype=torch.long)
        for channel, levels in enumerate(self.levels):
            value = ((self.mean[:, :, channel] + 1) / 2 * (levels - 1)).round().long()
            index = index * levels + value
        return index

    @staticmethod
    def from_indices(indices: Tensor, levels: Sequence[int]) -> Tensor:
        """The latents `(B, T, C, H, W)` of indices `(B, T, H, W)`."""
        channels = []
        for count in reversed(tuple(levels)):
            channels.append((indices % count).float() / (count - 1) * 2 - 1)
            indices = indices // count
        return torch.stack(channels[::-1], 2)


@dataclass(frozen=True)
class Looked(Posterior):
    """Latents that are entries of codebooks: the mean `(B, T, C, H, W)` is all there is. `index (B, T, G, H,
    W)` int64 says which entry each group of channels has; `apart` is the commitment.
    """

    index: Tensor
    apart: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The codes."""
        return self.mean

    def kl(self) -> Tensor:
        """Zero: codes need no pull towards a prior."""
        return self.mean.new_zeros(())

    def commitment(self) -> Tensor:
        """See `VQBottleneck`."""
        return self.apart


class VQBottleneck(nn.Module):
    """Vector quantisation (VQ-VAE, arXiv 1711.00937): channels in `groups`, each replaced by the nearest of
    `codes` entries of its own codebook `(groups, codes, channels of a group)`.

    The gradient goes straight through to the features. The commitment draws entries to the features that take
    them, and, a quarter as strongly, features to their entries (that paper's equation 3).
    """

    def __init__(self, dim: int, latent_channels: int, groups: int, codes: int) -> None:
        super().__init__()
        self.change = nn.Linear(dim, latent_channels)
        self.codebook = nn.Parameter(torch.randn(groups, codes, latent_channels // groups))
        self.reset_output()

    def reset_output(self) -> None:
        """Let the network contribute nothing: what is looked up is the skip's latent."""
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, features: Tensor, skip: Tensor) -> Looked:
        """Features `(B, N, H, W, D)` and skip latents `(B, N, H, W, C)` to codes `(B, N, C, H, W)`."""
        latent = skip + self.change(features).to(skip.dtype)
        # nearest by single precision: half would take other entries in training than a stream does
        with torch.autocast(latent.device.type, enabled=False):
            book = self.codebook.to(latent.dtype)
            index = nearest(latent.detach(), book.detach())
            found = look_up(index, book)
            apart = (found - latent.detach()).square().mean() + (found.detach() - latent).square().mean() / 4
        codes = (latent + (found - latent).detach()).movedim(-1, 2)
        return Looked(codes, torch.full_like(codes, LOGVAR_RANGE[0]), index.movedim(-1, 2), apart)

    def latents(self, index: Tensor) -> Tensor:
        """The latents `(B, T, C, H, W)` of indices `(B, T, G, H, W)`."""
        return look_up(index.movedim(2, -1), self.codebook).movedim(-1, 2)

    def bits(self) -> float:
        """Bits of one latent place."""
        groups, codes, _ = self.codebook.shape
        return groups * math.log2(codes)


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Which entry `(..., G)` of each codebook `(G, K, c)` is nearest to latents `(..., G c)`."""
    parts = latents.unflatten(-1, (len(codebook), -1)).flatten(0, -3).transpose(0, 1)
    # by products of matrices it would depend on how many there are, and a stream take other entries
    apart = torch.cdist(parts, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.argmin(-1).T.unflatten(0, latents.shape[:-1])


def look_up(index: Tensor, codebook: Tensor) -> Tensor:
    """Latents `(..., G c)` of entries `(..., G)`."""
    return codebook[torch.arange(len(codebook), device=index.device), index].flatten(-2)


class FSQBottleneck(nn.Module):
    """Finite scalar quantisation (arXiv 2309.15505): each channel is bounded and rounded to a few values.

    There is no codebook to collapse. The gradient goes straight through the rounding. `gain` (C,) brings each
    channel into the range in which its levels tell most; it is fixed where the tokenizer starts and apart
    from the weights, which otherwise would be so small that an optimizer's step upsets them.
    """

    gain: Tensor

    def __init__(self, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.change = nn.Linear(dim, len(self.levels))
        self.register_buffer("gain", torch.ones(len(self.levels)))
        self.reset_output()

    def reset_output(self) -> None:
        """Let the network contribute nothing: what is rounded is the skip's latent."""
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, features: Tensor, skip: Tensor) -> Quantized:
        """Features `(B, N, H, W, D)` and skip latents `(B, N, H, W, C)` to codes `(B, N, C, H, W)`."""
        latent = (skip + self.change(features).to(skip.dtype)) * self.gain
        top = torch.tensor([count - 1 for count in self.levels], dtype=latent.dtype, device=latent.device)
        place = (torch.tanh(latent) + 1) / 2 * top
        rounded = place + (place.round() - place).detach()
        codes = (rounded / top * 2 - 1).movedim(-1, 2)
        return Quantized(codes, torch.full_like(codes, LOGVAR_RANGE[0]), self.levels)

    def bits(self) -> float:
        """Bits of one latent place."""
        return sum(math.log2(count) for count in self.levels)


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
