"""Names of foreign checkpoints: what a set of tensors is, and key maps to and from our names.

Our names are those of Wan2.1 (https://github.com/Wan-Video/Wan2.1), for the diffusion transformer as for the
autoencoder. Other formats: diffusers (WanTransformer3DModel, AutoencoderKLWan), the trainers of Self-Forcing,
Causal-Forcing and LongLive (sections, wrapper prefixes and infixes), PEFT LoRA, TAEHV, and UMT5 as Wan2.1 and
as transformers name it. Tensors in, tensors out; errors are ValueErrors that name the key, what was expected
and what was found.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal[
    "streamgen", "wan_dit", "diffusers_dit", "wan_vae", "diffusers_vae", "taehv", "lora", "wan_umt5", "umt5"
]
Tensors = dict[str, Tensor]

# Order matters: a LoRA has the names of what it changes, a checkpoint of ours those of Wan below its parts.
_SIGNS: tuple[tuple[Kind, str], ...] = (
    ("lora", r"\.lora_(A|B|down|up)\."),
    ("streamgen", r"^dit\.patch_embedding\.weight$"),
    ("diffusers_dit", r"^condition_embedder\.|^blocks\.\d+\.attn1\."),
    ("wan_dit", r"^blocks\.\d+\.self_attn\.|^head\.modulation$"),
    ("diffusers_vae", r"^decoder\.up_blocks\.|^encoder\.down_blocks\."),
    ("wan_vae", r"^decoder\.upsamples\.|^encoder\.downsamples\."),
    ("wan_umt5", r"^token_embedding\.weight$|^blocks\.\d+\.attn\.q\."),
    ("umt5", r"^(shared|encoder\.embed_tokens)\.weight$|^encoder\.block\.\d+\."),
    ("taehv", r"^decoder\.\d+\.conv\.0\.weight$|^decoder\.\d+\.weight$"),
)
_INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "_forward_module.")
_PREFIXES = ("generator.", "model.diffusion_model.", "diffusion_model.", "model.", "module.")
GENERATOR_SECTIONS = ("generator_ema", "generator", "model", "state_dict", "")
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


def sections(payload: Any) -> dict[str, Tensors]:
    """The dictionaries of tensors in what a checkpoint file holds, by name; "" for tensors at the top.

    Raises:
        ValueError: no tensors anywhere.
    """
    if not isinstance(payload, Mapping):
        raise ValueError(f"expected named tensors, found {type(payload).__name__}")
    found: dict[str, Tensors] = {}
    top = {str(k): v for k, v in payload.items() if isinstance(v, Tensor)}
    if top:
        found[""] = top
    for name, value in payload.items():
        if isinstance(value, Mapping):
            inner = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
            if inner:
                found[str(name)] = inner
    if not found:
        raise ValueError(
            f"expected named tensors, found {', '.join(map(str, list(payload)[:5])) or 'nothing'}"
        )
    return found


def choose_section(found: Mapping[str, Tensors], wanted: Iterable[str]) -> tuple[str, Tensors]:
    """The first of the wanted sections that is there, with wrapper names stripped.

    Raises:
        ValueError: none of them.
    """
    wanted = tuple(wanted)
    for name in wanted:
        if name in found:
            return name, strip_wrappers(found[name])
    expected = ", ".join(name or "tensors at the top" for name in wanted)
    raise ValueError(f"expected one of the sections {expected}, found {', '.join(found)}")


def strip_wrappers(tensors: Mapping[str, Tensor]) -> Tensors:
    """Names without the infixes of FSDP, activation checkpointing and compile, and without a prefix that all
    of them share.

    Raises:
        ValueError: two names become one.
    """
    out: Tensors = {}
    for name, tensor in tensors.items():
        for infix in _INFIXES:
            name = name.replace(infix, "")
        if name in out:
            raise ValueError(f"{name}: found twice once wrapper names are stripped")
        out[name] = tensor
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if out and all(name.startswith(prefix) for name in out):
                out, stripped = {name.removeprefix(prefix): x for name, x in out.items()}, True
    return out


def check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor that is no plain floating point number, fp8 for instance."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
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


@dataclass(frozen=True)
class LoraPair:
    """One low-rank change: `down (rank, in)` and `up (out, rank)`."""

    down: Tensor
    up: Tensor


def lora_pairs(tensors: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """The changes of a PEFT LoRA by the name of the layer they change, in our names.

    Raises:
        ValueError: half of a pair is missing, ranks differ, or a name that is none of a LoRA.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in strip_wrappers(tensors).items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(?:model\.)?(.+)\.lora_([AB])\.(?:\w+\.)?weight", name)
        if match is None:
            raise ValueError(f"{name}: expected <layer>.lora_A.weight or <layer>.lora_B.weight")
        layer = match[1]
        if ".attn1." in layer or ".attn2." in layer or ".ffn.net." in layer:
            layer = _dit_name(layer.removeprefix("transformer.") + ".", back=True).rstrip(".")
        halves.setdefault(layer, {})[match[2]] = tensor
    pairs = {}
    for layer, half in halves.items():
        if set(half) != {"A", "B"}:
            missing = ({"A", "B"} - set(half)).pop()
            raise ValueError(f"{layer}.lora_{missing}.weight: missing")
        down, up = half["A"], half["B"]
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
            raise ValueError(
                f"{layer}: expected lora_A (rank, in) and lora_B (out, rank) of one rank, found "
                f"{tuple(down.shape)} and {tuple(up.shape)}"
            )
        pairs[layer] = LoraPair(down, up)
    return pairs


def merge_lora(
    tensors: Mapping[str, Tensor],
    pairs: Mapping[str, LoraPair],
    alpha: float | None = None,
    rank: int | None = None,
) -> Tensors:
    """Weights with a LoRA merged into them: `W + alpha / rank * B A` (arXiv 2106.09685), in float32 at least.

    Args:
        tensors: a DiT under our names.
        pairs: from `lora_pairs`.
        alpha: scale; None means the rank, as LongLive has it.
        rank: the rank that is expected; None takes any.

    Raises:
        ValueError: a layer that the model does not have, of another shape, or another rank.
    """
    out = dict(tensors)
    for layer, pair in pairs.items():
        name = f"{layer}.weight"
        if name not in out:
            raise ValueError(f"{layer}: changed by the LoRA, but not a layer of this model")
        weight, found = out[name], pair.down.shape[0]
        if rank is not None and found != rank:
            raise ValueError(f"{layer}: expected a LoRA of rank {rank}, found {found}")
        expected = (pair.up.shape[0], pair.down.shape[1])
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"{layer}: expected a LoRA for shape {tuple(weight.shape)}, found one for {expected}"
            )
        wide = torch.promote_types(weight.dtype, torch.float32)
        scale = 1.0 if alpha is None else alpha / found
        change = pair.up.to(wide) @ pair.down.to(wide)
        out[name] = (weight.to(wide) + scale * change).to(weight.dtype)
    return out


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
