"""LoRAs of the network of `foreign_layouts` in the namings that people have."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.state_dict import to_diffusers
from tests.foreign_layouts import State, linears, plain


def change() -> tuple[dict[str, tuple[Tensor, Tensor, float]], State]:
    """Factors and alpha of every layer, ranks of their own; and the network with them, in float64."""
    draw, factors, merged = torch.Generator().manual_seed(3), {}, dict(plain())
    for i, name in enumerate(linears(plain())):
        x, rank, alpha = plain()[name], 1 + i % 3, 0.5 + i
        down = torch.randn(rank, x.shape[1], generator=draw) * 0.1
        up = torch.randn(x.shape[0], rank, generator=draw) * 0.1
        factors[name.removesuffix(".weight")] = (down, up, alpha)
        merged[name] = x.double() + alpha / rank * (up.double() @ down.double())
    return factors, merged


def theirs(layer: str) -> str:
    """A layer in diffusers naming."""
    return next(iter(to_diffusers({f"{layer}.weight": torch.zeros(1)}, "wan_dit"))).removesuffix(".weight")


def named(down: str, up: str, place: Callable[[str], str], scaled: bool = True) -> Callable[[], State]:
    """A file in one naming, with its alphas or without."""

    def make() -> State:
        out: State = {}
        for layer, (a, b, alpha) in change()[0].items():
            stem = place(layer)
            out |= {stem + down: a, stem + up: b}
            out |= {f"{stem}.alpha": torch.tensor(alpha)} if scaled else {}
        return out

    return make


AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
NAMINGS: dict[str, Callable[[], State]] = {
    "bare": named(*AB, str),
    "PEFT": named(*AB, lambda layer: f"base_model.model.{layer}"),
    "PEFT, adapter named": named(
        ".lora_A.default.weight", ".lora_B.default.weight", lambda layer: f"base_model.model.model.{layer}"
    ),
    "diffusers": named(*AB, lambda layer: f"transformer.{theirs(layer)}"),
    "diffusers, older": named(".lora.down.weight", ".lora.up.weight", lambda layer: f"unet.{theirs(layer)}"),
    "diffusers, oldest": named("_lora.down.weight", "_lora.up.weight", theirs),
    "ComfyUI": named(*AB, lambda layer: f"diffusion_model.{layer}"),
    "musubi": named(*DOWN_UP, lambda layer: f"diffusion_model.{layer}"),
    "kohya": named(*DOWN_UP, lambda layer: "lora_unet_" + layer.replace(".", "_")),
    "kohya, diffusers": named(*DOWN_UP, lambda layer: "lora_unet_" + theirs(layer).replace(".", "_")),
    "kohya, dots": named(*DOWN_UP, lambda layer: "lora_unet_" + layer.replace("blocks.", "blocks_")),
    "VideoX-Fun": named(*DOWN_UP, lambda layer: "lora_unet__" + layer.replace(".", "_")),
    "kohya over ComfyUI": named(
        *DOWN_UP, lambda layer: "lora_unet_diffusion_model_" + layer.replace(".", "_")
    ),
    "DiffSynth-Studio": named(
        ".lora_A.default.weight", ".lora_B.default.weight", lambda layer: f"pipe.dit.{layer}"
    ),
    "PEFT, no alpha": named(*AB, lambda layer: f"base_model.model.{layer}", scaled=False),
    "LyCORIS": named(*DOWN_UP, lambda layer: "lycoris_" + layer.replace(".", "_")),
}
