"""The sizes of Wan-family networks, read off their tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.state_dict import Kind, Tensors, vae_res_blocks
from models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from models.wan_vae import WAN_LATENT_MEAN, WAN_LATENT_STD, WanVAE, WanVAEConfig

HEAD_DIM = 128
TEXT_LENGTH = 512
_BY_WIDTH = {1536: "1.3B", 3072: "5B", 5120: "14B"}
# of Wan2.2's autoencoder, which the 5B models read
_LATENTS_22 = 48
_FOREIGN = (
    ("img_emb.", "an image-to-video DiT (img_emb)"),
    ("cross_attn.k_img.", "an image-to-video DiT (k_img)"),
    ("attn2.add_k_proj.", "an image-to-video DiT (add_k_proj)"),
    ("vace_blocks.", "a VACE model (vace_blocks)"),
)


def size_word(width: int) -> str:
    """What published models of a width are called: 1.3B, 5B, 14B."""
    return _BY_WIDTH.get(width, "an unpublished size")


def foreign_layers(tensors: Mapping[str, Tensor]) -> str | None:
    """What a DiT is whose layers streamgen does not have; None for a text-to-video one over Wan2.1's latents,
    with or without channels for tracks.
    """
    named = next((word for part, word in _FOREIGN if any(part in name for name in tensors)), None)
    weight, head = tensors.get("patch_embedding.weight"), tensors.get("head.head.weight")
    if named is not None or weight is None or head is None:
        return named
    if weight.dim() != 5 or weight.shape[3] < 1 or head.dim() != 2:
        return None
    found, latents = weight.shape[1], head.shape[0] // weight.shape[3] ** 2
    if latents == _LATENTS_22:
        return f"a DiT over the {latents} channels of Wan2.2's VAE"
    if found > 2 * latents:
        return f"an image-to-video or control DiT (it reads {found} channels, {latents} of them its own)"
    return None


def expected_module(kind: Kind, tensors: Tensors) -> nn.Module | None:
    """A whole model of the size that the tensors have, without memory for values; None for text encoders.

    Raises:
        ValueError, KeyError: too little is there to say.
    """
    with torch.device("meta"):
        if kind in ("wan_dit", "diffusers_dit"):
            return CausalDiT(dit_config_of(tensors))
        if kind in ("wan_vae", "diffusers_vae"):
            return WanVAE(vae_config_of(tensors))
        if kind == "taehv":
            dims = (*(tensors[f"decoder.{i}.weight"].shape[0] for i in (1, 8, 14, 20)),)
            z = tensors["decoder.1.weight"].shape[1]
            encoder = tensors["encoder.0.weight"].shape[0]
            return TinyDecoder(TinyDecoderConfig(latent_channels=z, encoder_dim=encoder, decoder_dims=dims))
    return None


def dit_config_of(tensors: Mapping[str, Tensor]) -> CausalDiTConfig:
    """The sizes of a DiT from its tensors; heads, which no shape tells, are those of Wan (128 wide).

    Raises:
        ValueError, KeyError: too little is there to say, or numbers of blocks that no file has.
    """
    dim, channels, _, patch, _ = tensors["patch_embedding.weight"].shape
    blocks = {int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")}
    if patch < 1 or not blocks or max(blocks) > 2 * len(blocks) + 8:
        # a name decides how many layers are made for the comparison
        raise ValueError(f"blocks.{max(blocks, default=0)}: expected blocks in a row, found {len(blocks)}")
    latent = tensors["head.head.weight"].shape[0] // patch**2
    return CausalDiTConfig(
        dim=dim,
        layers=1 + max(blocks),
        heads=dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1,
        ffn_dim=tensors["blocks.0.ffn.0.weight"].shape[0],
        latent_channels=latent,
        motion_channels=channels - latent,
        patch=patch,
        text_dim=tensors["text_embedding.0.weight"].shape[1],
        freq_dim=tensors["time_embedding.0.weight"].shape[1],
    )


def assumed(dit: CausalDiTConfig, length: int | None = None) -> dict[str, str]:
    """What no tensor tells and has to be right: the number of heads and the length of prompts, with where
    they are from; and a note where the heads are not as wide as those of all published models.

    Args:
        length: tokens of a prompt as the config says; None where there is no config.
    """
    source = "published Wan models" if length is None else "its config"
    heads = f"{dit.heads} of width {dit.head_dim} (from {source})"
    if length is None and dit.dim % HEAD_DIM:
        heads = f"unknown: published ones are {HEAD_DIM} wide, and {dit.dim} is no multiple of that"
    out = {"heads": heads, "text_length": f"{TEXT_LENGTH if length is None else length} (from {source})"}
    if length is not None and dit.head_dim != HEAD_DIM:
        out["note"] = f"published Wan models have heads of width {HEAD_DIM}, this config has {dit.head_dim}"
    return out


def vae_config_of(tensors: Mapping[str, Tensor]) -> WanVAEConfig:
    """The sizes of a VAE from its tensors; statistics, which no tensor tells, are Wan2.1's where they fit."""
    z, res_blocks = tensors["conv2.weight"].shape[0], vae_res_blocks(tensors) - 1
    if not 1 <= res_blocks <= 16:
        raise ValueError(f"decoder: expected at most 16 residual blocks for each size, found {res_blocks}")
    known = z == len(WAN_LATENT_MEAN)
    return WanVAEConfig(
        dim=tensors["encoder.conv1.weight"].shape[0],
        latent_channels=z,
        res_blocks=res_blocks,
        latent_mean=WAN_LATENT_MEAN if known else (0.0,) * z,
        latent_std=WAN_LATENT_STD if known else (1.0,) * z,
    )
