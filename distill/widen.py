"""Where networks start from: a PCA, or weights of ones with fewer latent or text channels that do the same.

A tokenizer gets more channels where its pictures are not good enough, and what it and the diffusion
transformer on top of it have learned is kept: the added channels carry something from the first step on, but
nothing reads or writes them until training makes it so.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT
from models.tokenizer_pca import MIN_RELATIVE_VARIANCE, LinearCodec
from models.video_tokenizer import VideoTokenizer

_PATCHES = "patch_embedding.weight"
_HEAD = "head.head."
_TEXT = "text_embedding.0.weight"


def widen_tokenizer(tensors: Mapping[str, Tensor], fresh: VideoTokenizer) -> dict[str, Tensor]:
    """A state for `fresh` from that of a tokenizer with at most as many channels, the first of `fresh`'s.

    Added channels are encoded as in `fresh` (a PCA, say) and not yet decoded. A state that differs in
    anything else is returned as it is, for the loader to name what does not fit.
    """
    own = fresh.state_dict()
    wide = fresh.config.latent_channels
    narrow = tensors["latent_mean"].shape[1] if "latent_mean" in tensors else wide
    if set(tensors) != set(own) or narrow >= wide:
        return dict(tensors)
    out = dict(tensors)
    for name, value in own.items():
        given = tensors[name]
        if given.shape == value.shape:
            continue
        grown = value.clone()
        if name.startswith("bottleneck.moments"):
            # rows are the change of the mean, then the log-variance
            grown.unflatten(0, (2, wide))[:, :narrow] = given.unflatten(0, (2, narrow)).to(grown)
        elif name.startswith("encoder.skip"):
            grown[:narrow] = given.to(grown)
        elif name.startswith("decoder."):
            grown.zero_()
            grown[:, :narrow] = given.to(grown)
        elif name in ("latent_mean", "latent_std"):
            grown[:, :narrow] = given.to(grown)
        out[name] = grown
    return out


@torch.no_grad()
def fit_added_channels(tokenizer: VideoTokenizer, narrow: int, videos: Iterable[Tensor]) -> None:
    """Let the channels of a widened tokenizer from `narrow` on carry what is still missing in `videos` (B, T,
    C, H, W): of all linear maps of that rank from patches to the error, the best one.

    Reduced-rank regression: least squares, then the principal components of what these predict. As in the
    PCA that a tokenizer starts from, a component of deviation s has latents of deviation sqrt(s), and those
    of images are turned towards those of still clips.
    """
    added = tokenizer.config.latent_channels - narrow
    images, groups = _Regression(), _Regression()
    for video in videos:
        error = video - tokenizer.decode(tokenizer.encode(video).mean, video.shape[1]).float()
        inputs, errors = tokenizer.patchify(video), tokenizer.patchify(error)
        assert inputs[0] is not None
        assert errors[0] is not None
        images.add(inputs[0], errors[0])
        groups.add(inputs[1], errors[1])
    image, group = images.solved(added), groups.solved(added)
    repeats = len(group.mean) // len(image.mean)
    # latents of an image beside those of a clip in which it stands still
    still = group.encode.unflatten(0, (repeats, -1)).sum(0)
    left, _, right = torch.linalg.svd(image.encode.T @ images.covariance() @ still)
    turn = left @ right
    image = LinearCodec(image.mean, image.encode @ turn, turn.T @ image.decode)
    for part, codec in (("first", image), ("group", group)):
        encode = tokenizer.encoder.skip.get_submodule(part)
        decode = tokenizer.decoder.skip.get_submodule(part)
        assert isinstance(encode, nn.Linear)
        assert isinstance(decode, nn.Linear)
        encode.weight[narrow:] = codec.encode.T.to(encode.weight)
        encode.bias[narrow:] = -(codec.mean @ codec.encode).to(encode.bias)
        decode.weight[:, narrow:] = codec.decode.T.to(decode.weight)


def begin_as_pca(tokenizer: VideoTokenizer, videos: Iterable[Tensor]) -> None:
    """Let a tokenizer begin as the PCA of the patches of `videos` (B, T, C, H, W)."""
    first, groups = [], []
    for video in videos:
        image, group = tokenizer.patchify(video)
        assert image is not None
        first.append(image.flatten(0, -2))
        groups.append(group.flatten(0, -2))
    tokenizer.initialize_from_pca(torch.cat(first), torch.cat(groups))


class _Regression:
    """Sums over rows, from which errors are predicted by patches."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, patches: Tensor, errors: Tensor) -> None:
        """Rows of patches and of errors (..., P)."""
        x, y = patches.flatten(0, -2).double(), errors.flatten(0, -2).double()
        sums = (x.sum(0), x.T @ x, y.sum(0), x.T @ y)
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True)) if self._sums else sums
        self._count += len(x)

    def covariance(self) -> Tensor:
        """Of patches (P, P)."""
        mean = self._sums[0] / self._count
        return self._sums[1] / self._count - torch.outer(mean, mean)

    def solved(self, rank: int) -> LinearCodec:
        """The map of this rank from patches to errors, through latents; errors have mean 0 beside it."""
        inner, mean = self.covariance(), self._sums[0] / self._count
        cross = self._sums[3] / self._count - torch.outer(mean, self._sums[2] / self._count)
        ridge = 1e-5 * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
        weights = torch.linalg.solve(inner + ridge, cross)
        values, vectors = torch.linalg.eigh(weights.T @ inner @ weights)
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
        scale = values.clamp_min(values[0] * MIN_RELATIVE_VARIANCE).clamp_min(1e-12) ** 0.25
        return LinearCodec(mean, weights @ vectors / scale, scale[:, None] * vectors.T)


def widen_dit(tensors: Mapping[str, Tensor], fresh: CausalDiT) -> dict[str, Tensor]:
    """A state for `fresh` from that of a DiT with at most as many latent channels, the first of `fresh`'s.

    Added channels are not read, and their predicted velocity is zero. A state that differs in anything else
    is returned as it is.
    """
    config, own = fresh.config, fresh.state_dict()
    cells = config.patch**2
    if set(tensors) != set(own):
        return dict(tensors)
    narrow = tensors[f"{_HEAD}weight"].shape[0] // cells
    if narrow >= config.latent_channels:
        return dict(tensors)
    out = dict(tensors)
    grown = torch.zeros_like(own[_PATCHES])
    latents, motion = tensors[_PATCHES].split((narrow, tensors[_PATCHES].shape[1] - narrow), 1)
    grown[:, :narrow] = latents.to(grown)
    if motion.shape[1] == config.motion_channels:
        grown[:, config.latent_channels :] = motion.to(grown)
        out[_PATCHES] = grown
    for name in (f"{_HEAD}weight", f"{_HEAD}bias"):
        # a patch's numbers lie channel last
        head = torch.zeros_like(own[name])
        given = tensors[name].unflatten(0, (cells, narrow))
        head.unflatten(0, (cells, config.latent_channels))[:, :narrow] = given.to(head)
        out[name] = head
    return out


def widen_text(tensors: Mapping[str, Tensor], fresh: CausalDiT) -> dict[str, Tensor]:
    """A state for `fresh` from that of a DiT with narrower text embeddings, the first channels of `fresh`'s;
    the added ones are not read yet.
    """
    out, wide = dict(tensors), fresh.config.text_dim
    given = out.get(_TEXT)
    if given is not None and given.shape[1] < wide:
        out[_TEXT] = torch.cat([given, given.new_zeros(len(given), wide - given.shape[1])], 1)
    return out
