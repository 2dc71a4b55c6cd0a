"""The memory estimate of the Wan family: its parts are what is allocated, and what does not fit is refused
before anything is.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import streamgen.machine
import streamgen.wan.load
import streamgen.wan.memory
from models.causal_dit import CausalDiT
from models.context import ChunkPlan
from models.live_lora import AdaptedLinear, LiveLoras
from streamgen import Pipeline, load_pipeline
from streamgen.engine.adapters.live_lora import LiveLoraRunner
from streamgen.errors import CheckpointError
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config
from streamgen.wan.load import setup_of
from streamgen.wan.loras import LoraFile
from streamgen.wan.memory import (
    GIB,
    UMT5_XXL_PARAMETERS,
    Setup,
    alternatives,
    check_memory,
    memory_parts,
    stream_parts,
)
from streamgen.wan.options import TextOptions, WanOptions
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL, lora_tensors, small_config

FULL = read_wan_config(CONFIGS / "wan-1.3b-longlive.yaml")


def setup(**changes: object) -> Setup:
    plain = Setup(FULL.plan, torch.bfloat16, torch.bfloat16, "vae", None)
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
    assert session.state.decoder is not None
    state = session.state.decoder.tokenizer.tensors()
    assert parts["decoder state"] == sum(4 * x.numel() for name, x in state.items() if name != "frames")
    assert parts["prompts"] == 2 * session.controls.text.context.size_bytes()
    twin = session.fork()
    assert twin.state.latents.ring.allocated_bytes() == parts["cache"]


def test_a_cache_in_eight_bits_is_counted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is allocated, and an opening that needs more than is free is refused."""
    pipeline = small_pipeline()
    assert isinstance(pipeline.config, WanConfig)
    setup = replace(small_setup(pipeline.plan), quantize="cache")
    parts = stream_parts(pipeline.config, setup)
    assert parts["cache"] < stream_parts(pipeline.config, small_setup(pipeline.plan))["cache"]
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", Free(sum(parts.values())))
    session = pipeline.open("a boat", runner="plain", quantize="cache")
    assert session.state.latents.ring.allocated_bytes() == parts["cache"]
    for bits, left in (("none", sum(parts.values())), ("cache", sum(parts.values()) - 1)):
        monkeypatch.setattr(streamgen.wan.memory, "free_bytes", Free(left))
        with pytest.raises(CheckpointError, match="memory: a stream of 48x32 needs"):
            pipeline.open("a boat", runner="plain", quantize=bits)


def test_live_loras_are_counted_and_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, sessions beside them and the texts read the same factors."""
    save_file(lora_tensors(CausalDiT(small_config().dit), 3), tmp_path / "style.safetensors")
    given = (LoraFile(str(tmp_path / "style.safetensors")),)
    options = WanOptions(random_weights=True, overrides=SMALL, live_loras=given)
    seen: list[dict[str, int]] = []
    noted = lambda *about: seen.append(check_memory(*about)) or seen[0]  # type: ignore[func-returns-value]  # noqa: E731
    monkeypatch.setattr(streamgen.wan.load, "check_memory", noted)

    def check() -> None:
        pipeline = load_pipeline("wan-1.3b-longlive", "cpu", wan=options)
        session = pipeline.open("a boat")
        assert isinstance(session.runner, LiveLoraRunner)
        assert pipeline._live is not None
        held: dict[int, int] = {}
        other = pipeline.open("a boat").runner
        assert isinstance(other, LiveLoraRunner)
        for network in (session.runner.dit, pipeline._live[0], other.dit):
            for module in network.modules():
                if isinstance(module, AdaptedLinear):
                    held |= {x.data_ptr(): x.nbytes for x in (module.down, module.up)}
        assert sum(held.values()) == seen[-1]["live LoRAs"]

    copied = lambda self, device, dtype: LiveLoras(self.names, self.defaults, self.loras)._made(device, dtype)  # noqa: E731
    assert_needs(check, monkeypatch, LiveLoras, "factors", copied)


@pytest.mark.slow
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


class Free:
    """Stands in for `free_bytes`: what is left of some bytes; notes how often it was asked."""

    def __init__(self, left: int) -> None:
        self.left, self.asked = left, 0

    def __call__(self, device: torch.device) -> int:
        self.asked += 1
        return self.left


def small_pipeline(*more: str) -> Pipeline:
    options = WanOptions(random_weights=True, overrides=(*SMALL, *more))
    return load_pipeline("wan-1.3b-longlive", "cpu", wan=options)


def small_setup(plan: ChunkPlan) -> Setup:
    return Setup(plan, torch.float32, torch.float32, "vae", None)


WIDE = {"window_frames": 300}


def test_weights_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading that fits, then an opening, a fork and a resume that fit what the weights have left."""
    big = ("dit.dim=384", "dit.heads=4", "dit.ffn_dim=2048", "dit.layers=4")
    config = small_config("wan-1.3b-longlive", *big)
    plan = replace(config.plan, window_frames=WIDE["window_frames"])
    whole, stream = memory_parts(config, small_setup(config.plan)), stream_parts(config, small_setup(plan))
    weights = whole["network"] + whole["decoder"]
    assert weights > sum(stream.values()) / 10
    free = Free(weights + sum(stream.values()))
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", free)
    pipeline = small_pipeline(*big)
    free.left -= weights
    pipeline.open("a boat", settings=WIDE)
    free.left -= 1
    with pytest.raises(CheckpointError, match=r"memory: a stream of 48x32 needs .* would fit: window_frames"):
        pipeline.open("a boat", settings=WIDE)


