"""UMT5 prompts: equal to transformers with padding and mask, zero past the prompt, cached and freed; the
published file of Wan2.1; what is missing or does not fit is one line.
"""

import contextlib
import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import streamgen.wan.text
from models.state_dict import umt5_to_transformers
from streamgen.engine.quantize import QuantizedLinear
from streamgen.errors import CheckpointError
from streamgen.wan.config import TextConfig
from streamgen.wan.memory import UMT5_XXL_PARAMETERS, text_encoder_bytes
from streamgen.wan.options import TextOptions
from streamgen.wan.text import HashedPrompts, UMT5Prompts, clean_prompt
from tests.tiny_models import assert_needs, randomize, tiny_dit
from tests.tiny_wan import tiny_tokenizer, tiny_umt5
from tests.waiting import PATIENCE

CONFIG = TextConfig(dim=16, length=12)
FLOAT = TextOptions(dtype=torch.float32)
PROMPT = "a red  boat\n sails"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As diffusers publishes it: text_encoder and tokenizer side by side."""
    path = tmp_path_factory.mktemp("umt5")
    tiny_umt5().save_pretrained(path / "text_encoder")
    tiny_tokenizer().save_pretrained(path / "tokenizer")
    return path


def expected(prompt: str) -> Tensor:
    """What the published pipelines do: pad to full length, mask, zero what lies past the prompt."""
    tokens = tiny_tokenizer()(
        prompt, padding="max_length", max_length=CONFIG.length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = tiny_umt5()(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    out: Tensor = hidden.last_hidden_state.clone()
    out[0, int(tokens.attention_mask.sum()) :] = 0
    return out


def test_equals_transformers_with_padding_and_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = " ".join(["the red boat"] * 7)

    def check() -> None:
        prompts = UMT5Prompts(str(folder), CONFIG, FLOAT)
        for prompt in (PROMPT, "", long):
            found = prompts.embed(prompt)
            assert found.shape == (1, 12, 16)
            assert (found - expected(prompt)).abs().max() < 1e-5

    repeated = lambda embedding, length: embedding[:1].expand(length, -1)[None]  # noqa: E731
    assert_needs(check, monkeypatch, streamgen.wan.text, "zero_padded", repeated)
    words = UMT5Prompts(str(folder), CONFIG, FLOAT).words(long)
    assert (len(words.ids), words.dropped, words.unknown) == (12, 22 - 12, ())
    assert int(words.ids[-1]) == 1
    # eleven words and the end token are read
    assert words.cut == "boat the red boat the red boat the red ..."
    assert UMT5Prompts(str(folder), CONFIG, FLOAT).words(PROMPT).cut == ""


def test_eight_bits_are_close_and_half_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = UMT5Config(
        vocab_size=16, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    randomize(UMT5EncoderModel(sizes)).save_pretrained(tmp_path / "text_encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = TextConfig(dim=32, length=12)
    whole = UMT5Prompts(str(tmp_path), config, FLOAT)
    options = TextOptions(dtype=torch.float32, int8=True, cache=tmp_path / "cache")
    small = UMT5Prompts(str(tmp_path), config, options)
    found, expected_ = small.embed(PROMPT)[0, :4], whole.embed(PROMPT)[0, :4]
    assert not torch.equal(found, expected_)
    assert torch.nn.functional.cosine_similarity(found, expected_).min() > 0.99
    layers = [module for module in small._load().modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 2 * 7
    # with a cache that the other precision has filled there is nothing to be found
    assert small._file("a") != UMT5Prompts(str(tmp_path), config, replace(options, int8=False))._file("a")
    monkeypatch.setattr(streamgen.wan.text, "kernel_missing", lambda *place: "no kernel here")
    with pytest.raises(CheckpointError, match="text encoder: int8: no kernel here"):
        UMT5Prompts(str(tmp_path), config, TextOptions(int8=True)).embed("a red")


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "quanto"])
def test_a_folder_in_transformers_own_eight_bits_needs_their_library(method: str, tmp_path: Path) -> None:
    """It is loaded as transformers loads it; without the library that is one line which names it."""
    tiny_umt5().save_pretrained(tmp_path / "text_encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = tmp_path / "text_encoder" / "config.json"
    kinds = {
        "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        "quanto": {"quant_method": "quanto", "weights": "int8"},
    }
    values = json.loads(config.read_text(encoding="utf-8")) | {"quantization_config": kinds[method]}
    config.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"cannot be loaded .*{method}") as caught:
        UMT5Prompts(str(tmp_path), CONFIG, FLOAT).embed("a red")
    assert "\n" not in str(caught.value)


def test_the_memory_estimate_knows_the_published_encoder() -> None:
    """Its linear layers in eight bits, its words as they are."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        relative_attention_num_buckets=32, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = UMT5EncoderModel(sizes)
    numbers = {id(x): x.numel() for x in model.parameters()}
    assert sum(numbers.values()) == UMT5_XXL_PARAMETERS
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    small = sum(module.weight.numel() + 4 * module.out_features for module in linears)
    rest = 2 * (UMT5_XXL_PARAMETERS - sum(module.weight.numel() for module in linears))
    assert text_encoder_bytes(torch.int8) == pytest.approx(small + rest, rel=0.005)
    assert text_encoder_bytes(torch.bfloat16) == 2 * UMT5_XXL_PARAMETERS


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UMT5 encoder under the names of Wan2.1."""
    pairs = (
        ("layer.0.layer_norm.", "norm1."),
        ("layer.0.SelfAttention.relative_attention_bias.", "pos_embedding.embedding."),
        ("layer.0.SelfAttention.", "attn."),
        ("layer.1.layer_norm.", "norm2."),
        ("layer.1.DenseReluDense.wi_0.", "ffn.gate.0."),
        ("layer.1.DenseReluDense.wi_1.", "ffn.fc1."),
        ("layer.1.DenseReluDense.wo.", "ffn.fc2."),
        ("encoder.final_layer_norm.", "norm."),
        ("encoder.block.", "blocks."),
        ("shared.", "token_embedding."),
    )
    out = {}
    for name, value in state.items():
        for theirs, ours in pairs:
            name = name.replace(theirs, ours)
        if not name.startswith("encoder.embed_tokens"):
            out[name] = value
    return out


def test_published_file_of_wan(tmp_path: Path) -> None:
    model = tiny_umt5()
    tiny_tokenizer().save_pretrained(tmp_path / "google" / "umt5-xxl")
    state = published_names(model.state_dict())
    assert set(umt5_to_transformers(state)) == set(model.state_dict())
    torch.save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    found = UMT5Prompts(str(tmp_path), CONFIG, FLOAT).embed(PROMPT)
    assert (found - expected(PROMPT)).abs().max() < 1e-5
    del state["blocks.1.ffn.fc2.weight"]
    torch.save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(CheckpointError, match=r"does not fit \(.*wo\.weight"):
        UMT5Prompts(str(tmp_path), CONFIG, FLOAT).embed(PROMPT)


def files_of_one(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The encoder as one file, in the ways that ComfyUI's folders have it."""
    plain = {name: x for name, x in state.items() if name != "encoder.embed_tokens.weight"}
    inside = {f"text_encoders.umt5xxl.transformer.{name}": x for name, x in plain.items()}
    return {
        "transformers": plain | {"spiece_model": torch.zeros(5, dtype=torch.uint8)},
        "Wan": published_names(state),
        "whole model": plain | {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2, 2)},
        "whole checkpoint": inside
        | {f"model.diffusion_model.{name}": x for name, x in tiny_dit().state_dict().items()},
    }


