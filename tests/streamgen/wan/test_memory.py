"""The memory estimate of the Wan family: its parts are what is allocated, and what does not fit is refused
before anything is.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import streamgen.wan.load
import streamgen.wan.memory
from streamgen import load_pipeline
from streamgen.errors import CheckpointError
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config
from streamgen.wan.load import setup_of
from streamgen.wan.memory import GIB, UMT5_XXL_PARAMETERS, Setup, alternatives, check_memory, memory_parts
from streamgen.wan.options import TextOptions, WanOptions
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL

FULL = read_wan_config(CONFIGS / "wan-1.3b-longlive.yaml")


def setup(**changes: object) -> Setup:
    plain = Setup(FULL.plan, torch.bfloat16, torch.bfloat16, "vae", False, None)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_full_size_parts_are_the_published_figures() -> None:
    """1.419 G parameters, 288 MB of cache per latent frame, 944 M numbers of decoder state at 480x832."""
    parts = memory_parts(FULL, setup())
    assert parts["network"] == 2 * 1_418_996_800
    # 12 latent frames, and the sink's keys a second time, unrotated
    assert parts["cache"] == pytest.approx((12 + 1.5) * 287.5e6, rel=0.01)
    assert parts["decoder state"] == pytest.approx(1.76 * GIB, rel=0.01)
    with_text = memory_parts(FULL, setup(text_dtype=torch.bfloat16))
    assert with_text["text encoder"] == 2 * UMT5_XXL_PARAMETERS


@pytest.mark.parametrize("decoder", ["vae", "tiny"])
def test_parts_are_what_a_stream_allocates(decoder: str) -> None:
    options = WanOptions(random_weights=True, overrides=(*SMALL, f"decoder={decoder}"))
    pipeline = load_pipeline("wan-1.3b-longlive", "cpu", wan=options)
    assert isinstance(pipeline.config, WanConfig)
    setup = setup_of(pipeline.config, pipeline.device, pipeline.dtype, TextOptions())
    parts = memory_parts(pipeline.config, setup)
    session = pipeline.open("a boat")
    next(session)
    next(session)
    assert parts["cache"] == session.state.latents.ring.allocated_bytes()
    assert parts["network"] == 4 * sum(x.numel() for x in pipeline.dit.parameters())
    state = session.decoder_state.tokenizer.tensors()
    assert parts["decoder state"] == sum(4 * x.numel() for name, x in state.items() if name != "frames")
    assert parts["prompts"] == 2 * session.controls.text.size_bytes()


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    full = setup(dtype=torch.float32, codec_dtype=torch.float32, text_dtype=torch.bfloat16)
    ways = alternatives(FULL, full)
    sizes = [sum(memory_parts(FULL, full).values()), *(needed for _, needed in ways)]
    assert sizes == sorted(sizes, reverse=True)
    added = [way.split(" + ")[-1] for way, _ in ways]
    text = "text encoder on another device or from the prompt cache"
    assert added == [text, "dtype bfloat16", "decoder tiny", "window_frames 3"]
    cpu = torch.device("cpu")
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", lambda device: sizes[2])
    with pytest.raises(CheckpointError, match=r"832x480 needs [\d.]+ GiB on cpu .*would fit: text") as caught:
        check_memory(FULL, full, cpu)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", lambda device: 1000)
    with pytest.raises(CheckpointError, match="nothing smaller at this picture size fits"):
        check_memory(FULL, full, cpu)
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", lambda device: None)
    assert check_memory(FULL, full, cpu)["network"] > 0


def test_refused_before_anything_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full size on a machine with 2 GiB: one line, though there are no weights to read either."""
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", lambda device: 2 * GIB)

    def check() -> None:
        with pytest.raises(CheckpointError) as caught:
            load_pipeline("wan-1.3b-longlive", "cpu", wan=WanOptions(weights=tmp_path))
        assert re.search("memory: 832x480 needs", str(caught.value))

    assert_needs(check, monkeypatch, streamgen.wan.load, "check_memory", lambda *_: {})


def test_a_larger_window_is_checked_when_a_stream_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_pipeline("wan-1.3b-longlive", "cpu", wan=WanOptions(random_weights=True, overrides=SMALL))
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", lambda device: 1000)
    pipeline.open("a boat")
    with pytest.raises(CheckpointError, match="memory: 48x32 needs"):
        pipeline.open("a boat", settings={"window_frames": 30})
