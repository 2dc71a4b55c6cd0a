"""Linear layers in eight bits: the numbers they give, what is left alone, and streams beside each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamgen import Pipeline, StreamEvent, load_pipeline
from streamgen.check.agreement import eight_bits
from streamgen.engine import quantize
from streamgen.engine.program.compiled import TOLERANCE, ProgramRunner
from streamgen.engine.quantize import Quantization, QuantizedLinear, quantization, quantized, rounded
from streamgen.errors import InputError
from streamgen.render.job import RenderJob
from streamgen.render.records import job_key
from streamgen.render.shots import Shot
from streamgen.stream.snapshot import read_meta
from tests.command_line import call
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs, tiny_dit

KINDS: tuple[Quantization, ...] = ("int8", "fp8")
WORDS, OTHERS = "a small red circle moves right over the sea", "a large blue star stays over sand"
# relative RMS errors of a velocity of `tiny`; measured 2.3 % and 5.1 % (docs/decisions/speed.md)
MOST = {"int8": 0.035, "fp8": 0.06}


@pytest.fixture(scope="module")
def parts() -> Any:
    return load_pipeline("tiny", "cpu").parts


@pytest.fixture
def pipeline(parts: Any) -> Pipeline:
    return Pipeline(parts, "plain")


def linear(rows: int, seed: int = 0) -> tuple[nn.Linear, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(48, 32).requires_grad_(False)
    layer.weight.copy_(torch.randn(32, 48, generator=draw))
    layer.bias.copy_(torch.randn(32, generator=draw))
    return layer, torch.randn(2, rows, 48, generator=draw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 20])
def test_a_layer_is_the_product_of_what_was_rounded(kind: Quantization, rows: int) -> None:
    """Few rows, which kernels of GPUs do not take, are filled up."""
    layer, x = linear(rows)
    small = QuantizedLinear(layer, kind)
    values, scale = rounded(x.flatten(0, 1), kind)
    weights, channels = rounded(layer.weight, kind)
    exact = (values.double() * scale) @ (weights.double() * channels).t() + layer.bias
    found = small(x)
    assert found.shape == (2, rows, 32)
    assert torch.allclose(found.flatten(0, 1).double(), exact, rtol=0, atol=1e-4 * float(exact.std()))
    assert small.bias is layer.bias
    assert small.weight.element_size() == 1
    zeros = small(torch.zeros_like(x))
    assert torch.equal(zeros, layer.bias.expand_as(zeros))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unusual_token_costs_the_others_nothing(
    kind: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = linear(20)
    layer.bias.zero_()
    loud = x.clone()
    loud[0, 3] *= 1e5

    def check() -> None:
        small = QuantizedLinear(layer, kind)
        others = torch.ones(2, 20, dtype=torch.bool)
        others[0, 3] = False
        assert torch.equal(small(loud)[others], small(x)[others])
        error = (small(loud) - layer(loud))[others].pow(2).mean().sqrt() / layer(x)[others].std()
        assert error < 0.06

    def one_scale(x: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
        largest = x.abs().max().expand(len(x), 1).contiguous() / quantize._LARGEST[kind]
        small = x / largest
        return (small.round() if kind == "int8" else small).to(quantize._STORED[kind]), largest

    assert_needs(check, monkeypatch, quantize, "rounded", one_scale)


def test_only_the_blocks_layers_are_in_eight_bits() -> None:
    dit = tiny_dit(dim=32, heads=2, ffn_dim=48)
    made = quantized(dit, "int8")
    names = {n.split(".", 2)[2] for n, m in made.named_modules() if isinstance(m, QuantizedLinear)}
    words = {f"cross_attn.{name}" for name in ("q", "o")}
    assert names == {f"self_attn.{name}" for name in "qkvo"} | words | {"ffn.0", "ffn.2"}
    assert (quantization(made), quantization(dit)) == ("int8", None)
    shared = dict(dit.named_parameters())
    assert all(x is shared[name] for name, x in made.named_parameters())


@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_what_it_costs(kind: Quantization, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of velocities on a real stream's cache; docs/decisions/speed.md has more of them."""

    def check() -> None:
        found = eight_bits(pipeline, kind, 2)
        assert found["n"] == 8
        assert 0.001 < found["error_mean"] < MOST[kind]

    def coarse(x: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
        values, scale = rounded(x, kind)
        return (values.float() / 16).round().mul(16).to(values.dtype), scale

    assert_needs(check, monkeypatch, quantize, "rounded", coarse)


def latents(session: Any, chunks: int) -> list[Tensor]:
    made = []
    for chunk in range(chunks):
        if chunk == 1:
            session.submit(StreamEvent(prompt=OTHERS))
        made.append(next(session).latents)
    return made


def test_streams_beside_each_other(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns with one in eight bits a stream is what it is alone, and the other way round."""
    alone = latents(Pipeline(parts, "plain").open(WORDS, 1, decode=False), 2)

    def check() -> None:
        own = load_pipeline("tiny", "cpu", runner="plain")
        small, plain = own.open(WORDS, 1, quantize="int8", decode=False), own.open(WORDS, 1, decode=False)
        assert (small.runner.quantize, plain.runner.quantize) == ("int8", None)
        made = ([], [])
        for chunk in range(2):
            for session, kept in zip((small, plain), made, strict=True):
                if chunk == 1:
                    session.submit(StreamEvent(prompt=OTHERS))
                kept.append(next(session).latents)
        assert all(torch.equal(a, b) for a, b in zip(made[1], alone, strict=True))
        again = latents(own.open(WORDS, 1, quantize="int8", decode=False), 2)
        assert all(torch.equal(a, b) for a, b in zip(made[0], again, strict=True))
        assert not torch.equal(made[0][0], alone[0])

    assert_needs(check, monkeypatch, quantize, "twin", lambda dit: dit)


def test_the_program_of_eight_bits(pipeline: Pipeline) -> None:
    """What a compiler is given computes as the plain runner does."""
    made = quantized(pipeline.dit, "int8")
    runner = ProgramRunner(made, None, lambda function: function)
    assert runner.quantize == "int8"
    expected = latents(pipeline.open(WORDS, 1, quantize="int8", decode=False), 1)
    found = latents(pipeline.open(WORDS, 1, runner=runner, decode=False), 1)
    # one that rounds the other way somewhere is a step of eight bits off
    assert (found[0] - expected[0]).abs().max() / expected[0].std() < 100 * TOLERANCE


def test_records_and_saved_streams_name_it(
    pipeline: Pipeline, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pipeline.open(WORDS, 1, quantize="int8")
    next(session)
    session.save(tmp_path / "s")
    assert read_meta(tmp_path / "s")["quantize"] == "int8"
    expected = next(session).frames
    resumed = pipeline.resume(tmp_path / "s")
    assert resumed.runner.quantize == "int8"
    assert torch.equal(next(resumed).frames, expected)
    assert pipeline.resume(tmp_path / "s", quantize="none").runner.quantize is None
    plain = pipeline.open(WORDS, 1, decode=False)
    plain.save(tmp_path / "plain")
    monkeypatch.setenv("STREAMGEN_QUANTIZE", "int8")
    assert pipeline.open(WORDS, decode=False).runner.quantize == "int8"
    assert pipeline.open(WORDS, quantize="none", decode=False).runner.quantize is None
    assert pipeline.resume(tmp_path / "plain").runner.quantize is None
    monkeypatch.delenv("STREAMGEN_QUANTIZE")
    job = RenderJob(None, 1.0, 0, None, None, (Shot(0.0, WORDS),))
    keys = [job_key(Pipeline(parts, "plain", kind), job) for kind in (None, "none", "int8", "fp8")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_what_cannot_be_is_told_in_one_line(
    tmp_path: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = load_pipeline(write_checkpoint(tmp_path / "narrow"), runner="plain")
    with pytest.raises(InputError, match="quantize int8: expected a dim that is a multiple of 16, found 24"):
        narrow.open(WORDS, quantize="int8")
    with pytest.raises(InputError, match=r"unknown quantisation 'int9' .did you mean 'int8'"):
        pipeline.open(WORDS, quantize="int9")
    with pytest.raises(InputError, match="runner onnx: computes in float32, int8 was asked for"):
        pipeline.open(WORDS, runner="onnx", quantize="int8")
    refused = call(
        capsys, "render", "a circle", "-o", tmp_path / "a.mp4", "--quantize", "fp9", "--seconds", 1
    )
    assert "unknown quantisation 'fp9'" in refused.error()

    def none(*arguments: Any, **more: Any) -> Tensor:
        raise NotImplementedError("Could not run 'aten::_scaled_mm'\nwith arguments from the CPU backend")

    session = pipeline.open(WORDS, quantize="fp8", decode=False)
    session.save(tmp_path / "s")
    monkeypatch.setattr(torch, "_scaled_mm", none)
    elsewhere = Pipeline(pipeline.parts, "plain")
    with pytest.raises(InputError, match=r"quantize fp8: torch \S+ has no kernel for it on cpu \(Could"):
        elsewhere.open(WORDS, quantize="fp8")
    with pytest.warns(RuntimeWarning, match="quantize fp8: torch .* going on in full precision"):
        assert elsewhere.resume(tmp_path / "s").runner.quantize is None