@pytest.mark.parametrize("kind", files_of_one(dict.fromkeys(["shared.weight"], torch.zeros(1))))
def test_an_encoder_of_one_file(kind: str, tmp_path: Path) -> None:
    state = {name: x.clone() for name, x in tiny_umt5().state_dict().items()}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    save_file(files_of_one(state)[kind], tmp_path / "umt5_xxl.safetensors")
    found = UMT5Prompts(str(tmp_path / "umt5_xxl.safetensors"), CONFIG, FLOAT).embed(PROMPT)
    assert (found - expected(PROMPT)).abs().max() < 1e-5


def test_an_encoder_of_one_quantised_file(tmp_path: Path) -> None:
    """ComfyUI's scaled fp8: what is computed with is what the codes say."""
    state = {n: x.clone() for n, x in tiny_umt5().state_dict().items() if n != "encoder.embed_tokens.weight"}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    codes: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, x in state.items():
        if "Attention.q" not in name and "wi_0" not in name:
            codes[name] = x
            continue
        scale = x.abs().max() / 448
        codes |= {name: (x / scale).to(torch.float8_e4m3fn), name.replace("weight", "scale_weight"): scale}
        state[name] = codes[name].float() * scale
    save_file(state, tmp_path / "a.safetensors")
    save_file(codes, tmp_path / "b.safetensors")
    whole, quantised = (UMT5Prompts(str(tmp_path / f"{n}.safetensors"), CONFIG, FLOAT) for n in "ab")
    assert torch.equal(whole.embed(PROMPT), quantised.embed(PROMPT))
    assert (whole.embed(PROMPT) - expected(PROMPT)).abs().max() > 1e-3


