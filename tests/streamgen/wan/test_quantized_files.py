"""Converted weights in eight bits: they load, and stream as eight bits of the original do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.state_dict import Tensors
from streamgen import load_pipeline
from streamgen.engine import quantize
from streamgen.families import inspect_checkpoint
from streamgen.wan import weights
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-self-forcing"
# eight-bit kernels of GPUs take multiples of 16
WIDE = (*(x for x in SMALL if not x.startswith("dit.dim")), "dit.dim=32")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.tiny_wan.SMALL", WIDE)
        write_published(directory)
    return directory


def latents(pipeline: Any, **options: Any) -> list[Tensor]:
    session = pipeline.open("a red boat", 1, settings={"steps": 1}, decode=False, **options)
    return [next(session).latents for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_files_in_eight_bits(
    kind: str,
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = [x for pair in WIDE for x in ("--model-set", pair)]
    command = ["convert", published, "--model", NAME, *small]
    for more in ([], ["--quantize", kind]):
        assert call(capsys, *command, "-o", tmp_path / f"out{len(more)}", *more).code == 0
    plain, ours = tmp_path / "out0", tmp_path / "out2"
    tensors, whole = (load_file(folder / "model.safetensors") for folder in (ours, plain))
    small_ones = {name for name, x in tensors.items() if x.element_size() == 1}
    # 8 layers in each of the two blocks, and a scale for each
    assert len(small_ones) == 16
    assert {name + "_scale" for name in small_ones} == set(tensors) - set(whole)
    assert inspect_checkpoint(ours)["problems"] == []
    options = WanOptions(published, overrides=WIDE)
    expected = latents(load_pipeline(NAME, "cpu", wan=options, runner="plain"), quantize=kind)

    def check() -> None:
        pipeline = load_pipeline(ours, "cpu", runner="plain")
        assert pipeline.choose().runner.quantize == kind
        # rounded once more, they are the same numbers but for the last place of a scale
        for found, told in zip(latents(pipeline), expected, strict=True):
            assert float((found - told).abs().max() / told.std()) < 0.02
        assert load_pipeline(ours, "cpu", quantize="none").choose().runner.quantize is None
        both = load_pipeline(ours, "cpu", runner="plain", keep_full=True)
        assert (both.choose().runner.quantize, both.choose(quantize="none").runner.quantize) == (kind, None)

    def unscaled(tensors: Tensors) -> Tensors:
        return {n: x.float() for n, x in tensors.items() if not n.endswith(quantize._SCALE)}

    assert_needs(check, monkeypatch, weights, "restored", unscaled)
    refused = call(capsys, *command, "-o", tmp_path / "c", "--quantize", kind, "--to", "wan").error()
    assert f"--quantize {kind}: not with --to wan" in refused


def test_a_machine_without_the_kernel_goes_on(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in eight bits are no wish to compute in them at any price."""
    small = [x for pair in WIDE for x in ("--model-set", pair)]
    command = ["convert", published, "--model", NAME, *small, "-o", tmp_path / "a"]
    done = call(capsys, *command, "--quantize", "int8")
    assert done.code == 0

    def none(*arguments: Any) -> Tensor:
        raise RuntimeError("not implemented for this device")

    monkeypatch.setattr(torch, "_int_mm", none)
    chosen = load_pipeline(tmp_path / "a", "cpu", runner="plain").choose()
    assert chosen.runner.quantize is None
    assert "going on in full precision" in str(chosen.note)
