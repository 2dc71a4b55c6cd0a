"""The core makes the latents that it made before it was rebuilt.

`tests/fixtures/b036424/latents.safetensors` holds what b036424 made of the same random weights in double
precision, as float32 numbers: streams of both families, both recache modes and position modes, with switches
of every policy, tracks, clip starts. The difference is the rounding of those numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.context import ChunkPlan
from models.kv_cache import CacheView
from streamgen import Pipeline, StreamEvent, load_pipeline
from streamgen.motion.tracks import drag, pins
from streamgen.wan.options import WanOptions
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs
from tests.tiny_wan import SMALL

EXPECTED = Path(__file__).resolve().parents[1] / "fixtures" / "b036424" / "latents.safetensors"
PLANS = {"single": ChunkPlan(1, 1, 1, 3), "chunky": ChunkPlan(2, 1, 3, 4)}
TINY = [
    f"tiny.{plan}.{rope}.{mode}"
    for plan in PLANS
    for rope in ("relative", "absolute")
    for mode in ("chunks", "joint")
]
CLIPS = [f"tiny.{plan}.clip" for plan in PLANS]
WAN = [
    f"{name}.{decoder}.{rope}.{mode}"
    for name in ("wan-1.3b-longlive", "wan-1.3b-self-forcing")
    for decoder, rope in (("vae", "relative"), ("vae", "absolute"), ("tiny", "relative"))
    for mode in ("chunks", "joint")
]


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(EXPECTED)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    made = {
        name: load_pipeline(write_checkpoint(tmp_path_factory.mktemp(name), plan), dtype=torch.float64)
        for name, plan in PLANS.items()
    }
    return lambda name: made[name]


def latents(pipeline: Pipeline, settings: dict[str, Any], chunks: int, tracks: bool, clip: bool) -> Tensor:
    """The stream that the fixture has: what happens at which chunk."""
    start = {}
    if clip:
        geometry, draw = pipeline.geometry, torch.Generator().manual_seed(5)
        shape = (geometry.frames(pipeline.plan.first_chunk_frames), geometry.height, geometry.width, 3)
        start["video"] = torch.randint(0, 255, shape, dtype=torch.uint8, generator=draw)
    motion = drag((0.2, 0.2), (0.8, 0.8), 30) if tracks else None
    decode = pipeline.name.startswith("wan") is False
    session = pipeline.open(RED, seed=3, settings=settings, motion=motion, decode=decode, **start)
    events = {
        4: StreamEvent(prompt=BLUE, motion=pins([(0.3, 0.6)], 20) if tracks else None),
        7: StreamEvent(prompt=RED, policy="keep", settings={"text_guidance": 2.0}),
        9: StreamEvent(prompt=BLUE, sink="keep"),
        11: StreamEvent(prompt="a red star", policy="clear"),
    }
    out = []
    for chunk in range(chunks):
        if chunk in events:
            session.submit(events[chunk])
        out.append(next(session).latents)
    return torch.cat(out, 1)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.std()) < 1e-6


@pytest.mark.parametrize("name", [*TINY, *CLIPS])
def test_the_tiny_family(name: str, tiny: Callable[[str], Pipeline], expected: dict[str, Tensor]) -> None:
    _, plan, *rest = name.split(".")
    settings: dict[str, Any] = {}
    if len(rest) == 2:
        settings = {"rope": rest[0], "recache_mode": rest[1], "context_noise": 0.1}
        if rest[1] == "joint" and plan == "chunky":
            # refreshing the sink of such a plan is refused now; within the span both are the same
            settings["sink_policy"] = "keep"
    assert_equal(latents(tiny(plan), settings, 14, True, len(rest) == 1), expected[name])


@pytest.mark.parametrize("name", WAN)
def test_the_wan_family(name: str, expected: dict[str, Tensor]) -> None:
    model, decoder, rope, mode = name.replace("1.3b", "1_3b").split(".")
    options = WanOptions(random_weights=True, overrides=(*SMALL, f"decoder={decoder}"))
    pipeline = load_pipeline(model.replace("1_3b", "1.3b"), "cpu", torch.float64, options)
    settings = {"rope": rope, "recache_mode": mode}
    assert_equal(latents(pipeline, settings, 9 if decoder == "vae" else 13, False, False), expected[name])


def test_the_comparison_sees_a_wrong_cache(
    tiny: Callable[[str], Pipeline], expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tiny.single.relative.chunks"
    settings = {"rope": "relative", "recache_mode": "chunks", "context_noise": 0.1}

    def check() -> None:
        assert_equal(latents(tiny("single"), settings, 14, True, False), expected[name])

    assert_needs(check, monkeypatch, CacheView, "rotate_sink", lambda self, layer: None)
