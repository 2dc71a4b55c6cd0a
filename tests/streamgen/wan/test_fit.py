"""`--fit`: decoder, eight bits and window by the memory that there is: the mildest change that fits, one line
where none does.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamgen import Pipeline, load_pipeline
from streamgen.engine import quantize
from streamgen.errors import CheckpointError, InputError
from streamgen.stream.session import Session
from streamgen.wan import fit, load, weights
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config
from streamgen.wan.fit import Choices, fitted
from streamgen.wan.load import setup_of
from streamgen.wan.memory import GIB, Setup, memory_parts
from streamgen.wan.options import TextOptions, WanOptions
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-self-forcing"
ALL = Choices(True, True, True)
# eight-bit kernels take multiples of 16
WIDE = (*(x for x in SMALL if not x.startswith("dit.dim")), "dit.dim=32")


def full_setup(config: WanConfig) -> Setup:
    return Setup(config.plan, torch.bfloat16, torch.bfloat16, "vae", None)


def needs(config: WanConfig, decoder: str, bits: str, window: int) -> int:
    plan = replace(config.plan, window_frames=window)
    setup = replace(full_setup(config), plan=plan, decoder=decoder, quantize=bits)
    return sum(memory_parts(config, setup).values())


def test_the_mildest_change_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, from roomy to cramped."""
    config = read_wan_config(CONFIGS / f"{NAME}.yaml")
    ways = (
        ("vae", "none", 18), ("tiny", "none", 18), ("tiny", "int8", 18), ("tiny", "int8+cache", 18),
        ("tiny", "int8+cache", 9), ("tiny", "int8+cache", 3),
    )  # fmt: skip
    sizes = [needs(config, *way) for way in ways]
    assert sizes == sorted(sizes, reverse=True)

    def check() -> None:
        for way, size in zip(ways, sizes, strict=True):
            own, setup, told = fitted(config, full_setup(config), size, ALL)
            assert (setup.decoder, setup.quantize, setup.plan.window_frames) == way
            assert own.sampling.window_frames == way[2]
            assert sum(memory_parts(own, setup).values()) <= size
            assert (told is None) == (way == ways[0])
        with pytest.raises(CheckpointError, match=r"--fit: expected room .* window_frames 3 needs") as caught:
            fitted(config, full_setup(config), sizes[-1] - 1, ALL)
        assert "\n" not in str(caught.value)

    assert_needs(check, monkeypatch, fit, "smaller_windows", lambda plan: [3])


@pytest.mark.parametrize(
    ("choices", "way"),
    [
        (Choices(), ("vae", "none", 9)),
        (Choices(linears=True), ("vae", "int8", 9)),
        (Choices(cache=True), ("vae", "cache", 9)),
        (Choices(tiny=True), ("tiny", "none", 9)),
    ],
)
def test_what_cannot_be_changed_stays(choices: Choices, way: tuple[str, str, int]) -> None:
    """Without weights of TAEHV, a kernel, a runner that reads a cache in eight bits."""
    config = read_wan_config(CONFIGS / f"{NAME}.yaml")
    _, setup, told = fitted(config, full_setup(config), needs(config, *way), choices)
    assert (setup.decoder, setup.quantize, setup.plan.window_frames) == way
    changed = (
        {"vae": "", "tiny": "decoder tiny + "}[way[0]],
        {"none": ""}.get(way[1], f"quantize {way[1]} + "),
    )
    assert told is not None
    assert told.startswith(f"--fit: {''.join(changed)}window_frames 9: ")


def test_what_was_asked_for_is_not_changed() -> None:
    """Eight bits by name stay as they are, a decoder and a window too."""
    config = read_wan_config(CONFIGS / f"{NAME}.yaml")
    asked = replace(full_setup(config), quantize="fp8")
    _, setup, _ = fitted(config, asked, needs(config, "tiny", "fp8", 9), Choices(True))
    assert (setup.decoder, setup.quantize, setup.plan.window_frames) == ("tiny", "fp8", 9)


def latents(session: Session, chunks: int = 3) -> list[torch.Tensor]:
    return [next(session).latents for _ in range(chunks)]


def small(fit: float | None = None, **options: Any) -> Pipeline:
    known = WanOptions(random_weights=True, overrides=(*WIDE, "decoder=tiny"), check_memory=False, fit=fit)
    return load_pipeline(NAME, "cpu", wan=known, **options)


def room_for(pipeline: Pipeline, bits: str) -> float:
    """GiB that a small model with these bits needs, to the byte."""
    assert isinstance(pipeline.config, WanConfig)
    setup = setup_of(pipeline.config, pipeline.device, pipeline.dtype, TextOptions())
    return (sum(memory_parts(pipeline.config, replace(setup, quantize=bits)).values()) + 0.5) / GIB


