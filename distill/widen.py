"""Weights of networks with fewer latent or text channels as a start for wider ones that first do the same.

A tokenizer gets more channels where its pictures are not good enough, and what it and the diffusion
transformer on top of it have learned is kept: the added channels carry something from the first step on, but
nothing reads or writes them until training makes it so.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
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
