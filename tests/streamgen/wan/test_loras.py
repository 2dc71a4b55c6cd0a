"""`--lora`: every naming gives one merge, equal to peft's; scales, whole differences, DoRA; what does not fit
is one line.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import models.lora as merging
from models.lora import merge_lora, read_lora
from streamgen import InputError, load_pipeline
from streamgen.errors import CheckpointError
from streamgen.wan.loras import LoraFile, live_name, load_lora, parse_loras, with_loras
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.foreign_layouts import State, plain, write
from tests.lora_files import NAMINGS, change
from tests.tiny_models import assert_needs, randomize
from tests.tiny_wan import SMALL, small_config

Q = "blocks.0.self_attn.q"


def largest_difference(found: State, expected: State) -> float:
    assert set(found) == set(expected)
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in expected)


@pytest.mark.parametrize("naming", [name for name in NAMINGS if "no alpha" not in name])
def test_namings_give_one_merge(naming: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", NAMINGS[naming]())
    found, notes = with_loras(plain(), [LoraFile(str(path))])
    assert largest_difference(found, change()[1]) < 1e-6
    assert notes == ["a.safetensors: 20 changes (rank 1, 2, 3) merged at strength 1"]


def test_sections_of_trainers(tmp_path: Path) -> None:
    """LongLive's, and OPSD-V's, which lies where a network would."""
    for section in ("generator_lora", "generator_ema"):
        path = write(tmp_path / "a.pt", {section: NAMINGS["PEFT"](), "critic_lora": {"x": torch.ones(1)}})
        assert largest_difference(with_loras(plain(), [LoraFile(str(path))])[0], change()[1]) < 1e-6


def test_merge_needs_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        found = merge_lora(plain(), read_lora(NAMINGS["kohya"]()))
        assert largest_difference(found, change()[1]) < 1e-6

    assert_needs(check, monkeypatch, merging, "scale_of", lambda layer, pair, alpha: 1.0)


class Layers(nn.Module):
    """Layers that peft can wrap, under the names of a DiT."""

    def __init__(self) -> None:
        super().__init__()
        attention = nn.ModuleDict({part: nn.Linear(12, 12) for part in "qkvo"})
        self.blocks = nn.ModuleList([nn.ModuleDict({"self_attn": attention})])

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}])
def test_file_of_peft_is_its_own_merge(options: dict[str, Any], tmp_path: Path) -> None:
    """Alpha lies in `adapter_config.json` beside the file, as `save_pretrained` writes it."""
    from peft import LoraConfig, get_peft_model

    base = randomize(Layers())
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["q", "v"], **options)
    wrapped: Any = get_peft_model(base, config)  # type: ignore[arg-type]
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    wrapped.save_pretrained(tmp_path)
    merged = merge_lora(before, load_lora(tmp_path / "adapter_model.safetensors"))
    expected = wrapped.merge_and_unload().state_dict()
    assert largest_difference(merged, expected) < 1e-6
    assert largest_difference(before, expected) > 1e-2


def test_scale_in_the_header_of_diffusers(tmp_path: Path) -> None:
    lora = {n: x for n, x in NAMINGS["diffusers"]().items() if not n.endswith(".alpha")}
    told = json.dumps({"transformer.lora_alpha": 6, "transformer.r": 2})
    save_file(lora, tmp_path / "a.safetensors", {"lora_adapter_metadata": told})
    pair = load_lora(tmp_path / "a.safetensors").pairs[Q]
    assert pair.alpha is not None
    assert float(pair.alpha) == 6


def test_whole_differences() -> None:
    norm, bias = "blocks.1.norm3", "blocks.0.ffn.2"
    lora = {
        f"diffusion_model.{norm}.diff": torch.full((24,), 0.5),
        f"diffusion_model.{norm}.diff_b": torch.full((24,), -1.0),
        f"diffusion_model.{bias}.diff_b": torch.full((24,), 2.0),
        f"diffusion_model.{bias}.diff": torch.ones(24, 136),
        "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 24),
        "diffusion_model.head.modulation.diff": torch.ones(1, 2, 24),
    }
    found = merge_lora(plain(), read_lora(lora), strength=0.5)
    changed = {n: x - plain()[n] for n, x in found.items() if not torch.equal(x, plain()[n])}
    assert {name: round(float(x.mean()), 5) for name, x in changed.items()} == {
        f"{norm}.weight": 0.25, f"{norm}.bias": -0.5, f"{bias}.bias": 1.0, f"{bias}.weight": 0.5,
        "blocks.0.modulation": 0.5, "head.modulation": 0.5,
    }  # fmt: skip


def test_patches_are_a_convolution() -> None:
    """A LoRA of the patch embedding, its factors as a convolution's or flat; one that reads more channels."""
    weight, layer = plain()["patch_embedding.weight"], "patch_embedding"
    draw = torch.Generator().manual_seed(4)
    down = torch.randn(2, *weight.shape[1:], generator=draw)
    up = torch.randn(len(weight), 2, generator=draw)
    expected = weight + torch.einsum("or,ricde->oicde", up, down)
    for a, b in ((down, up.reshape(len(weight), 2, 1, 1, 1)), (down.flatten(1), up)):
        factors = {f"{layer}.lora_down.weight": a, f"{layer}.lora_up.weight": b}
        found = merge_lora(plain(), read_lora(factors))
        assert (found["patch_embedding.weight"] - expected).abs().max() < 1e-5
    doubled = torch.cat([down, down], 1)
    control = {f"{layer}.lora_A.weight": doubled, f"{layer}.lora_B.weight": up}
    with pytest.raises(ValueError, match="a control LoRA, which reads 2 times the channels"):
        merge_lora(plain(), read_lora(control))