def test_cache_and_free(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TextOptions(dtype=torch.float32, keep=False, cache=tmp_path)
    prompts = UMT5Prompts(str(folder), CONFIG, options)
    first = prompts.embed(PROMPT)
    assert prompts._model is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    # the same prompt, spaced otherwise, in another process: no encoder is needed
    monkeypatch.setattr(streamgen.wan.text, "_from_pretrained", lambda *_, **__: 1 / 0)
    again = UMT5Prompts(str(folder), CONFIG, options)
    assert torch.equal(again.embed("a red boat sails "), first)
    next(iter(tmp_path.glob("*.safetensors"))).write_bytes(b"damaged")
    with pytest.raises(ZeroDivisionError):
        UMT5Prompts(str(folder), CONFIG, options).embed(PROMPT)


@pytest.mark.parametrize(
    ("config", "source", "message"),
    [
        (TextConfig(dim=8, length=12), None, "expected width 8 (dit.text_dim), found 16"),
        (CONFIG, "/no/such/folder", "text encoder /no/such/folder: cannot be loaded"),
        (CONFIG, "lora.safetensors", "expected a UMT5 text encoder in Wan naming, found a LoRA"),
        (CONFIG, "half.safetensors", "0.SelfAttention.relative_attention_bias.weight: missing"),
        (CONFIG, "words.safetensors", "text encoder"),
    ],
)
def test_unfit_encoder_is_one_line(
    config: TextConfig, source: str | None, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    state = {n: x.clone() for n, x in tiny_umt5().state_dict().items() if "embed_tokens" not in n}
    save_file({n: x for n, x in state.items() if "relative" not in n}, folder / "half.safetensors")
    save_file({n: x for n, x in state.items() if "encoder" in n}, folder / "words.safetensors")
    save_file({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    source = str(folder / source) if source is not None else None
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        UMT5Prompts(source or str(folder), config, FLOAT).embed(PROMPT)
    assert "\n" not in str(caught.value)


def test_missing_transformers_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'streamgen\[wan\]'"):
        UMT5Prompts(str(folder), CONFIG, FLOAT).embed(PROMPT)


def test_hashed_prompts_are_functions_of_their_words() -> None:
    prompts = HashedPrompts(CONFIG)
    one, two = prompts.embed("a red boat"), prompts.embed("the red boat")
    assert one.shape == (1, 12, 16)
    assert torch.equal(one[0, 1:], two[0, 1:])
    assert not torch.equal(one[0, 0], two[0, 0])
    assert not one[0, 3:].any()
    assert not prompts.null().any()


def test_clean_prompt() -> None:
    assert clean_prompt(" a\u00a0\u201cred\u201d &amp;amp; \n blue boat ") == 'a "red" & blue boat'


def test_first_prompts_that_come_at_once_load_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, each with its first prompt; the loader waits, so that both would be in it."""
    loads: list[str] = []
    tokenizer, model = tiny_tokenizer(), tiny_umt5()

    def loader(kind: str, source: str, **options: object) -> object:
        loads.append(kind)
        # for the other thread, which is not to come; where it may, however late it does
        end = time.monotonic() + limit[0]
        while loads.count(kind) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        return tokenizer if kind == "AutoTokenizer" else model

    monkeypatch.setattr(streamgen.wan.text, "_from_pretrained", loader)

    patience, limit = iter((0.2, PATIENCE)), [0.0]

    def check() -> None:
        loads.clear()
        limit[0] = next(patience)
        prompts = UMT5Prompts("nowhere", TextConfig(dim=16, length=6))
        start = threading.Barrier(2)
        found: dict[str, torch.Tensor] = {}

        def first(prompt: str) -> None:
            start.wait()
            found[prompt] = prompts.embed(prompt)

        threads = [threading.Thread(target=first, args=(prompt,)) for prompt in ("a red boat", "the sea")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(loads) == ["AutoTokenizer", "UMT5EncoderModel"]
        assert torch.equal(found["the sea"], prompts.embed("the sea"))

    assert_needs(check, monkeypatch, threading, "RLock", contextlib.nullcontext)


def test_a_failed_load_lets_the_next_prompt_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = UMT5Prompts("nowhere", TextConfig(dim=16, length=6))
    monkeypatch.setattr(streamgen.wan.text, "_from_pretrained", broken_loader)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        prompts.embed("a red boat")
    good = {"AutoTokenizer": tiny_tokenizer(), "UMT5EncoderModel": tiny_umt5()}
    monkeypatch.setattr(streamgen.wan.text, "_from_pretrained", lambda kind, source, **_: good[kind])
    assert prompts.embed("a red boat").shape == (1, 6, 16)


def broken_loader(kind: str, source: str, **options: object) -> object:
    raise CheckpointError(f"text encoder {source}: cannot be loaded")
