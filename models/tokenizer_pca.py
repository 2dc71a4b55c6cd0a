"""Linear PCA codecs of image and video patches that share one latent space, to start a tokenizer from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bottleneck import look_up, nearest

# Components below this share of the largest variance carry nothing; whitening must not blow them up.
MIN_RELATIVE_VARIANCE = 1e-8
# Scales to choose from for components that are rounded: standard deviations before the tanh.
_GAINS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2)
# Of k-means: more rows and rounds hardly move a start.
_ROWS_PER_CODE, _ROUNDS = 40, 6


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
    return _with_way_back(codec, patches, lambda latents: _rounded(latents * gain, levels))


def fit_looked_up(codec: LinearCodec, patches: Tensor, codebook: Tensor) -> LinearCodec:
    """The codec with the best linear way back from the nearest entries of codebooks `(G, K, c)`."""
    book = codebook.to(torch.float64)
    return _with_way_back(codec, patches, lambda latents: look_up(nearest(latents, book), book))


def fit_codebook(codec: LinearCodec, patches: Tensor, groups: int, codes: int) -> Tensor:
    """Codebooks `(groups, codes, c)`, float64, for latents of patches: k-means from entries at even distances
    in the order of the patches, which is a function of these alone.

    Raises:
        ValueError: fewer patches than codes.
    """
    latents = (patches.detach().to(torch.float64) - codec.mean) @ codec.encode
    if len(latents) < codes:
        raise ValueError(f"codes: expected at most the {len(latents)} patches to start from, found {codes}")
    latents = latents[:: max(1, len(latents) // (_ROWS_PER_CODE * codes))]
    parts = latents.unflatten(1, (groups, -1)).transpose(0, 1)
    picked = torch.linspace(0, len(latents) - 1, codes, device=latents.device).round().long()
    book = parts[:, picked].clone()
    for _ in range(_ROUNDS):
        index = torch.cdist(parts, book).argmin(-1)
        for group, (rows, taken) in enumerate(zip(parts, index, strict=True)):
            sums = torch.zeros_like(book[group]).index_add_(0, taken, rows)
            counts = torch.bincount(taken, minlength=codes)[:, None]
            # what nothing takes stays where it is
            book[group] = torch.where(counts > 0, sums / counts.clamp_min(1), book[group])
    return book


def _with_way_back(codec: LinearCodec, patches: Tensor, coded: Callable[[Tensor], Tensor]) -> LinearCodec:
    rows = patches.detach().to(torch.float64) - codec.mean
    codes = coded(rows @ codec.encode)
    decode = torch.linalg.lstsq(codes.T @ codes, codes.T @ rows).solution
    return LinearCodec(codec.mean, codec.encode, decode)


def _rounded(latents: Tensor, levels: Sequence[int]) -> Tensor:
    top = torch.tensor([count - 1 for count in levels], dtype=latents.dtype, device=latents.device)
    return ((torch.tanh(latents) + 1) / 2 * top).round() / top * 2 - 1
