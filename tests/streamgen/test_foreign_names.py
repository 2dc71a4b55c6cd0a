"""Key maps of foreign checkpoints: parity with diffusers and peft, round trips, published names, shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.causal_dit import CausalDiT, CausalDiTConfig
from models.context import BidirectionalContext
from models.lora import lora_pairs, merge_lora
from models.state_dict import (
    check_dtypes,
    identify,
    strip_wrappers,
    to_diffusers,
    to_wan,
    umt5_to_transformers,
    widen_patch_embedding,
)
from models.unwrap import GENERATOR_SECTIONS, sections, unwrap
from models.wan_vae import WanVAE, WanVAEConfig
from tests.tiny_models import randomize, tiny_dit

WAN_1_3B = CausalDiTConfig(dim=1536, layers=30, heads=12, ffn_dim=8960, text_dim=4096)


def theirs_and_ours(dim: int, heads: int, layers: int, channels: int) -> tuple[nn.Module, CausalDiT]:
    from diffusers import WanTransformer3DModel

    theirs = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=channels,
        out_channels=channels,
        text_dim=24,
        freq_dim=32,
        ffn_dim=2 * dim,
        num_layers=layers,
    )
    randomize(theirs, seed=dim)
    ours = CausalDiT(
        CausalDiTConfig(
            dim=dim, layers=layers, heads=heads, ffn_dim=2 * dim, text_dim=24, freq_dim=32,
            latent_channels=channels,
        )
    )  # fmt: skip
    ours.load_state_dict(to_wan(theirs.state_dict(), "diffusers_dit"))
    return theirs, ours.eval()


@pytest.mark.parametrize(("dim", "heads", "layers", "channels"), [(24, 2, 2, 4), (64, 2, 3, 16)])
@torch.no_grad()
def test_dit_equals_diffusers(dim: int, heads: int, layers: int, channels: int) -> None:
    theirs, ours = theirs_and_ours(dim, heads, layers, channels)
    for seed, (frames, height, width, time) in enumerate(
        [(1, 4, 4, 1000.0), (3, 4, 6, 937.5), (5, 6, 4, 0.0), (2, 8, 10, 417.25)]
    ):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(2, frames, channels, height, width, generator=draw)
        text = torch.randn(2, 7, 24, generator=draw)
        text[:, 5:] = 0
        expected = theirs(x.transpose(1, 2), torch.full((2,), time), text, return_dict=False)[0]
        context = BidirectionalContext(ours.rope, frames, ours.token_grid(x), x.device)
        found = ours(x, torch.full((2, frames), time), ours.embed_text(text), context)
        assert expected.abs().mean() > 0.05
        assert (found - expected.transpose(1, 2)).abs().max() < 5e-5


def test_conversions_round_trip_bit_exactly() -> None:
    dit, vae = tiny_dit(0), randomize(WanVAE(WanVAEConfig(dim=8)))
    for module, ours, theirs in ((dit, "wan_dit", "diffusers_dit"), (vae, "wan_vae", "diffusers_vae")):
        state = module.state_dict()
        assert identify(state) == ours
        there = to_diffusers(state, ours)  # type: ignore[arg-type]
        assert identify(there) == theirs
        back = to_wan(there, theirs)  # type: ignore[arg-type]
        assert set(back) == set(state)
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_published_names_and_shapes_of_the_1_3b_model() -> None:
    """825 tensors, 1,418,996,800 parameters; names and shapes as the published file has them."""
    with torch.device("meta"):
        state = CausalDiT(WAN_1_3B).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == published_shapes()
    assert len(state) == 825
    assert sum(x.numel() for x in state.values()) == 1_418_996_800


def published_shapes() -> dict[str, tuple[int, ...]]:
    def linear(name: str, out: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}

    d = 1536
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (d, 16, 1, 2, 2),
        "patch_embedding.bias": (d,),
        **linear("text_embedding.0", d, 4096),
        **linear("text_embedding.2", d, d),
        **linear("time_embedding.0", d, 256),
        **linear("time_embedding.2", d, d),
        **linear("time_projection.1", 9216, d),
        "head.modulation": (1, 2, d),
        **linear("head.head", 64, d),
    }
    for i in range(30):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, d)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{block}.{attention}.{part}", d, d)
            shapes |= {f"{block}.{attention}.norm_{part}.weight": (d,) for part in "qk"}
        shapes |= {f"{block}.norm3.weight": (d,), f"{block}.norm3.bias": (d,)}
        shapes |= {**linear(f"{block}.ffn.0", 8960, d), **linear(f"{block}.ffn.2", d, 8960)}
    return shapes


class Layers(nn.Module):
    """The layers that a LoRA of LongLive changes, under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "self_attn": nn.ModuleDict({part: nn.Linear(12, 12) for part in "qkvo"}),
                    "ffn": nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)),
                }
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("alpha", [4, 16])
def test_lora_merge_equals_peft(alpha: int) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    base = randomize(Layers())
    before = {name: value.clone() for name, value in base.state_dict().items()}
    targets = ["q", "k", "v", "o", "ffn.0", "ffn.2"]
    wrapped: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=alpha, target_modules=targets))  # type: ignore[arg-type]
    randomize(wrapped, seed=3)
    for name, value in wrapped.base_model.model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before:
            value.data = before[plain].clone()
    lora = get_peft_model_state_dict(wrapped)
    assert identify(lora) == "lora"
    merged = merge_lora(before, lora_pairs(lora), alpha=float(alpha))
    expected = wrapped.merge_and_unload().state_dict()
    assert set(merged) == set(expected)
    assert max(float((merged[name] - expected[name]).abs().max()) for name in merged) < 1e-6
    assert float((merged["blocks.0.ffn.0.weight"] - before["blocks.0.ffn.0.weight"]).abs().max()) > 1e-3
    # LongLive's alpha is its rank, which is what None stands for
    by_rank = merge_lora(before, lora_pairs(lora))
    assert torch.equal(by_rank["blocks.1.ffn.2.weight"], merged["blocks.1.ffn.2.weight"]) == (alpha == 4)


