"""`streamgen convert` takes what the other doors take: names on the hub, and LoRAs to merge."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_dit import CausalDiT
from streamgen import InputError, load_pipeline
from streamgen.errors import CheckpointError
from streamgen.wan import convert
from streamgen.wan.convert import convert_weights
from streamgen.wan.loras import LoraFile
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.streamgen.wan.test_adopt import REPO, published, server  # noqa: F401  fixtures
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, lora_tensors, small_config

NAME = "wan-1.3b-self-forcing"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    save_file(lora_tensors(CausalDiT(small_config(NAME).dit), 2), path)
    return path


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("server")
def test_a_repository_and_a_file_of_the_hub(published: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = published / "owner" / "repo"
    card = convert_weights(folder, tmp_path / "a", model=NAME, overrides=SMALL)
    assert {row["part"] for row in card["files"].values()} == {"dit", "vae", "tiny_decoder"}
    again = convert_weights(REPO, tmp_path / "b", model=NAME, overrides=SMALL)
    assert again["files"] == card["files"]
    one = convert_weights(f"{REPO}/self_forcing_dmd.pt@main", tmp_path / "c", model=NAME, overrides=SMALL)
    assert [row["part"] for row in one["files"].values()] == ["dit"]
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "c"))
    with pytest.raises(CheckpointError, match="no such file in the repository"):
        convert_weights(f"{REPO}/other.pt", tmp_path / "d", model=NAME, overrides=SMALL)
    with pytest.raises(InputError, match="missing --model"):
        convert_weights(REPO, tmp_path / "d")


def test_loras_are_merged_as_at_load(published: Path, lora: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = published / "owner" / "repo"
    merged = (LoraFile(str(lora), 0.5),)
    card = convert_weights(folder, tmp_path / "a", model=NAME, overrides=SMALL, loras=merged)
    assert (card["lora_merged"], card["loras"]) == (True, [{"place": str(lora), "strength": 0.5}])
    convert_weights(folder, tmp_path / "plain", model=NAME, overrides=SMALL)
    assert not same(tensors(tmp_path / "a"), tensors(tmp_path / "plain"))
    options = WanOptions(weights=folder, overrides=SMALL, loras=merged, check_memory=False)
    at_load = load_pipeline(NAME, "cpu", wan=options).dit.state_dict()
    assert same({f"dit.{name}": x for name, x in at_load.items()}, tensors(tmp_path / "a"))


@pytest.mark.parametrize("one_file", [False, True])
def test_what_does_not_fit_is_not_converted(
    one_file: bool,
    published: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder that is written loads: a network with layers missing is refused before."""
    state = torch.load(published / "owner" / "repo" / "self_forcing_dmd.pt", weights_only=True)["generator"]
    partial = {name: x for name, x in state.items() if "blocks.1.ffn" not in name}
    (tmp_path / "in").mkdir()
    torch.save({"generator_ema": partial}, tmp_path / "in" / "self_forcing_dmd.pt")
    source = tmp_path / "in" / "self_forcing_dmd.pt" if one_file else tmp_path / "in"
    changes = [text for pair in SMALL for text in ("--model-set", pair)]

    def check() -> None:
        done = call(capsys, "convert", source, "-o", tmp_path / "out", "--model", NAME, *changes)
        assert done.code == 2
        assert "4 missing tensors (blocks.1.ffn.0.bias" in done.error()
        assert not (tmp_path / "out").exists()

    assert_needs(check, monkeypatch, convert, "_check_fits", lambda *_: None)


@pytest.mark.parametrize("to", ["diffusers", "wan"])
def test_formats_that_cannot_say_that_patches_overlap_are_refused(
    to: str,
    published: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = published / "owner" / "repo" / "self_forcing_dmd.pt"
    changes = [text for pair in (*SMALL, "dit.patch_stride=1") for text in ("--model-set", pair)]
    done = call(capsys, "convert", source, "-o", tmp_path / "out", "--model", NAME, "--to", to, *changes)
    assert done.code == 2
    assert f"--to {to}: expected a model whose patches do not overlap" in done.error()
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(
    published: Path,  # noqa: F811
    lora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = published / "owner" / "repo"
    changes = [text for pair in SMALL for text in ("--model-set", pair)]
    command = ["convert", folder, "-o", tmp_path / "out", "--model", NAME, *changes, "--json"]
    done = call(capsys, *command, "--lora", f"{lora}:0.25")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["loras"][0]["strength"] == 0.25
    vae = ["convert", folder / "Wan2.1_VAE.pth", "-o", tmp_path / "vae", "--to", "diffusers"]
    assert "has no network" in call(capsys, *vae, "--lora", lora).error()
    twice = call(capsys, *command[:2], "-o", tmp_path / "new", *command[4:], "--lora", lora, "--lora", lora)
    assert "given twice" in twice.error()
    assert "expected hf://owner/repo" in call(capsys, "convert", "hf://x", "-o", tmp_path / "y").error()