def test_every_opening_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default window, a fork, a restore from a file: each takes a cache of its own."""
    pipeline = small_pipeline()
    session = pipeline.open("a boat")
    next(session)
    session.save(tmp_path / "state")
    needed = sum(stream_parts(pipeline.config, small_setup(pipeline.plan)).values())  # type: ignore[arg-type]
    doors = (
        lambda: pipeline.open("a boat"),
        session.fork,
        lambda: pipeline.resume(tmp_path / "state"),
        lambda: pipeline.replay(session.timeline),
    )

    def check() -> None:
        for left, fits in ((needed, True), (needed - 1, False)):
            free = Free(left)
            monkeypatch.setattr(streamgen.wan.memory, "free_bytes", free)
            for door in doors:
                refused = None
                try:
                    door()
                except CheckpointError as error:
                    refused = str(error)
                assert (refused is None) == fits, refused
                assert "\n" not in str(refused)

    parts = replace(pipeline.parts, check_memory=None)
    assert_needs(check, monkeypatch, pipeline, "parts", parts)


def test_a_refused_opening_costs_the_stream_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = small_pipeline()
    session, other = pipeline.open("a boat"), pipeline.open("a boat")
    first = next(session).frames
    with monkeypatch.context() as patched:
        patched.setattr(streamgen.wan.memory, "free_bytes", Free(1000))
        with pytest.raises(CheckpointError, match="nothing smaller at this picture size fits"):
            session.fork()
        second = next(session).frames
    assert torch.equal(torch.cat([first, second]), torch.cat([next(other).frames for _ in range(2)]))


def test_the_check_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamgen.wan.memory, "free_bytes", Free(1000))
    options = WanOptions(random_weights=True, overrides=SMALL, check_memory=False)
    load_pipeline("wan-1.3b-longlive", "cpu", wan=options).open("a boat")


def test_the_sink_is_rotated_one_layer_at_a_time() -> None:
    """What a step takes does not grow with the layers, but grows with the sink where that is most of it."""
    plan = replace(FULL.plan, sink_frames=300, window_frames=0)
    deep = replace(FULL, dit=replace(FULL.dit, layers=60))
    step, twice = (stream_parts(each, setup(plan=plan, decoder="none"))["step"] for each in (FULL, deep))
    assert step == twice
    one_layer = 1560 * 300 * 1536 * 2
    assert 6 * one_layer < step < 60 * one_layer


def test_free_memory_counts_what_can_be_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group of processes, files that were read; on a GPU, blocks that torch keeps."""
    monkeypatch.setattr(streamgen.machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("900000")
    assert streamgen.machine.free_bytes(torch.device("cpu")) == 100_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 7\n")
    assert streamgen.machine.free_bytes(torch.device("cpu")) == 400_000
    (tmp_path / "memory.max").write_text("max")
    assert (streamgen.machine.free_bytes(torch.device("cpu")) or 0) > 1_000_000
    for name, value in (("mem_get_info", (100, 1000)), ("memory_reserved", 60), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert streamgen.machine.free_bytes(torch.device("cuda")) == 140
