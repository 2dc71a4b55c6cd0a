"""The cache in eight bits: what it costs, what it spares, and that streams keep it through whatever comes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import models.cache_store
from models.cache_store import EightBitStore
from models.context import ChunkPlan
from models.kv_cache import RingStorage
from streamgen import InputError, Pipeline, Session, StreamEvent, load_pipeline
from streamgen.engine.quantize import keeps_cache, of_linears
from streamgen.motion.tracks import drag
from streamgen.stream.snapshot import read_meta
from tests.streams import BLUE, RED, changed_latents
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

PLANS = (ChunkPlan(1, 1, 1, 3), ChunkPlan(3, 3, 3, 6))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    torch.set_num_threads(1)
    return [
        load_pipeline(write_checkpoint(tmp_path_factory.mktemp(f"plan{i}"), plan, steps=2), runner="plain")
        for i, plan in enumerate(PLANS)
    ]


def steered(session: Session, chunks: int = 10) -> list[Tensor]:
    """Latents of a stream with a drag, a switch, a scene of its own, and evictions."""
    changes: dict[int, StreamEvent] = {
        2: StreamEvent(motion=drag((0.2, 0.3), (0.8, 0.7), 40)),
        4: StreamEvent(prompt=BLUE),
        7: StreamEvent(prompt=RED, cache="clear"),
    }
    return changed_latents(session, changes, chunks)


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative RMS difference of a chunk."""
    return max(float((a - b).pow(2).mean().sqrt() / b.std()) for a, b in zip(found, expected, strict=True))


def test_a_store_rounds_each_head_of_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 1, 6, 3, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0, 2, 1] *= 1000
    x[1, 0, 3] = 0

    def check() -> None:
        store = EightBitStore.zeros((2, 1, 8, 3, 16), CPU, torch.float32)
        store[:, :, 1:7] = x
        found = store[:, :, 1:7]
        scale = x.abs().amax(-1, keepdim=True) / 127
        assert bool(((found - x).abs() <= scale * 0.501).all())
        assert torch.equal(store[1, :, 4], torch.zeros(1, 3, 16))
        # parts that were not assigned are what they were
        assert not store[:, :, :1].any()
        assert not store[:, :, 7:].any()
        store[:, :, 2:] = 0
        assert not store[:, :, 2:].any()
        assert store.nbytes == 2 * 8 * 3 * (16 + 4)

    def one_scale(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax().expand(*x.shape[:-1], 1) / 127
        return (x / scale.clamp(min=1e-12)).round().to(torch.int8), scale

    assert_needs(check, monkeypatch, models.cache_store, "rounded", one_scale)


@pytest.mark.parametrize("plan", range(len(PLANS)))
@pytest.mark.parametrize("mode", ["chunks", "joint"])
def test_streams_are_nearly_those_of_full_precision(
    plan: int, mode: str, pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over evictions, turned sinks, recaches and scenes; and the cache is a third of what it was."""
    pipeline, settings = pipelines[plan], {"recache_mode": mode, "sink_policy": "keep"}
    expected = steered(pipeline.open(RED, settings=settings, decode=False))
    small = pipeline.open(RED, settings=settings, quantize="cache", decode=False)
    whole = pipeline.open(RED, settings=settings, decode=False)
    rings = [session.state.latents.ring for session in (small, whole)]
    assert isinstance(rings[0].keys, EightBitStore)
    kept = [ring.allocated_bytes() - ring.sink_keys.nbytes for ring in rings]
    # 12 numbers of a head as bytes and a scale of 4, against 48
    assert kept[0] * 3 == kept[1]
    # random networks with attention far from uniform, ten chunks that build on each other
    assert 0 < relative(steered(small), expected) < 0.1


def test_streams_beside_each_other_leave_each_other_alone(pipelines: list[Pipeline]) -> None:
    pipeline = pipelines[0]
    kinds = (None, "cache", "int8")
    opened = lambda kind: pipeline.open(RED, quantize=kind, decode=False)  # noqa: E731
    pipeline = Pipeline(pipeline.parts, "plain")
    alone = {}
    for kind in kinds[:2]:
        alone[kind] = steered(opened(kind))
    pair = [opened(kind) for kind in kinds[:2]]
    assert [session.runner.quantize for session in pair] == [None, "cache"]
    made: list[list[Tensor]] = [[], []]
    for _ in range(4):
        for place, session in enumerate(pair):
            made[place].append(next(session).latents)
    for kind, found in zip(kinds[:2], made, strict=True):
        assert all(torch.equal(*both) for both in zip(found[:2], alone[kind][:2], strict=True))


def test_snapshots_are_exact_and_cross_to_full_precision(pipelines: list[Pipeline], tmp_path: Path) -> None:
    pipeline = pipelines[0]
    session = pipeline.open(RED, quantize="cache", decode=False)
    steered(session, 6)
    session.save(tmp_path / "state")
    assert read_meta(tmp_path / "state")["quantize"] == "cache"
    again = pipeline.resume(tmp_path / "state")
    full = pipeline.resume(tmp_path / "state", quantize="none")
    fork = session.fork()
    assert [isinstance(s.state.latents.ring.keys, EightBitStore) for s in (again, full, fork)] == [
        True,
        False,
        True,
    ]
    moment = session.snapshot()
    expected = [next(session).latents for _ in range(3)]
    assert all(torch.equal(next(s).latents, expected[0]) for s in (again, fork))
    assert 0 < relative([next(full).latents], expected[:1]) < 0.1
    session.restore(moment)
    assert all(torch.equal(next(session).latents, x) for x in expected)
    # from full precision to eight bits
    full.save(tmp_path / "full")
    rounded = pipeline.resume(tmp_path / "full", quantize="cache")
    assert isinstance(rounded.state.latents.ring.keys, EightBitStore)
    assert relative([next(rounded).latents], [next(full).latents]) < 0.1


@pytest.mark.parametrize("runner", ["onnx", "compile"])
def test_only_the_plain_runner_reads_it(runner: str, pipelines: list[Pipeline]) -> None:
    pipeline = Pipeline(pipelines[0].parts, runner)
    with pytest.raises(InputError, match=f"quantize cache: with runner plain, found {runner}"):
        pipeline.open(RED, quantize="cache", decode=False)
    # what goes on in it, an other runner leaves to the plain one
    other = Pipeline(pipelines[0].parts, "onnx").runner()
    session = pipelines[0].open(RED, quantize="cache", decode=False)
    expected = Session.of(session.model, session.snapshot(), session.runner)
    session.runner = other
    assert torch.equal(next(session).latents, next(expected).latents)


def test_names() -> None:
    for name, linears, cache in (
        ("none", "none", False),
        ("int8", "int8", False),
        ("cache", "none", True),
        ("fp8+cache", "fp8", True),
    ):
        assert (of_linears(name), keeps_cache(name)) == (linears, cache)


def test_a_batch_keeps_full_precision(pipelines: list[Pipeline]) -> None:
    with pytest.raises(InputError, match="batch: streams at once keep their caches in full precision"):
        Pipeline(pipelines[0].parts, "plain", "cache").gathering(2)
    storage: Any = RingStorage(pipelines[0].open(RED).state.latents.ring.shape, PLANS[0], CPU, torch.float32)
    assert not storage.eight_bits