@pytest.mark.parametrize("bits", ["int8", "int8+cache"])
def test_weights_are_in_eight_bits_alone(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is that of a model in full precision that is told so, and full weights are not there."""
    whole = small()

    def check() -> None:
        one = small(room_for(whole, bits))
        assert f"quantize {bits}:" in one.parts.notes[0]
        session = one.open("a boat", 1)
        assert session.runner.quantize == bits
        expected = latents(whole.open("a boat", 1, runner="plain", quantize=bits))
        assert all(map(torch.equal, latents(session), expected))
        assert quantize.quantization(one.dit) == "int8"
        held = sum(x.numel() * x.itemsize for x in one.dit.state_dict().values())
        assert isinstance(whole.config, WanConfig)
        setup = replace(full_setup(whole.config), dtype=torch.float32, quantize=bits)
        assert memory_parts(whole.config, setup)["network"] == held

    assert_needs(check, monkeypatch, weights, "is_rounded", lambda name: False)


def test_streams_of_other_bits_are_told(tmp_path: Path) -> None:
    """What is asked for and is not there is refused; what a saved stream had before is a note."""
    whole = small()
    one = small(room_for(whole, "int8"))
    with pytest.raises(InputError, match=r"quantize none: .* was loaded in int8 alone$"):
        one.open("a boat", quantize="none")
    before = whole.open("a boat", 1)
    latents(before, 1)
    before.save(tmp_path / "s")
    with pytest.warns(RuntimeWarning, match="was loaded in int8 alone; going on in int8"):
        resumed = one.resume(tmp_path / "s")
    assert resumed.runner.quantize == "int8"
    next(resumed)


def test_bits_that_are_known_at_load_are_all_that_is_kept() -> None:
    assert quantize.quantization(small(quantize="int8").dit) == "int8"
    both = small(quantize="int8", keep_full=True)
    assert quantize.quantization(both.dit) is None
    assert both.open("a boat").runner.quantize == "int8"
    assert both.open("a boat", quantize="none").runner.quantize is None
    narrow = WanOptions(random_weights=True, overrides=SMALL)
    with pytest.raises(InputError, match="quantize int8: expected a dim that is a multiple of 16, found 24"):
        load_pipeline(NAME, "cpu", wan=narrow, quantize="int8")


@pytest.mark.parametrize(
    ("options", "linears", "cache"),
    [
        ({}, True, True),
        ({"runner": "plain"}, True, True),
        ({"runner": "compile"}, True, False),
        ({"runner": "onnx"}, False, False),
        ({"quantize": "none"}, False, False),
        ({"quantize": "int8"}, False, False),
        ({"keep_full": True}, False, False),
    ],
)
def test_only_what_streams_can_have_is_chosen(
    options: dict[str, Any], linears: bool, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runners that compute passes of their own read no cache in eight bits, ONNX Runtime none at all."""
    found: list[Choices] = []

    def noted(config: WanConfig, setup: Setup, room: int, choices: Choices) -> Any:
        found.append(choices)
        return config, setup, None

    monkeypatch.setattr(load, "fitted", noted)
    small(100.0, **options)
    assert found == [Choices(True, linears, cache)]


def test_a_device_without_the_kernel_keeps_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("not implemented for this device")

    whole = small()
    room = room_for(whole, "int8")
    monkeypatch.setattr(torch, "_int_mm", none)
    fitting = small(room)
    assert quantize.quantization(fitting.dit) is None
    assert "int8" not in fitting.parts.notes[0]


@pytest.mark.parametrize("random_weights", [True, False])
def test_a_model_that_was_fitted_streams(random_weights: bool, tmp_path: Path) -> None:
    write_published(tmp_path)
    options = WanOptions(
        None if random_weights else tmp_path, random_weights, (*SMALL, "decoder=vae"), check_memory=False
    )
    whole = load_pipeline(NAME, "cpu", wan=options)
    assert isinstance(whole.config, WanConfig)
    plan = replace(whole.config.plan, window_frames=3)
    setup = Setup(plan, torch.float32, torch.float32, "tiny", None)
    room = sum(memory_parts(whole.config, setup).values())
    less = load_pipeline(NAME, "cpu", wan=replace(options, fit=(room + 1) / GIB))
    assert less.parts.notes[0].startswith("--fit: ")
    assert isinstance(less.config, WanConfig)
    assert (less.config.decoder, less.settings.window_frames) != ("vae", 18)
    session = less.open("a boat")
    for _ in range(5):
        next(session)
    with pytest.raises(CheckpointError, match="--fit: expected room"):
        load_pipeline(NAME, "cpu", wan=replace(options, fit=1e-6))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "a boat", "-o", tmp_path / "out.mp4", "--model", NAME, "--random-weights"]
    assert "--fit: expected room" in call(capsys, *command, "--fit", "0.001").error()
    assert "--fit" in call(capsys, *command, "--fit", "0").error()
