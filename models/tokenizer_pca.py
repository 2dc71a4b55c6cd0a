"""Linear PCA codecs of image and video patches that share one latent space, to start a tokenizer from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Components below this share of the largest variance carry nothing; whitening must not blow them up.
MIN_RELATIVE_VARIANCE = 1e-8
# Scales to choose from for components that are rounded: standard deviations before the tanh.
_GAINS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2)


@dataclass(frozen=True)
class LinearCodec:
    """`latent = (patch - mean) @ encode`, `patch = latent @ decode + mean`.

    Shapes: mean `(P,)`, encode `(P, C)`, decode `(C, P)`; float64.
    """

    mean: Tensor
    encode: Tensor
    decode: Tensor


def fit_pca(patches: Tensor, components: int) -> LinearCodec:
    """PCA of the rows of `patches (N, P)`; each component is scaled by eigenvalue ** -0.25."""
    rows = patches.detach().to(torch.float64)
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    values = values.flip(0)[:components]
    vectors = vectors.flip(1)[:, :components]
    floor = (values[0] * MIN_RELATIVE_VARIANCE).clamp_min(torch.finfo(torch.float64).tiny)
    scale = values.clamp_min(floor) ** 0.25
    return LinearCodec(mean, vectors / scale, scale[:, None] * vectors.T)


def fit_aligned_pca(first: Tensor, groups: Tensor, components: int) -> tuple[LinearCodec, LinearCodec]:
    """PCA codecs of frame-0 patches `(N, P)` and group patches `(M, t * P)`, time outermost.

    The image codec is turned and scaled (orthogonal Procrustes) so that its latent of an image is as near as
    it can be to the group codec's latent of t equal frames; a turn inside the principal space changes no
    reconstruction.
    """
    image, video = fit_pca(first, components), fit_pca(groups, components)
    rows = first.detach().to(torch.float64) - image.mean
    source = rows @ image.encode
    target = rows.repeat(1, groups.shape[1] // first.shape[1]) @ video.encode
    left, strength, right = torch.linalg.svd(source.T @ target)
    turn = left @ right
    scale = (strength.sum() / source.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).item()
    if scale <= 0:
        scale = 1.0
    aligned = LinearCodec(image.mean, image.encode @ turn * scale, turn.T @ image.decode / scale)
    return aligned, video


def choose_gain(codec: LinearCodec, patches: Tensor, levels: Sequence[int]) -> Tensor:
    """Factors (C,), float64, for latents that are rounded to `levels` values behind a tanh.

    The one of a few with which the rounded value tells most about the latent. Unscaled, the first components
    would lie where tanh is flat and the last between two levels.
    """
    latents = (patches.detach().to(torch.float64) - codec.mean) @ codec.encode
    spread = latents.square().mean(0).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    told = []
    for gain in _GAINS:
        codes = _rounded(latents / spread * gain, levels)
        told.append((codes * latents).mean(0) / codes.square().mean(0).sqrt().clamp_min(1e-12))
    gains = torch.tensor(_GAINS, dtype=torch.float64, device=spread.device)
    return gains[torch.stack(told).argmax(0)] / spread


def fit_rounded(codec: LinearCodec, patches: Tensor, gain: Tensor, levels: Sequence[int]) -> LinearCodec:
    """The codec with the best linear way back from its rounded latents."""
    rows = patches.detach().to(torch.float64) - codec.mean
    codes = _rounded(rows @ codec.encode * gain, levels)
    decode = torch.linalg.lstsq(codes.T @ codes, codes.T @ rows).solution
    return LinearCodec(codec.mean, codec.encode, decode)


def _rounded(latents: Tensor, levels: Sequence[int]) -> Tensor:
    top = torch.tensor([count - 1 for count in levels], dtype=latents.dtype, device=latents.device)
    return ((torch.tanh(latents) + 1) / 2 * top).round() / top * 2 - 1
