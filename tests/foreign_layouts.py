"""Weights of one network in the layouts that people publish, made of parts that compose: quantisation,
adapter, naming, prefix, infix, section, and what lies beside.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.dequantize import BLOCK
from models.state_dict import to_diffusers
from tests.tiny_models import tiny_dit

State = dict[str, Tensor]
RANK = 2


@cache
def plain() -> State:
    """The network, unwrapped; wide enough in its FFN for more than one block of scales."""
    return dict(tiny_dit(0, ffn_dim=BLOCK + 8).state_dict())


def linears(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that files quantise and LoRAs change: the linear layers of the blocks."""
    return [name for name, x in state.items() if name.startswith("blocks.") and x.dim() == 2]


# Quantisation: what a weight becomes, and how far what is read may be from it: a share of its size and a
# share of its scale.


def scaled_fp8(
    state: State, scale_name: str = "scale_weight", kind: torch.dtype = torch.float8_e4m3fn
) -> State:
    """ComfyUI's, with the marker and the scales of activations."""
    out: State = {"scaled_fp8": torch.zeros(2, dtype=kind)}
    for name, x in state.items():
        if name not in linears(state):
            out[name] = x
            continue
        scale, stem = x.abs().max() / torch.finfo(kind).max, name.removesuffix(".weight")
        out[name] = (x / scale).to(kind)
        out[f"{stem}.{scale_name}"] = scale.reshape(1)
        out[f"{stem}.scale_input"] = torch.ones(1)
    return out


def bare_fp8(state: State) -> State:
    return {name: x.to(torch.float8_e4m3fn) if name in linears(state) else x for name, x in state.items()}


def block_int8(state: State) -> State:
    """TurboDiffusion's: `int8_weight` and a scale for every block of 128 x 128."""
    out: State = {}
    for name, x in state.items():
        if name not in linears(state):
            out[name] = x
            continue
        rows = [row.split(BLOCK, 1) for row in x.split(BLOCK, 0)]
        scale = torch.stack([torch.stack([block.abs().max() / 127 for block in row]) for row in rows])
        codes = [
            torch.cat([(b / scale[i, j]).round() for j, b in enumerate(row)], 1) for i, row in enumerate(rows)
        ]
        stem = name.removesuffix(".weight")
        out |= {f"{stem}.int8_weight": torch.cat(codes).to(torch.int8), f"{stem}.scale": scale}
    return out


def row_int8(state: State) -> State:
    """LightX2V's: `weight` in int8 and a scale for every row."""
    out: State = {}
    for name, x in state.items():
        out[name] = x
        if name in linears(state):
            scale = x.abs().amax(1, keepdim=True) / 127
            out[name] = (x / scale).round().to(torch.int8)
            out[name.removesuffix(".weight") + ".weight_scale"] = scale
    return out


QUANTISATIONS: dict[str, tuple[Callable[[State], State], float, float]] = {
    "none": (dict, 0.0, 0.0),
    "scaled_fp8": (scaled_fp8, 2**-4, 2**-9),
    "weight_scale fp8": (lambda state: scaled_fp8(state, "weight_scale"), 2**-4, 2**-9),
    "e5m2": (lambda state: scaled_fp8(state, kind=torch.float8_e5m2), 2**-3, 2**-16),
    "bare fp8": (bare_fp8, 2**-4, 2**-9),
    "block int8": (block_int8, 0.0, 0.51),
    "row int8": (row_int8, 0.0, 0.51),
}


# Adapters: a training bundle of PEFT, whose layers lie beside the change that makes them what they should be.


def bundled(state: State) -> State:
    """Layers minus a low-rank change, and the change."""
    draw, out = torch.Generator().manual_seed(5), dict(state)
    for name in linears(state):
        x, stem = out.pop(name), name.removesuffix(".weight")
        down = torch.randn(RANK, x.shape[1], generator=draw) * 0.1
        up = torch.randn(x.shape[0], RANK, generator=draw) * 0.1
        out |= {
            f"{stem}.base_layer.weight": x - up @ down,
            f"{stem}.base_layer.bias": out.pop(f"{stem}.bias"),
        }
        out |= {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
    kept = {n: out.pop(n) for n in [*out] if n.startswith("head.head.")}
    for name, x in kept.items():
        leaf = name.removeprefix("head.head.")
        out |= {f"head.head.original_module.{leaf}": x + 1, f"head.head.modules_to_save.default.{leaf}": x}
    return out


def quantised_bundle(state: State, quantise: Callable[[State], State]) -> State:
    """A bundle whose layers are quantised, not its adapters."""
    out = bundled(state)
    base = {n.replace(".base_layer.", "."): x for n, x in out.items() if ".base_layer." in n}
    rest = {n: x for n, x in out.items() if ".base_layer." not in n}
    quantised = {
        ".base_layer.".join(n.rsplit(".", 1)) if "." in n else n: x for n, x in quantise(base).items()
    }
    return rest | quantised


def wrapped(state: State) -> State:
    """Infixes of FSDP, checkpointing and compile, at several depths."""
    return {
        "_fsdp_wrapped_module."
        + name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod."): x
        for name, x in state.items()
    }


def diffusers(state: State) -> State:
    """Diffusers' names, quantised and bundled tensors included: what is behind a layer stays."""
    out: State = {}
    for name, x in state.items():
        layer, end = name, ""
        for part in (
            ".base_layer",
            ".lora_",
            ".scale",
            ".weight_scale",
            ".int8_weight",
            ".original",
            ".modules",
        ):
            if part in name:
                layer, end = name[: name.index(part)] + ".weight", name[name.index(part) :]
                break
        found = layer if layer == "scaled_fp8" else next(iter(to_diffusers({layer: x}, "wan_dit")))
        out[found.removesuffix(".weight") + end if end else found] = x
    return out


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: x for name, x in state.items()}


