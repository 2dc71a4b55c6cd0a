"""Names of foreign checkpoints: what a set of tensors is, and key maps to and from our names.

Our names are those of Wan2.1 (https://github.com/Wan-Video/Wan2.1), for the diffusion transformer as for the
autoencoder. Other formats: diffusers (WanTransformer3DModel, AutoencoderKLWan), the trainers of Self-Forcing,
Causal-Forcing and LongLive (wrapper prefixes and infixes), TAEHV, and UMT5 as Wan2.1 and as transformers name
it. What wraps them is unwrapped in `unwrap.py`, LoRAs are read in `lora.py`. Tensors in, tensors out; errors
are ValueErrors that name the key, what was expected and what was found.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal[
    "streamgen", "wan_dit", "diffusers_dit", "wan_vae", "diffusers_vae", "taehv", "lora", "wan_umt5", "umt5"
]
Tensors = dict[str, Tensor]

# Order matters: a LoRA has the names of what it changes, a checkpoint of ours those of Wan below its parts.
_SIGNS: tuple[tuple[Kind, str], ...] = (
    (
        "lora",
        r"[._]lora[._](A|B|down|up)(\.|$)|\.diff(_[bm])?$|^lora_unet_|^lycoris_|\.(lokr|hada)_|\.dora_scale$|\.[wb]_norm$",
    ),
    ("streamgen", r"^dit\.patch_embedding\.weight$"),
    ("diffusers_dit", r"^condition_embedder\.|^blocks\.\d+\.attn1\."),
    ("wan_dit", r"^blocks\.\d+\.self_attn\.|^head\.modulation$"),
    ("diffusers_vae", r"^decoder\.up_blocks\.|^encoder\.down_blocks\."),
    ("wan_vae", r"^decoder\.upsamples\.|^encoder\.downsamples\."),
    ("wan_umt5", r"^token_embedding\.weight$|^blocks\.\d+\.attn\.q\."),
    ("umt5", r"^(shared|encoder\.embed_tokens)\.weight$|^encoder\.block\.\d+\."),
    ("taehv", r"^decoder\.\d+\.conv\.0\.weight$|^decoder\.\d+\.weight$"),
)
INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "_forward_module.")
_PREFIXES = ("generator.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_DIT_TOP = (
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
    ("patch_embedding.", "patch_embedding."),
)
_DIT_BLOCK = (
    ("modulation", "scale_shift_table"),
    ("norm3.", "norm2."),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    *(
        (f"{wan}.{ours}.", f"{theirs}.{their}.")
        for wan, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for ours, their in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    ),
)
# layers of a DiT in both namings, those of a block without their place
DIT_LAYERS: Mapping[str, tuple[str, ...]] = {
    part: tuple(name.rstrip(".") for pair in table for name in pair)
    for part, table in (("top", _DIT_TOP), ("block", _DIT_BLOCK))
}
_VAE_RESIDUAL = (
    ("residual.0.", "norm1."),
    ("residual.2.", "conv1."),
    ("residual.3.", "norm2."),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
)
_VAE_TOP = (
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    *(
        (f"{part}.{ours}", f"{part}.{theirs}")
        for part in ("encoder", "decoder")
        for ours, theirs in (
            ("conv1.", "conv_in."),
            ("head.0.", "norm_out."),
            ("head.2.", "conv_out."),
            ("middle.1.", "mid_block.attentions.0."),
        )
    ),
)
_UMT5_BLOCK = (
    ("norm1.", "layer.0.layer_norm."),
    ("attn.", "layer.0.SelfAttention."),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("norm2.", "layer.1.layer_norm."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
)


def identify(names: Iterable[str]) -> Kind:
    """What tensors of these names (prefixes stripped) belong to.

    Raises:
        ValueError: no known kind.
    """
    names = list(names)
    for kind, pattern in _SIGNS:
        if any(re.search(pattern, name) for name in names):
            return kind
    some = ", ".join(sorted(names)[:3]) or "no tensors"
    raise ValueError(
        f"expected a Wan DiT, a Wan VAE, TAEHV, UMT5 or LoRA weights, found other names ({some})"
    )


def strip_infixes(tensors: Mapping[str, Tensor]) -> Tensors:
    """Names without the infixes of FSDP, activation checkpointing and compile.

    Raises:
        ValueError: two names become one.
    """
    out: Tensors = {}
    for name, tensor in tensors.items():
        for infix in INFIXES:
            name = name.replace(infix, "")
        if name in out:
            raise ValueError(f"{name}: found twice once wrapper names are stripped")
        out[name] = tensor
    return out


def strip_wrappers(tensors: Mapping[str, Tensor]) -> Tensors:
    """Names without infixes (`strip_infixes`), and without a prefix that all of them share.

    Raises:
        ValueError: two names become one.
    """
    out = strip_infixes(tensors)
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if out and all(name.startswith(prefix) for name in out):
                out, stripped = {name.removeprefix(prefix): x for name, x in out.items()}, True
    return out


def check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor that is no plain floating point number, fp8 for instance, or not
    dense.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"{name}: expected a dense tensor, found {tensor.layout}")
        if tensor.dtype not in FLOATS:
            found = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name}: expected float32, float16 or bfloat16, found {found} (use the unquantised weights)"
            )


def to_wan(tensors: Mapping[str, Tensor], kind: Kind) -> Tensors:
    """Tensors under our names, whichever of the two namings they have; shapes stay.

    Raises:
        ValueError: a name that the format does not have.
    """
    if kind == "diffusers_dit":
        return _rename(tensors, lambda name: _dit_name(name, back=True))
    if kind == "diffusers_vae":
        blocks = vae_res_blocks(tensors)
        return _rename(tensors, lambda name: _vae_from_diffusers(name, blocks))
    return dict(tensors)


def to_diffusers(tensors: Mapping[str, Tensor], kind: Kind) -> Tensors:
    """Inverse of `to_wan` for `wan_dit` and `wan_vae`.

    Raises:
        ValueError: a name that the format does not have, or another kind.
    """
    if kind == "wan_dit":
        return _rename(tensors, _dit_name)
    if kind == "wan_vae":
        blocks = vae_res_blocks(tensors)
        return _rename(tensors, lambda name: _vae_to_diffusers(name, blocks))
    raise ValueError(f"expected the weights of a Wan DiT or VAE, found {kind}")


def umt5_to_transformers(tensors: Mapping[str, Tensor]) -> Tensors:
    """The UMT5 encoder as Wan2.1 names it (`models_t5_umt5-xxl-enc-bf16.pth`) under the names of
    transformers' UMT5EncoderModel.
    """

    def rename(name: str) -> str:
        top = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
        if name in top:
            return top[name]
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        inner = None if block is None else _first(block[2], _UMT5_BLOCK)
        if block is None or inner is None:
            raise ValueError(f"{name}: not a name of the Wan2.1 text encoder")
        return f"encoder.block.{block[1]}.{inner}"

    renamed = _rename(tensors, rename)
    # transformers keeps the embedding under two names
    renamed["encoder.embed_tokens.weight"] = renamed["shared.weight"]
    return renamed


def with_convolved_patches(tensors: Tensors) -> Tensors:
    """Weights whose patch embedding is a convolution: rCM has the same numbers as a linear layer over patches
    of 1 x 2 x 2, `(dim, channels * 4)`.
    """
    name = "patch_embedding.weight"
    weight = tensors.get(name)
    if weight is None or weight.dim() != 2 or weight.shape[1] % 4:
        return tensors
    return tensors | {name: weight.reshape(weight.shape[0], -1, 1, 2, 2)}


def widen_patch_embedding(tensors: Mapping[str, Tensor], channels: int) -> Tensors:
    """A DiT whose patch embedding reads `channels` input channels: new ones (motion) have zero weights, so
    that the network computes what it did.

    Raises:
        ValueError: it reads more already.
    """
    weight = tensors["patch_embedding.weight"]
    missing = channels - weight.shape[1]
    if missing < 0:
        raise ValueError(
            f"patch_embedding.weight: expected at most {channels} input channels, found {weight.shape[1]}"
        )
    if missing == 0:
        return dict(tensors)
    extra = weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])
    return dict(tensors) | {"patch_embedding.weight": torch.cat([weight, extra], 1)}


def dit_layer(layer: str) -> str:
    """A layer of a DiT in diffusers naming (`blocks.0.attn1.to_q`, no parameter) under our name.

    Raises:
        ValueError: not a layer of it.
    """
    return _dit_name(layer + ".", back=True).rstrip(".")


def _rename(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items()}


def _first(name: str, table: Iterable[tuple[str, str]], back: bool = False) -> str | None:
    """The name with the first prefix of the table that it has exchanged; None where it has none."""
    for ours, theirs in table:
        old, new = (theirs, ours) if back else (ours, theirs)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def _dit_name(name: str, back: bool = False) -> str:
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    found = _first(block[2], _DIT_BLOCK, back) if block else _first(name, _DIT_TOP, back)
    if found is None:
        raise ValueError(f"{name}: not a name of a Wan text-to-video DiT")
    return (block[1] if block else "") + found


def vae_res_blocks(tensors: Mapping[str, Tensor]) -> int:
    """Residual blocks per stage of the decoder."""
    ours = [int(m[1]) for n in tensors if (m := re.match(r"decoder\.upsamples\.(\d+)\.resample\.", n))]
    theirs = [int(m[1]) for n in tensors if (m := re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", n))]
    if not ours and not theirs:
        raise ValueError("decoder: expected its upsampling blocks, found none")
    return min(ours) if ours else max(theirs) + 1


def _vae_to_diffusers(name: str, blocks: int) -> str:
    if (match := re.fullmatch(r"(encoder|decoder)\.middle\.([02])\.(.+)", name)) is not None:
        inner, place = match[3], f"{match[1]}.mid_block.resnets.{int(match[2]) // 2}."
    elif (match := re.fullmatch(r"encoder\.downsamples\.(\d+)\.(.+)", name)) is not None:
        inner, place = match[2], f"encoder.down_blocks.{match[1]}."
    elif (match := re.fullmatch(r"decoder\.upsamples\.(\d+)\.(.+)", name)) is not None:
        stage, layer = divmod(int(match[1]), blocks + 1)
        kind = f"resnets.{layer}" if layer < blocks else "upsamplers.0"
        inner, place = match[2], f"decoder.up_blocks.{stage}.{kind}."
    else:
        inner, place = name, ""
    return _vae_inner(name, inner, place, back=False)


def _vae_from_diffusers(name: str, blocks: int) -> str:
    pattern = r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)"
    if (match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.([01])\.(.+)", name)) is not None:
        inner, place = match[3], f"{match[1]}.middle.{2 * int(match[2])}."
    elif (match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.+)", name)) is not None:
        inner, place = match[2], f"encoder.downsamples.{match[1]}."
    elif (match := re.fullmatch(pattern, name)) is not None:
        layer = int(match[3]) if match[2] == "resnets" else blocks
        inner, place = match[4], f"decoder.upsamples.{int(match[1]) * (blocks + 1) + layer}."
    else:
        inner, place = name, ""
    return _vae_inner(name, inner, place, back=True)


def _vae_inner(name: str, inner: str, place: str, back: bool) -> str:
    """The rest of a name behind its block; resampling layers have one name in both formats."""
    if place and inner.startswith(("resample.1.", "time_conv.")):
        return place + inner
    found = _first(inner, _VAE_RESIDUAL if place else _VAE_TOP, back)
    if found is None:
        raise ValueError(f"{name}: not a name of the Wan VAE")
    return place + found
