"""`--fit`: decoder and window by the memory that there is: the mildest change that fits, one line where none
does.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamgen import load_pipeline
from streamgen.errors import CheckpointError
from streamgen.wan import memory
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config
from streamgen.wan.memory import GIB, Setup, fitted, memory_parts
from streamgen.wan.options import WanOptions
from tests.command_line import call
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, write_published

NAME = "wan-1.3b-self-forcing"


def setup_of(config: WanConfig, decoder: str = "vae") -> Setup:
    return Setup(config.plan, torch.bfloat16, torch.bfloat16, decoder, None)


def needs(config: WanConfig, decoder: str, window: int) -> int:
    plan = replace(config.plan, window_frames=window)
    return sum(memory_parts(config, replace(setup_of(config, decoder), plan=plan)).values())


def test_the_mildest_change_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, from roomy to cramped."""
    config = read_wan_config(CONFIGS / f"{NAME}.yaml")
    sizes = [(d, w, needs(config, d, w)) for d, w in (("vae", 18), ("tiny", 18), ("tiny", 9), ("tiny", 3))]
    assert [size for *_, size in sizes] == sorted((size for *_, size in sizes), reverse=True)

    def check() -> None:
        for decoder, window, size in sizes:
            own, setup, told = fitted(config, setup_of(config), size, True)
            assert (setup.decoder, setup.plan.window_frames) == (decoder, window)
            assert own.sampling.window_frames == window
            assert sum(memory_parts(own, setup).values()) <= size
            assert (told is None) == (decoder == "vae")
        with pytest.raises(CheckpointError, match=r"--fit: expected room .* window_frames 3 needs") as caught:
            fitted(config, setup_of(config), sizes[-1][2] - 1, True)
        assert "\n" not in str(caught.value)

    assert_needs(check, monkeypatch, memory, "smaller_windows", lambda plan: [3])


def test_without_weights_of_taehv_the_decoder_stays() -> None:
    config = read_wan_config(CONFIGS / f"{NAME}.yaml")
    _, setup, told = fitted(config, setup_of(config), needs(config, "vae", 9), False)
    assert (setup.decoder, setup.plan.window_frames) == ("vae", 9)
    assert told is not None
    assert told.startswith("--fit: window_frames 9, ")


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
    small = load_pipeline(NAME, "cpu", wan=replace(options, fit=(room + 1) / GIB))
    assert small.parts.notes[0].startswith("--fit: ")
    assert isinstance(small.config, WanConfig)
    assert (small.config.decoder, small.settings.window_frames) != ("vae", 18)
    session = small.open("a boat")
    for _ in range(5):
        next(session)
    with pytest.raises(CheckpointError, match="--fit: expected room"):
        load_pipeline(NAME, "cpu", wan=replace(options, fit=1e-6))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "a boat", "-o", tmp_path / "out.mp4", "--model", NAME, "--random-weights"]
    assert "--fit: expected room" in call(capsys, *command, "--fit", "0.001").error()
    assert "--fit" in call(capsys, *command, "--fit", "0").error()