def test_norms_of_lycoris() -> None:
    norm = "diffusion_model.blocks.1.norm3"
    found = merge_lora(
        plain(), read_lora({f"{norm}.w_norm": torch.ones(24), f"{norm}.b_norm": torch.ones(24)})
    )
    changed = [name for name, x in found.items() if not torch.equal(x, plain()[name])]
    assert changed == ["blocks.1.norm3.weight", "blocks.1.norm3.bias"]


def test_a_lora_by_its_folder(tmp_path: Path) -> None:
    """As PEFT and diffusers write one; which of several is not guessed."""
    (tmp_path / "style").mkdir()
    for name in ("other", "adapter_model"):
        write(tmp_path / "style" / f"{name}.safetensors", NAMINGS["PEFT"]())
    (tmp_path / "style" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3}), encoding="utf-8")
    found, notes = with_loras(plain(), [LoraFile(str(tmp_path / "style"))])
    assert largest_difference(found, change()[1]) < 1e-6
    assert notes[0].startswith("adapter_model.safetensors: 20 changes")
    assert live_name(LoraFile(str(tmp_path / "style"))) == "style"
    (tmp_path / "style" / "adapter_model.safetensors").rename(tmp_path / "style" / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"expected one LoRA file .*found 2 .*name one of them"):
        with_loras(plain(), [LoraFile(str(tmp_path / "style"))])
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match=r"expected one LoRA file .*found none"):
        with_loras(plain(), [LoraFile(str(tmp_path / "none"))])


def test_strengths(tmp_path: Path) -> None:
    """0 is the network, 0.5 is half way, two add up."""
    first = write(tmp_path / "a.safetensors", NAMINGS["PEFT"]())
    second = write(tmp_path / "b.safetensors", NAMINGS["kohya"]())
    loras = parse_loras([f"{first}:0.25", f"{second}:0.75"])
    assert largest_difference(with_loras(plain(), loras)[0], change()[1]) < 2e-6
    assert largest_difference(with_loras(plain(), [LoraFile(str(first), 0)])[0], plain()) == 0
    half = with_loras(plain(), [LoraFile(str(first), 0.5)])[0]
    assert largest_difference({n: 2 * x - plain()[n] for n, x in half.items()}, change()[1]) < 2e-6


