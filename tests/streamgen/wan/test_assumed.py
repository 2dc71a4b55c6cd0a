"""What no tensor tells (heads, length of prompts) is said where it is assumed; what they tell is checked."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_dit import CausalDiT, CausalDiTConfig
from streamgen.families import inspect_checkpoint
from streamgen.wan.config import CONFIGS
from streamgen.wan.convert import convert_weights
from streamgen.wan.sizes import assumed
from tests.command_line import call
from tests.tiny_models import randomize
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-longlive"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    write_published(directory)
    return directory


def test_a_file_alone_says_what_is_assumed(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspect_checkpoint(weights / "models" / "longlive_base.pt")
    assert report["assumed"] == {
        "heads": "unknown: published ones are 128 wide, and 24 is no multiple of that",
        "text_length": "512 (from published Wan models)",
    }
    wide = CausalDiTConfig(dim=256, layers=1, heads=2, ffn_dim=32, text_dim=16, freq_dim=16)
    torch.save(randomize(CausalDiT(wide)).state_dict(), tmp_path / "wide.pt")
    shown = call(capsys, "inspect", tmp_path / "wide.pt").stdout
    assert "heads 2 of width 128 (from published Wan models)" in shown
    assert "text_length 512 (from published Wan models)" in shown


def test_a_config_says_what_it_says(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = inspect_checkpoint(CONFIGS / f"{NAME}.yaml")["assumed"]
    assert full == {"heads": "12 of width 128 (from its config)", "text_length": "512 (from its config)"}
    small = [x for pair in SMALL for x in ("--model-set", pair)]
    done = call(capsys, "convert", weights, "-o", tmp_path / "ours", "--model", NAME, *small)
    expected = {
        "heads": "2 of width 12 (from its config)",
        "text_length": "6 (from its config)",
        "note": "published Wan models have heads of width 128, this config has 12",
    }
    for text in expected.values():
        assert text in done.stdout
    assert json.loads((tmp_path / "ours" / "card.json").read_text())["assumed"] == expected
    assert inspect_checkpoint(tmp_path / "ours")["assumed"] == expected
    card = convert_weights(weights / "self_forcing_dmd.pt", tmp_path / "one", "wan")
    assert card["assumed"]["heads"].startswith("unknown: ")
    assert "assumed" not in convert_weights(weights / "Wan2.1_VAE.pth", tmp_path / "vae", "wan")
    assert "note" not in assumed(CausalDiTConfig(dim=256, layers=1, heads=2, ffn_dim=32), 512)


def test_the_text_width_is_what_the_first_linear_has(weights: Path, tmp_path: Path) -> None:
    convert_weights(weights, tmp_path / "ours", "streamgen", NAME, SMALL)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    name = "dit.text_embedding.0.weight"
    save_file(tensors | {name: torch.zeros(24, 8)}, tmp_path / "ours" / "model.safetensors")
    report = inspect_checkpoint(tmp_path / "ours")
    assert report["problems"] == ["dit: 1 tensors of another shape: text_embedding.0.weight"]
    assert report["dit"]["shapes"]["text_embedding.0.weight"] == {"expected": [24, 16], "found": [24, 8]}
