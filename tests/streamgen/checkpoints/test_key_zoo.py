"""The key zoo: weights of one network in every layout that was seen, and in combinations that nobody listed,
are the network; what cannot be read is one sentence that names its kind.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import models.unwrap as unwrapping
from models.unwrap import GENERATOR_SECTIONS, unwrap
from streamgen.checkpoints import foreign
from streamgen.checkpoints.foreign import read_foreign, read_payload
from streamgen.errors import CheckpointError
from tests.foreign_layouts import (
    INFIXES,
    NAMINGS,
    PREFIXES,
    QUANTISATIONS,
    SECTIONS,
    Layout,
    critic_heads,
    diffusers,
    plain,
    prefixed,
    shifted,
    write,
    write_shards,
)
from tests.tiny_models import assert_needs


def comfy_parts() -> dict[str, torch.Tensor]:
    """What a whole checkpoint of ComfyUI has beside the network."""
    return {
        "vae.encoder.conv1.weight": torch.zeros(2, 2),
        "vae.decoder.upsamples.0.residual.0.gamma": torch.zeros(2),
        "vae.conv2.weight": torch.zeros(2, 2),
        "text_encoders.umt5xxl.transformer.shared.weight": torch.zeros(3, 2),
        "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.layer_norm.weight": torch.zeros(2),
        "text_encoders.umt5xxl.spiece_model": torch.zeros(4, dtype=torch.uint8),
    }


def rcm_counters() -> dict[str, torch.Tensor]:
    """What rCM counts while it trains."""
    names = ("video_sample_counter", "image_sample_counter", "iteration", "train_in_hours")
    return {f"net.accum_{name}": torch.tensor(700) for name in names}


def others(*prefixes: str) -> Callable[[], dict[str, torch.Tensor]]:
    """Other networks of the same shape in the same file."""
    return lambda: {name: x for prefix in prefixes for name, x in prefixed(shifted(plain()), prefix).items()}


LAYOUTS: dict[str, tuple[str, Layout]] = {
    "Wan2.1": ("a.safetensors", Layout()),
    "Wan2.1, torch": ("a.pth", Layout()),
    "ComfyUI, whole checkpoint": (
        "a.safetensors",
        Layout(prefix="model.diffusion_model.", beside=comfy_parts),
    ),
    "ComfyUI, scaled, whole checkpoint": (
        "a.safetensors",
        Layout("scaled_fp8", prefix="model.diffusion_model.", beside=comfy_parts),
    ),
    "rCM": ("a.pth", Layout(prefix="net.", naming="rcm", beside=rcm_counters)),
    "rCM, convolved": ("a.pth", Layout(prefix="net.")),
    "rCM, state_dict": ("a.pt", Layout(prefix="net.", section="state_dict")),
    "rCM, average and others": (
        "a.safetensors",
        Layout(prefix="net_ema.", beside=others("net.", "net_fake_score.", "net_teacher.")),
    ),
    "flat sections": (
        "a.safetensors",
        Layout(prefix="generator.model.", beside=others("critic.model.", "fake_score.")),
    ),
    "Self-Forcing": ("a.pt", Layout(prefix="model.", infix="fsdp", section="generator_ema")),
    "Causal-Forcing": ("a.pt", Layout(prefix="model.", section="generator")),
    "One-Forcing": ("a.pt", Layout(prefix="model.", section="beside")),
    "critic heads, flat": ("a.safetensors", Layout(prefix="model.", beside=critic_heads)),
    "average is empty": ("a.pt", Layout(prefix="model.", section="empty ema")),
    "average is partial": ("a.pt", Layout(prefix="model.", section="partial ema")),
    "diffusers": ("a.safetensors", Layout(naming="diffusers")),
    "diffusers, trainer": (
        "a.pt",
        Layout(naming="diffusers", infix="fsdp", prefix="model.", section="generator_ema"),
    ),
    "LongLive, training": (
        "a.pt",
        Layout(bundle=True, prefix="model.base_model.model.", section="generator"),
    ),
    "diffusers, training": (
        "a.safetensors",
        Layout(bundle=True, naming="diffusers", prefix="base_model.model."),
    ),
    "LightX2V": ("a.safetensors", Layout("row int8")),
    "TurboDiffusion": ("a.pth", Layout("block int8")),
    "bundle over fp8": ("a.safetensors", Layout("scaled_fp8", bundle=True, prefix="base_model.model.")),
    **{f"{name}": ("a.safetensors", Layout(name)) for name in QUANTISATIONS if name != "none"},
    **{f"section {name}": ("a.pt", Layout(section=name)) for name in SECTIONS},
    **{f"prefix {name}": ("a.safetensors", Layout(prefix=name)) for name in PREFIXES},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_the_network(name: str, tmp_path: Path) -> None:
    file, layout = LAYOUTS[name]
    path = write(tmp_path / file, layout.payload())
    found = read_foreign(path, GENERATOR_SECTIONS, "wan_dit")
    assert found.kind == "wan_dit"
    layout.check(found.tensors)
    # names and shapes alone tell the same, and no number is read
    named = unwrap(read_payload(path, names_only=True), GENERATOR_SECTIONS, "wan_dit")
    assert {n: x.shape for n, x in named.tensors.items()} == {n: x.shape for n, x in found.tensors.items()}
    assert all(x.device.type == "meta" for x in named.tensors.values())
    assert named.notes() == found.notes()


def test_the_zoo_is_large() -> None:
    assert len(LAYOUTS) >= 30


def test_combinations_that_nobody_listed() -> None:
    draw = random.Random(0)
    for _ in range(60):
        bundle = draw.random() < 0.3
        layout = Layout(
            draw.choice([*QUANTISATIONS]), bundle, draw.choice([*NAMINGS]), draw.choice([*INFIXES]),
            draw.choice(PREFIXES), draw.choice([*SECTIONS]),
        )  # fmt: skip
        layout.check(unwrap(layout.payload(), GENERATOR_SECTIONS, "wan_dit").tensors)


@pytest.mark.parametrize(
    ("layout", "rule", "instead"),
    [
        (Layout(infix="fsdp"), "strip_infixes", dict),
        (Layout("block int8"), "dequantized", lambda tensors: (dict(tensors), None)),
        (Layout(bundle=True), "merged_bundle", lambda tensors: (dict(tensors), 0)),
        (Layout(naming="diffusers"), "to_wan", lambda tensors, kind: dict(tensors)),
        (Layout(prefix="net."), "_TOKENS", frozenset()),
        (Layout(section="beside"), "_BESIDE", ()),
    ],
)
def test_layouts_need_their_rule(
    layout: Layout, rule: str, instead: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        try:
            found = unwrap(layout.payload(), GENERATOR_SECTIONS, "wan_dit")
        except ValueError as error:
            raise AssertionError(error) from None
        layout.check(found.tensors)

    assert_needs(check, monkeypatch, unwrapping, rule, instead)


def test_what_was_done_is_told() -> None:
    found = unwrap(Layout("scaled_fp8", bundle=True, prefix="model.", section="beside").payload())
    assert found.notes() == [
        "left out: 5 tensors, heads of a critic",
        "left out: 1 tensors, position tables",
        "left out: 1 tensors, counters",
        "the adapters of 20 layers were merged, at strength 1",
        "dequantised from fp8 (scaled)",
    ]
    assert (found.section, found.prefix, found.naming) == ("generator", "model.", "wan_dit")


def test_sharded_with_folders_below(tmp_path: Path) -> None:
    for folder, state in (("wan", plain()), ("diffusers", diffusers(plain()))):
        index = write_shards(tmp_path / folder, state, ("a.safetensors", "part/b.safetensors"))
        Layout().check(read_foreign(index, GENERATOR_SECTIONS).tensors)


def test_what_a_file_is_its_bytes_say(tmp_path: Path) -> None:
    """Suffixes lie: a torch file named safetensors, the other way round, and the format of before torch
    1.6.
    """
    save_file(plain(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pt")
    torch.save(plain(), tmp_path / "b.pt")
    (tmp_path / "b.pt").rename(tmp_path / "b.safetensors")
    torch.save(plain(), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "b.safetensors", "c.pt"):
        Layout().check(read_foreign(tmp_path / name, GENERATOR_SECTIONS).tensors)


def test_parts_of_a_whole_checkpoint(tmp_path: Path) -> None:
    """The same file gives the network and the VAE, whichever is asked for."""
    layout = replace(LAYOUTS["ComfyUI, whole checkpoint"][1])
    path = write(tmp_path / "a.safetensors", layout.payload())
    assert set(read_foreign(path, (), "wan_vae").tensors) == {
        "encoder.conv1.weight", "decoder.upsamples.0.residual.0.gamma", "conv2.weight",
    }  # fmt: skip
    assert read_foreign(path, (), "umt5").kind == "umt5"


def test_a_checkpoint_of_ours_is_not_a_foreign_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", prefixed(plain(), "dit."))
    assert read_foreign(path, GENERATOR_SECTIONS).kind == "streamgen"


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_foreign(path, GENERATOR_SECTIONS, "wan_dit")
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


UNUSABLE: dict[str, tuple[Any, str]] = {
    "memory expert": (
        plain() | {"memory_patch_embedding.weight": torch.zeros(2)},
        "memory_patch_embedding: `memory_` weights need a memory expert",
    ),
    "memory expert, layers": (
        {"generator": plain() | {"blocks.0.self_attn.q.memory_weight": torch.zeros(2)}},
        "memory_weight: `memory_` weights need a memory expert",
    ),
    "prefix": (
        prefixed(plain(), "weird.thing."),
        r"unknown prefix weird\.thing\.: expected none or one of gen",
    ),
    "critic alone": ({"critic": plain()}, "expected one of the sections generator_ema.*found critic"),
    "names": ({"a": torch.zeros(1), "b": torch.zeros(1)}, r"found other names \(a, b\)"),
    "nothing": ({"step": 1}, "expected named tensors, found step"),
    "packed": (
        plain() | {"blocks.0.ffn.0.weight": torch.zeros(3, dtype=torch.uint8)},
        "packed in bytes",
    ),
    "scale is lost": (
        {n: x for n, x in Layout("scaled_fp8").payload().items() if n != "blocks.0.ffn.0.scale_weight"},
        "blocks.0.ffn.0.weight: fp8 numbers without their scale",
    ),
    "scale is left over": (
        plain() | {"blocks.0.ffn.0.scale_weight": torch.ones(1)},
        "blocks.0.ffn.0.scale_weight: a scale without the weights",
    ),
    "scale of another shape": (
        Layout("scaled_fp8").payload() | {"blocks.0.ffn.0.scale_weight": torch.ones(5)},
        r"blocks\.0\.ffn\.0\.weight: expected a scale for all of \(136, 24\), .* found shape \(5,\)",
    ),
    "twice": (plain() | prefixed(plain(), "_orig_mod."), "found twice once wrapper names are stripped"),
    "sparse": (plain() | {"head.head.weight": torch.eye(4).to_sparse()}, "expected a dense tensor"),
    "complex": (plain() | {"head.head.bias": torch.zeros(3, dtype=torch.complex64)}, "found complex64"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_one_sentence(name: str, tmp_path: Path) -> None:
    payload, message = UNUSABLE[name]
    refused(write(tmp_path / "a.pt", payload), message)


def header(content: object, numbers: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + numbers


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN_FILES: dict[str, tuple[bytes, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5676070424\n",
        "a Git LFS pointer of 5.7 GB, not the file itself",
    ),
    "answer": (b"Entry not found", "a text, not weights: 'Entry not found'; fetch the file again"),
    "JSON": (b'{"error": "Repository not found"}', "a text, not weights: .*Repository not found"),
    "GGUF": (b"GGUF" + bytes(60), "GGUF is not read, use the safetensors file"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not weights"),
    "empty": (b"", "a header of 0 bytes in a file of 0"),
    "header of 1 GB": (
        (10**9).to_bytes(8, "little") + b"{}",
        r"a header of 1,000,000,000 bytes in a file of 10",
    ),
    "no json": (header(b"{{{"), "a header that is no JSON"),
    "deep": (header(b"[" * 100_000), "a header that is no JSON"),
    "list": (header([1]), "a header without names"),
    "entry": (header({"a": 3}), "'a': an entry without dtype, shape and offsets"),
    "dtype": (header({"a": ENTRY | {"dtype": "F4"}}, bytes(8)), "numbers of the kind 'F4'"),
    "shape": (header({"a": ENTRY | {"shape": [3]}}, bytes(8)), r"'a': 8 bytes for shape \(3,\)"),
    "negative": (header({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "without dtype, shape and offsets"),
    "overlap": (header({"a": ENTRY, "b": ENTRY}, bytes(8)), "tensors that overlap at byte 0"),
    "gap": (header({"a": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)), "tensors that leave a gap"),
    "truncated": (header({"a": ENTRY}, bytes(3)), "3 bytes of tensors where its header says 8"),
    "trailing bytes": (header({"a": ENTRY}, bytes(13)), "5 bytes behind its last tensor"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_safetensors_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN_FILES[name]
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors", message)


def test_header_of_a_sparse_gigabyte(tmp_path: Path) -> None:
    """A file that is as long as its header says is refused before the header is read."""
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little") + b"{")
        file.truncate(10**9 + 8)
    refused(path, "a header of 1,000,000,000 bytes, at most 100,000,000 are read")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "x.safetensors", "b": "y.safetensors"},
            "2 of its 2 shards are missing, the first is 'x.safeten",
        ),
        ({"a": "../x.safetensors"}, "expected a file in the folder of the index, found one outside"),
        ({"a": "/x.safetensors"}, "found one outside"),
        ({"a": "C:\\x.safetensors"}, "found one outside"),
        ({"a": "index.json"}, "expected a weights file, found the index itself"),
        ({"a": "other.json"}, "expected a weights file, found another kind of file"),
        ({"a": "x" * 300 + ".pt"}, "longer than a file name can be"),
        ({"a": 3}, "expected an index with a weight_map"),
        ({}, "expected an index with a weight_map"),
        ([], "expected an index with a weight_map"),
        ({"b": "good.safetensors"}, "'b': named in the index, but in no shard"),
    ],
)
def test_broken_index_is_one_line(weight_map: object, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "good.safetensors")
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    refused(tmp_path / "index.json", message)


def test_checks_come_before_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken header is an error of ours, not one that the reader below may or may not have."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(BROKEN_FILES["trailing bytes"][0])

    def check() -> None:
        with pytest.raises(CheckpointError) as caught:
            read_payload(path)
        assert "behind its last tensor" in str(caught.value)

    assert_needs(check, monkeypatch, foreign, "read_header", lambda path: None)