def test_a_model_with_a_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the weights, the fingerprint and the notes of a render."""
    from tests.tiny_wan import lora_tensors

    dit = load_pipeline("wan-1.3b-longlive", "cpu", wan=WanOptions(random_weights=True, overrides=SMALL))
    path = write(tmp_path / "a.safetensors", lora_tensors(dit.dit, 4))
    options = WanOptions(random_weights=True, overrides=SMALL, loras=(LoraFile(str(path), 0.5),))
    merged = load_pipeline("wan-1.3b-longlive", "cpu", wan=options)
    expected = merge_lora(dit.dit.state_dict(), read_lora(lora_tensors(dit.dit, 4)), strength=0.5)
    assert largest_difference(merged.dit.state_dict(), expected) == 0
    assert merged.parts.digest != dit.parts.digest
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    done = call(
        capsys, "render", "a boat", "-o", tmp_path / "a.mp4", "--model", "wan-1.3b-longlive",
        "--random-weights", *small, "--seconds", "0.5", "--device", "cpu", "--lora", f"{path}:0.5",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "note: a.safetensors: 20 changes (rank 4) merged at strength 0.5" in done.stderr


def wide(width: int, image: bool) -> State:
    """A LoRA of one layer for a network of some width."""
    out = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, width),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(width, 2),
    }
    if image:
        out |= {n.replace("self_attn.q", "cross_attn.k_img"): x for n, x in out.items()}
    return out


@pytest.mark.parametrize(
    ("width", "base", "image", "message"),
    [
        (5120, 1536, True, "an I2V 14B LoRA on a 1.3B T2V: 40 heads against 12"),
        (5120, 1536, False, "a 14B LoRA on a 1.3B T2V: 40 heads against 12"),
        (3072, 1536, False, "a 5B LoRA on a 1.3B T2V: 24 heads against 12"),
        (1536, 1536, True, "an I2V LoRA on a T2V model: blocks.0.cross_attn.k_img is a layer for pictures"),
        (100, 1536, False, "a width 100 LoRA on a 1.3B T2V: 100 numbers wide against 1536"),
    ],
)
def test_a_lora_for_another_model_is_named(width: int, base: int, image: bool, message: str) -> None:
    own = {"blocks.0.self_attn.q.weight": torch.zeros(base, base)}
    with pytest.raises(ValueError, match=message):
        merge_lora(own, read_lora(wide(width, image)))


def test_image_layers_in_every_naming() -> None:
    for name in (
        "lora_unet_blocks_0_cross_attn_k_img.lora_down",
        "transformer.blocks.0.attn2.add_k_proj.lora_A",
    ):
        up = name.replace("down", "up").replace("lora_A", "lora_B")
        lora = read_lora({f"{name}.weight": torch.zeros(2, 24), f"{up}.weight": torch.zeros(24, 2)})
        with pytest.raises(ValueError, match="an I2V LoRA on a T2V model"):
            merge_lora(plain(), lora)


PAIR = {f"{Q}.lora_A.weight": torch.zeros(2, 24), f"{Q}.lora_B.weight": torch.zeros(24, 2)}
UNFIT: dict[str, tuple[State, str]] = {
    "half": ({f"{Q}.lora_A.weight": torch.zeros(2, 24)}, r"self_attn\.q\.lora_B\.weight: missing"),
    "LoKr": ({f"{Q}.lokr_w1": torch.zeros(2, 2)}, "expected a LoRA, found LoKr, which is not read"),
    "LoHa": ({f"lycoris_{Q}.hada_w1_a": torch.zeros(2, 2)}, "expected a LoRA, found LoHa"),
    "layer": ({"lora_unet_blocks_0_x.lora_down.weight": torch.zeros(2, 2)}, "not a layer of a Wan DiT"),
    "alpha": (
        PAIR | {f"{Q}.alpha": torch.tensor(float("nan"))},
        "alpha: expected a finite number, found nan",
    ),
    "alphas": (PAIR | {f"{Q}.alpha": torch.zeros(2)}, r"alpha: expected one number, found shape \(2,\)"),
    "columns": (
        PAIR | {f"{Q}.dora_scale": torch.ones(1, 24)},
        "expected a DoRA magnitude for each of 24 rows",
    ),
    "DoRA alone": ({f"{Q}.dora_scale": torch.ones(24)}, "a DoRA magnitude without its lora_A and lora_B"),
    "difference": (
        {f"{Q}.diff": torch.zeros(3, 24)},
        r"expected a difference of shape \(24, 24\), found \(3, 24\)",
    ),
    "parameter": ({"blocks.9.norm3.diff": torch.zeros(24)}, "not a parameter of this model"),
    "nan": (PAIR | {f"{Q}.lora_B.weight": torch.full((24, 2), float("nan"))}, "up: expected finite numbers"),
    "infinite": ({f"{Q}.diff": torch.full((24, 24), float("inf"))}, "expected finite numbers, found NaN or"),
    "network": (plain(), "expected a LoRA, found a Wan DiT"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit_loras_are_one_line(kind: str, tmp_path: Path) -> None:
    tensors, message = UNFIT[kind]
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        with_loras(plain(), [LoraFile(str(path))])
    assert "\n" not in str(caught.value)
    assert "a.safetensors" in str(caught.value)


def test_arguments() -> None:
    assert parse_loras(["a.pt", "b.pt:0.5", "hf://o/r/c.safetensors@v1:-2"]) == (
        LoraFile("a.pt"), LoraFile("b.pt", 0.5), LoraFile("hf://o/r/c.safetensors@v1", -2.0),
    )  # fmt: skip
    assert parse_loras(["hf://o/r/c.pt", "C:\\x.pt"]) == (LoraFile("hf://o/r/c.pt"), LoraFile("C:\\x.pt"))
    for texts, message in (
        (["a.pt:nan"], r"strength: expected a number in -100\.\.100, found nan"),
        (["a.pt:inf"], r"strength: expected a number in -100\.\.100, found inf"),
        (["a.pt:much"], "strength: expected a number, found 'much'"),
        (["a.pt", "./a.pt:0.5"], "given twice, expected once with one strength"),
    ):
        with pytest.raises(InputError, match=message):
            parse_loras(texts)
    with pytest.raises(ValueError, match="strength: expected a finite number"):
        merge_lora(plain(), read_lora(PAIR), strength=float("nan"))


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_config().family == "wan"
    options = ["render", "a boat", "-o", tmp_path / "a.mp4", "--device", "cpu"]
    wan = [
        "--model",
        "wan-1.3b-longlive",
        "--random-weights",
        *(x for p in SMALL for x in ("--model-set", p)),
    ]
    for arguments, message in (
        ([*wan, "--lora", "a.pt:nan"], "strength: expected a number in -100..100, found nan"),
        ([*wan, "--lora", "a.pt", "--lora", "a.pt"], "given twice"),
        ([*wan, "--lora", tmp_path / "none.pt"], "no such file"),
        (["--lora", "a.pt"], "model tiny: is not of the Wan family"),
    ):
        assert message in call(capsys, *options, *arguments).error()
