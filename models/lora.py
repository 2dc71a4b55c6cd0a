"""LoRAs in the namings that people have, and merging them.

PEFT (`base_model.model.X.lora_A.weight`), diffusers (`transformer.X.lora_A.weight`, `X.lora.down.weight`),
ComfyUI and musubi (`diffusion_model.X.lora_down.weight`), DiffSynth-Studio (`pipe.dit.X.lora_A.weight`),
kohya (`lora_unet_blocks_0_self_attn_q.lora_down.weight`) and VideoX-Fun (`lora_unet__blocks_0_...`), each
over Wan's or diffusers' layer names; `X.alpha`, a rank for every layer, whole differences (`X.diff`,
`X.diff_b`, `X.diff_m`, LyCORIS's `X.w_norm`, `X.b_norm`), DoRA's magnitudes for every row.
Tensors in, tensors out; errors are ValueErrors of one line.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .state_dict import DIT_LAYERS, Tensors, dit_layer, strip_wrappers

_PREFIX = re.compile(
    r"^(?:base_model\.model\.|model\.|transformer\.|diffusion_model\.|unet\.|pipe\.|dit\.|net\.)+"
)
_UNDERSCORED = re.compile(r"^(?:lora_unet|lora_transformer|lycoris)_+(?:diffusion_model_)?(.+)$")
# what a tensor is to its layer, by how its name ends
_ROLES: tuple[tuple[str, str], ...] = (
    ("down", r"\.lora_(?:A|down)(?:\.\w+)?\.weight|\.lora\.down\.weight|_lora\.down\.weight|\.lora_A"),
    ("up", r"\.lora_(?:B|up)(?:\.\w+)?\.weight|\.lora\.up\.weight|_lora\.up\.weight|\.lora_B"),
    ("magnitude", r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|\.dora_scale"),
    ("alpha", r"\.alpha"),
    ("up_bias", r"\.lora_(?:B|up)(?:\.\w+)?\.bias"),
    ("bias", r"\.diff_b|\.b_norm"),
    ("modulation", r"\.diff_m"),
    ("diff", r"\.diff|\.w_norm"),
)
_ENDS = tuple((role, re.compile(rf"(?P<layer>.+?)(?:{pattern})")) for role, pattern in _ROLES)
_OTHER_KINDS = {"lokr_": "LoKr", "hada_": "LoHa", "lora_mid": "LoCon", "glora": "GLoRA", "oft_": "OFT"}
_IMAGE = re.compile(r"\b(?:k_img|v_img|norm_k_img|add_k_proj|add_v_proj|img_emb|image_embedder)\b")
_SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}
_HEAD_DIM = 128


@dataclass(frozen=True)
class LoraPair:
    """One low-rank change: `down (rank, in)` and `up (out, rank)`, of a convolution with its inputs side by
    side; `alpha`, one number, is its scale times
    the rank (None: the rank); `magnitude` and `bias` (out,) are DoRA's and PEFT's `lora_bias`.
    """

    down: Tensor
    up: Tensor
    alpha: Tensor | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Lora:
    """What a LoRA changes, under our names: `pairs` by layer, `diffs` by parameter (whole differences)."""

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    diffs: dict[str, Tensor] = field(default_factory=dict)

    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({pair.down.shape[0] for pair in self.pairs.values()})


def read_lora(tensors: Mapping[str, Tensor]) -> Lora:
    """A LoRA in any of the namings of this module.

    Raises:
        ValueError: half of a pair is missing, ranks differ, an adapter of another kind, or a name that is
        none
            of a LoRA.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in strip_wrappers(tensors).items():
        layer, role = _split(name)
        roles = layers.setdefault(layer, {})
        if role in roles:
            raise ValueError(f"{layer}: two tensors for the same part of it, the second is {name}")
        roles[role] = tensor
    lora = Lora()
    for layer, roles in layers.items():
        _add_layer(lora, layer, roles)
    if not lora.pairs and not lora.diffs:
        raise ValueError("expected the changes of a LoRA, found none")
    return lora