def shifted(state: State) -> State:
    """Another network's weights in the same shapes: taking them would be noticed."""
    return {name: x.float() + 1 for name, x in state.items()}


def critic_heads() -> State:
    """What trainers save beside a network."""
    return {
        "_cls_pred_branch.0.weight": torch.ones(3),
        "_cls_pred_branch.1.bias": torch.ones(3),
        "_register_tokens": torch.ones(1, 3),
        "_gan_ca_blocks.0.cross_attn.q.weight": torch.ones(3, 3),
        "_gan_ca_blocks.0.norm.weight": torch.ones(3),
        "freqs": torch.ones(4, 4),
        "step": torch.tensor(700),
    }


def linear_patches(state: State) -> State:
    """rCM's: the patch embedding is a linear layer over patches."""
    name = "patch_embedding.weight"
    return {n: x.flatten(1) if n.replace(".base_layer", "") == name else x for n, x in state.items()}


NAMINGS: dict[str, Callable[[State], State]] = {"wan": dict, "diffusers": diffusers, "rcm": linear_patches}
INFIXES: dict[str, Callable[[State], State]] = {"none": dict, "fsdp": wrapped}
PREFIXES = (
    "", "model.", "module.", "net.", "_orig_mod.", "diffusion_model.", "model.diffusion_model.",
    "transformer.", "base_model.model.", "generator.model.", "model.module.",
)  # fmt: skip
SECTIONS: dict[str, Callable[[State], Any]] = {
    "flat": dict,
    "generator": lambda s: {"generator": s, "step": 3},
    "generator_ema": lambda s: {
        "generator": shifted(plain()),
        "generator_ema": s,
        "critic": shifted(plain()),
    },
    "empty ema": lambda s: {"generator": s, "generator_ema": {}},
    "partial ema": lambda s: {"generator": s, "generator_ema": dict([*shifted(s).items()][:3])},
    "state_dict": lambda s: {"state_dict": s, "epoch": 1},
    "nested": lambda s: {"state_dict": {"generator": s, "critic": shifted(plain())}, "config": {"lr": 1}},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "beside": lambda s: {"generator": s | critic_heads()},
}


@dataclass(frozen=True)
class Layout:
    """One way to write the network; what it gives back is within `share` of each weight's size and `step` of
    its tensor's scale.
    """

    quantisation: str = "none"
    bundle: bool = False
    naming: str = "wan"
    infix: str = "none"
    prefix: str = ""
    section: str = "flat"
    beside: Callable[[], State] = field(default=dict)

    def payload(self) -> Any:
        """What the file holds."""
        quantise = QUANTISATIONS[self.quantisation][0]
        state = quantise(plain())
        if self.bundle:
            state = quantised_bundle(plain(), quantise)
        state = INFIXES[self.infix](NAMINGS[self.naming](state))
        return SECTIONS[self.section](prefixed(state, self.prefix) | self.beside())

    def check(self, found: Mapping[str, Tensor]) -> None:
        """Assert that what was read is the network, to the tolerance of its quantisation."""
        expected = plain()
        assert set(found) == set(expected), set(found) ^ set(expected)
        _, share, step = QUANTISATIONS[self.quantisation]
        largest = 448 if "fp8" in self.quantisation else 127
        for name, x in expected.items():
            if name not in linears(expected) or (not share and not step):
                # an adapter that was taken away and added again is a rounding off
                slack = 2e-6 if self.bundle and name in linears(expected) else 0.0
                assert float((found[name] - x).abs().max()) <= slack, name
            else:
                scale = 1.0 if self.quantisation == "bare fp8" else x.abs().max() * 1.6 / largest
                assert ((found[name] - x).abs() <= share * (x.abs() + 0.2) + step * scale).all(), name


def write(path: Path, payload: Any) -> Path:
    """A file of a payload, in the format that its suffix names."""
    if path.suffix == ".safetensors":
        save_file({name: x.contiguous() for name, x in payload.items()}, path)
    else:
        torch.save(payload, path)
    return path


def write_shards(folder: Path, state: State, places: tuple[str, ...]) -> Path:
    """A sharded checkpoint with its index; shards may lie in folders below it."""
    names, index = sorted(state), {}
    for i, place in enumerate(places):
        part = {name: state[name] for name in names[i :: len(places)]}
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write(folder / place, part)
        index |= dict.fromkeys(part, place)
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
    return path
