"""How bench tells the parts of a chunk apart."""

from dataclasses import replace
from pathlib import Path

import pytest

import streamgen.bench
from streamgen import InputError, Session, StreamEvent, load_pipeline
from streamgen.roofline import parts
from streamgen.stream.state import FrameChunk
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


def test_parts_wait_for_the_device_outside_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to wait in a hook of the network: a compiled one was compiled anew, or could not be with a wait
    in the middle.
    """
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model"), runner="plain")
    waits: list[str] = []
    monkeypatch.setattr(parts, "synchronize", lambda device: waits.append(device.type))

    def check() -> None:
        waits.clear()
        session = pipeline.open(RED, 1)
        runner = session.runner
        next(session)
        with parts.timed_parts(session, True) as copies:
            assert not pipeline.dit._forward_hooks
            # the commit that was due, and the wait before the pictures are copied
            next(session)
            assert (len(waits), len(copies)) == (2, 1)
            session.submit(StreamEvent(prompt=BLUE))
            # both chunks so far anew, the one that was due among them, and the pictures
            next(session)
            assert (len(waits), len(copies)) == (2 + 2 + 1, 2)
        assert session.runner is runner

    assert_needs(check, monkeypatch, parts, "_waiting", lambda work, device: work)


@pytest.mark.parametrize(("name", "beside"), [("ahead", False), ("wave", False), ("plain", True)])
def test_chunks_that_overlap_are_measured(name: str, beside: bool, tmp_path: Path) -> None:
    """What is no part of its own takes no time: a commit in a step's forward."""
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model", steps=2), runner=name)
    if beside:
        pipeline.decode_beside()
    unguided = {"text_guidance": 1.0, "motion_guidance": 0.0}
    effort = streamgen.bench.Effort(warm=0, openings=1, switches=1, recaches=1)
    options = streamgen.bench.BenchOptions(20, unguided, protocol=True, effort=effort)
    report = streamgen.bench.run_bench(pipeline, options)
    assert (report["runner"], report["decoder"]) == (name, {"device": "cpu", "beside": beside})
    assert report["pixel_fps"] > 0
    assert (report["chunk_ms"]["commit"]["p50"] == 0) == (name != "plain")
    assert report["chunk_ms"]["denoise"]["p50"] > 0
    assert report["sixth_chunk"]["fps"] > 0
    if name == "wave":
        with pytest.raises(InputError, match="--roofline: chunks of runner wave overlap"):
            streamgen.bench.run_bench(pipeline, streamgen.bench.BenchOptions(20, unguided, roofline=True))


def test_the_sixth_chunk_of_fresh_streams(tmp_path: Path) -> None:
    """Its own parts, and its own commit, which the seventh begins with."""
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model"), runner="plain")
    options = streamgen.bench.BenchOptions(effort=streamgen.bench.Effort(openings=2))
    taken = Session.__next__

    seen: list[int] = []

    def timed(session: Session) -> FrameChunk:
        chunk = taken(session)
        seen.append(chunk.index)
        # a chunk's parts take its number of seconds, the commit of the one before a hundred times that
        timings = {"denoise": chunk.index, "decode": chunk.index, "commit": 100 * (chunk.index - 1)}
        return replace(chunk, timings={name: float(value) for name, value in timings.items()})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "__next__", timed)
        found = streamgen.bench.sixth_chunks(pipeline, pipeline.choose().runner, options)
    assert seen == list(range(7)) * 3
    assert (found["streams"], found["frames"]) == (2, 4)
    assert [found[f"{part}_ms"]["p50"] for part in ("denoise", "decode", "commit")] == [5e3, 5e3, 5e5]
    assert found["fps_without_commit"] == pytest.approx(4 / 10)
    assert found["fps"] == pytest.approx(4 / 510, abs=1e-3)