def lora_pairs(tensors: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """The low-rank changes of a LoRA by the name of the layer they change, in our names.

    Raises:
        ValueError: see `read_lora`; or it has whole differences too.
    """
    lora = read_lora(tensors)
    if lora.diffs:
        raise ValueError(
            f"{next(iter(lora.diffs))}: expected low-rank changes alone, found a whole difference"
        )
    return lora.pairs


def merge_lora(
    tensors: Mapping[str, Tensor],
    lora: Lora | Mapping[str, LoraPair],
    alpha: float | None = None,
    rank: int | None = None,
    strength: float = 1.0,
) -> Tensors:
    """Weights with a LoRA merged into them: `W + strength * alpha / rank * B A` (arXiv 2106.09685), in
    float32 at least. DoRA's rows are scaled to their magnitudes (arXiv 2402.09353), and strength goes from W
    to that.

    Args:
        tensors: a DiT under our names.
        lora: from `read_lora` or `lora_pairs`.
        alpha: over what the file says; None means the file's own, or the rank where it has none.
        rank: the rank that is expected; None takes any.
        strength: 0 changes nothing, 1 is what was trained.

    Raises:
        ValueError: a layer that the model does not have, of another shape, another rank, or numbers that are
            not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength: expected a finite number, found {strength}")
    if not isinstance(lora, Lora):
        lora = Lora(dict(lora))
    problem = misfit(tensors, lora)
    if problem is not None:
        raise ValueError(problem)
    out = dict(tensors)
    for layer, pair in lora.pairs.items():
        name = f"{layer}.weight"
        check_pair(out, layer, pair, rank)
        own = out[name]
        wide = torch.promote_types(own.dtype, torch.float32)
        weight = own.to(wide).flatten(1)
        # in place: one array besides the weights, of a layer at a time
        change = (pair.up.to(wide) @ pair.down.to(wide)).mul_(scale_of(layer, pair, alpha))
        if pair.magnitude is not None:
            change = _dora(change.add_(weight), pair.magnitude.to(wide)).sub_(weight)
        out[name] = change.mul_(strength).add_(weight).to(own.dtype).reshape(own.shape)
        if pair.bias is not None:
            _add(out, f"{layer}.bias", strength * scale_of(layer, pair, alpha), pair.bias)
    for name, diff in lora.diffs.items():
        _add(out, name, strength, diff)
    return out


def _add(out: Tensors, name: str, factor: float, diff: Tensor) -> None:
    """Add `factor` times a difference to a parameter."""
    if name not in out:
        raise ValueError(f"{name}: changed by the LoRA, but not a parameter of this model")
    own = out[name]
    if own.numel() != diff.numel() or own.shape[0] not in diff.shape[:2]:
        raise ValueError(
            f"{name}: expected a difference of shape {tuple(own.shape)}, found {tuple(diff.shape)}"
        )
    wide = torch.promote_types(own.dtype, torch.float32)
    out[name] = (own.to(wide) + factor * diff.to(wide).reshape(own.shape)).to(own.dtype)


def misfit(tensors: Mapping[str, Tensor], lora: Lora) -> str | None:
    """One sentence on why a LoRA is for another model, where the whole of it is; None where it may fit."""
    image = next((name for name in (*lora.pairs, *lora.diffs) if _IMAGE.search(name)), None)
    layer = next((n for n in lora.pairs if n.endswith(("self_attn.q", "cross_attn.q"))), None)
    own = tensors.get("blocks.0.self_attn.q.weight")
    if own is None or own.dim() != 2:
        return None
    found = lora.pairs[layer].down.shape[1] if layer is not None else own.shape[1]
    if found == own.shape[1] and image is None:
        return None
    if found == own.shape[1]:
        return f"an I2V LoRA on a T2V model: {image} is a layer for pictures, which this model does not have"
    sizes = [_SIZES.get(width, f"width {width}") for width in (found, own.shape[1])]
    if found % _HEAD_DIM == 0 and own.shape[1] % _HEAD_DIM == 0:
        counts = f"{found // _HEAD_DIM} heads against {own.shape[1] // _HEAD_DIM}"
    else:
        counts = f"{found} numbers wide against {own.shape[1]}"
    return f"{'an I2V' if image else 'a'} {sizes[0]} LoRA on a {sizes[1]} T2V: {counts}"


def merged_bundle(tensors: Mapping[str, Tensor]) -> tuple[Tensors, int]:
    """A whole network that was saved with its adapters beside its layers (`X.base_layer.weight` with
    `X.lora_A.default.weight`, PEFT) as plain layers, and how many adapters were merged; other tensors as they
    are.

    Raises:
        ValueError: an adapter that does not fit its layer.
    """
    if not any(".base_layer." in name or ".modules_to_save." in name for name in tensors):
        return dict(tensors), 0
    base: Tensors = {}
    adapters: Tensors = {}
    for name, tensor in tensors.items():
        if _role(name) is not None:
            adapters[name] = tensor
        elif ".original_module." not in name:
            plain = name.replace(".base_layer.", ".")
            base[re.sub(r"\.modules_to_save\.\w+\.", ".", plain)] = tensor
    if not adapters:
        return base, 0
    lora = Lora()
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapters.items():
        found = _role(name)
        assert found is not None
        layers.setdefault(found[0], {})[found[1]] = tensor
    for layer, roles in layers.items():
        _add_layer(lora, layer, roles)
    return merge_lora(base, lora), len(layers)


def _role(name: str) -> tuple[str, str] | None:
    """The layer and what a tensor is to it; None for names that are none of a LoRA."""
    for role, pattern in _ENDS:
        if (match := pattern.fullmatch(name)) is not None:
            return match["layer"], role
    return None


def _split(name: str) -> tuple[str, str]:
    """The layer in our names, and what a tensor is to it."""
    other = next((word for part, word in _OTHER_KINDS.items() if part in name), None)
    if other is not None:
        raise ValueError(f"{name}: expected a LoRA, found {other}, which is not read: merge it before")
    found = _role(name)
    if found is None:
        raise ValueError(
            f"{name}: expected <layer>.lora_A.weight or <layer>.lora_B.weight, or .alpha, .diff, ..."
        )
    layer, role = found
    flat = _UNDERSCORED.match(layer)
    if flat is not None:
        return _unflattened(flat[1], name), role
    layer = _PREFIX.sub("", layer)
    if _IMAGE.search(layer):
        # no layer of ours: it is named when the LoRA is compared with a model
        return layer, role
    return (dit_layer(layer) if _is_diffusers(layer) else layer), role


def _is_diffusers(layer: str) -> bool:
    return (
        re.search(r"\.attn[12]\.|\.ffn\.net\.|^condition_embedder\.|^proj_out$|\.norm2$", layer) is not None
    )


def _unflattened(flat: str, name: str) -> str:
    """`blocks_0_self_attn_q` as a layer: kohya writes underscores for dots, others some of them."""
    flat = flat.replace(".", "_")
    block = re.fullmatch(r"blocks_(\d+)_(.+)", flat)
    inner, place = (block[2], f"blocks.{block[1]}.") if block else (flat, "")
    for layer in DIT_LAYERS["block" if block else "top"]:
        if layer.replace(".", "_") == inner:
            return dit_layer(place + layer) if _is_diffusers(place + layer) else place + layer
    if block and inner.endswith(("_k_img", "_v_img")):
        return place + inner.replace("cross_attn_", "cross_attn.")
    raise ValueError(f"{name}: not a layer of a Wan DiT")


def _add_layer(lora: Lora, layer: str, roles: dict[str, Tensor]) -> None:
    """One layer of a LoRA from its tensors by role."""
    down, up = roles.get("down"), roles.get("up")
    if (down is None) != (up is None):
        raise ValueError(f"{layer}.lora_{'A' if down is None else 'B'}.weight: missing")
    if down is not None and up is not None:
        down, up = _flat(down), _flat(up)
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
            raise ValueError(
                f"{layer}: expected lora_A (rank, in) and lora_B (out, rank) of one rank, found "
                f"{tuple(down.shape)} and {tuple(up.shape)}"
            )
        alpha = roles.get("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise ValueError(f"{layer}.alpha: expected one number, found shape {tuple(alpha.shape)}")
        magnitude = roles.get("magnitude")
        if magnitude is not None and tuple(magnitude.shape) not in ((up.shape[0],), (up.shape[0], 1)):
            raise ValueError(
                f"{layer}: expected a DoRA magnitude for each of {up.shape[0]} rows, found shape "
                f"{tuple(magnitude.shape)}"
            )
        lora.pairs[layer] = LoraPair(down, up, alpha, magnitude, roles.get("up_bias"))
    elif "magnitude" in roles:
        raise ValueError(f"{layer}: a DoRA magnitude without its lora_A and lora_B")
    for role, parameter in (("diff", "weight"), ("bias", "bias"), ("modulation", "modulation")):
        if role in roles:
            whole = role == "diff" and layer.endswith("modulation")
            lora.diffs[layer if whole else f"{layer}.{parameter}"] = roles[role]


def _flat(factor: Tensor) -> Tensor:
    """A factor of a convolution over patches as one of the linear layer that it is; others as they are."""
    return factor.flatten(1) if factor.dim() == 5 else factor


def check_pair(tensors: Mapping[str, Tensor], layer: str, pair: LoraPair, rank: int | None) -> None:
    """Raise ValueError where a change does not fit its layer, or has another rank than is expected."""
    weight, found = tensors.get(f"{layer}.weight"), pair.down.shape[0]
    if weight is None:
        raise ValueError(f"{layer}: changed by the LoRA, but not a layer of this model")
    if rank is not None and found != rank:
        raise ValueError(f"{layer}: expected a LoRA of rank {rank}, found {found}")
    expected = (pair.up.shape[0], pair.down.shape[1])
    own = tuple(weight.shape[:1]) + ((math.prod(weight.shape[1:]),) if weight.dim() > 2 else weight.shape[1:])
    if own == expected:
        return
    if weight.dim() == 5 and own[0] == expected[0] and expected[1] % own[1] == 0:
        raise ValueError(
            f"{layer}: a control LoRA, which reads {expected[1] // own[1]} times the channels of this model"
        )
    raise ValueError(f"{layer}: expected a LoRA for shape {tuple(weight.shape)}, found one for {expected}")


def scale_of(layer: str, pair: LoraPair, alpha: float | None) -> float:
    """What `B A` is multiplied with: alpha over the rank, of the file where None is given, else 1.

    Raises:
        ValueError: an alpha that is not finite.
    """
    rank = pair.down.shape[0]
    if alpha is None and pair.alpha is not None and pair.alpha.device.type != "meta":
        alpha = float(pair.alpha)
    if alpha is None:
        return 1.0
    if not math.isfinite(alpha):
        raise ValueError(f"{layer}.alpha: expected a finite number, found {alpha}")
    return alpha / rank


def _dora(changed: Tensor, magnitude: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(changed, dim=1, keepdim=True)
    return magnitude.reshape(-1, 1) / norm * changed