def wrapped_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"model._fsdp_wrapped_module.{n}".replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): t
        for n, t in state.items()
    }


def test_trainer_files_are_unwrapped() -> None:
    state = tiny_dit(0).state_dict()
    payload = {
        "generator": {f"model.{n}": t + 1 for n, t in state.items()},
        "generator_ema": wrapped_names(state),
        "critic": {f"model.{n}": t for n, t in state.items()},
        "step": 7,
    }
    assert set(sections(payload)) == {"generator", "generator_ema", "critic"}
    for wanted, offset in ((GENERATOR_SECTIONS, 0.0), (("generator",), 1.0)):
        found = unwrap(payload, wanted)
        assert set(found.tensors) == set(state)
        assert torch.equal(found.tensors["head.head.weight"], state["head.head.weight"] + offset), wanted
        assert found.section == wanted[0]
    assert unwrap({f"_orig_mod.{n}": t for n, t in state.items()}).section == ""
    with pytest.raises(ValueError, match="expected one of the sections generator, found critic"):
        unwrap({"critic": payload["critic"]}, ["generator"])
    with pytest.raises(ValueError, match="found twice once wrapper names are stripped"):
        strip_wrappers({"a": state["head.head.bias"], "_orig_mod.a": state["head.head.bias"]})


def test_widened_patch_embedding_computes_what_it_did() -> None:
    narrow, wide = tiny_dit(0), tiny_dit(5)
    state = widen_patch_embedding(narrow.state_dict(), 9)
    wide.load_state_dict(state)
    assert torch.equal(state["patch_embedding.weight"][:, 4:], torch.zeros(24, 5, 1, 2, 2))
    assert widen_patch_embedding(state, 9)["patch_embedding.weight"] is state["patch_embedding.weight"]
    with pytest.raises(ValueError, match="expected at most 4 input channels, found 9"):
        widen_patch_embedding(state, 4)
    x, motion = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 2, 5, 4, 6)
    context = BidirectionalContext(narrow.rope, 2, (2, 3), x.device)
    level, text = torch.full((1, 2), 500.0), torch.randn(1, 3, 8)
    with torch.no_grad():
        plain = narrow(x, level, narrow.embed_text(text), context)
        assert torch.allclose(plain, wide(x, level, wide.embed_text(text), context, motion), atol=1e-6)


def test_umt5_names() -> None:
    one = torch.zeros(1)
    state = {"token_embedding.weight": one, "norm.weight": one}
    block = ("norm1.weight", "attn.q.weight", "attn.o.weight", "pos_embedding.embedding.weight")
    state |= {f"blocks.3.{n}": one for n in (*block, "norm2.weight", "ffn.gate.0.weight", "ffn.fc1.weight")}
    assert identify(state) == "wan_umt5"
    assert set(umt5_to_transformers(state)) == {
        "shared.weight",
        "encoder.embed_tokens.weight",
        "encoder.final_layer_norm.weight",
        "encoder.block.3.layer.0.layer_norm.weight",
        "encoder.block.3.layer.0.SelfAttention.q.weight",
        "encoder.block.3.layer.0.SelfAttention.o.weight",
        "encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.3.layer.1.layer_norm.weight",
        "encoder.block.3.layer.1.DenseReluDense.wi_0.weight",
        "encoder.block.3.layer.1.DenseReluDense.wi_1.weight",
    }


def pair(layer: str, rank: int = 2, out: int = 24, inputs: int = 24) -> dict[str, Tensor]:
    return {
        f"base_model.model.{layer}.lora_A.weight": torch.zeros(rank, inputs),
        f"base_model.model.{layer}.lora_B.weight": torch.zeros(out, rank),
    }


Q = "blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (pair("blocks.9.self_attn.q"), r"blocks\.9\.self_attn\.q: changed by the LoRA, but not a layer"),
        (pair(Q, out=30), r"expected a LoRA for shape \(24, 24\), found one for \(30, 24\)"),
        (pair(Q, rank=3), r"blocks\.0\.self_attn\.q: expected a LoRA of rank 2, found 3"),
        ({next(iter(pair(Q))): torch.zeros(2, 24)}, r"self_attn\.q\.lora_B\.weight: missing"),
        (pair(Q) | {f"{Q}.weight": torch.zeros(1)}, "expected <layer>.lora_A.weight"),
        (
            {f"{Q}.lora_{x}.weight": torch.zeros(2, 24) for x in "AB"},
            "lora_A .rank, in. and lora_B .out, rank.",
        ),
    ],
)
def test_unfit_lora_is_one_line(lora: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        merge_lora(tiny_dit(0).state_dict(), lora_pairs(lora), rank=2)
    assert "\n" not in str(caught.value)


def test_unknown_things_are_named() -> None:
    with pytest.raises(ValueError, match=r"found other names \(a, b\)"):
        identify(["a", "b"])
    with pytest.raises(ValueError, match="expected named tensors, found list"):
        sections([1])
    with pytest.raises(ValueError, match="expected named tensors, found step"):
        sections({"step": 1})
    with pytest.raises(ValueError, match=r"blocks\.0\.img: not a name of a Wan text-to-video DiT"):
        to_wan({"blocks.0.img": torch.zeros(1)}, "diffusers_dit")
    with pytest.raises(ValueError, match="w: expected float32, float16 or bfloat16, found float8_e4m3fn"):
        check_dtypes({"w": torch.zeros(1).to(torch.float8_e4m3fn)})
