"""A stream that goes on for hundreds of chunks, with switches, drags and snapshots all along.

300 chunks in CI; 20,000 (SOAK_CHUNKS) under -m soak. Memory (beyond the timeline, which keeps every event),
file handles, threads and the time of a chunk stay what they were; latents stay finite; the same again from
the timeline gives the same frames, bit for bit.
"""

import gc
import hashlib
import json
import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from streamgen.machine import memory_mb
from streamgen.motion.tracks import TrackSet, drag
from streamgen.pipeline import Pipeline, load_pipeline
from streamgen.stream.events import StreamEvent
from streamgen.stream.session import Session
from streamgen.stream.timeline import Timeline
from tests.tiny_checkpoints import write_checkpoint

PROMPTS = ("a red circle", "a blue star over the sea", "sand", "the sea drifts right")
SWITCH_EVERY, DRAG_EVERY, SAVE_EVERY = 7, 11, 50
# What an event of the timeline may take: a drag is four tensors and their share of the heap.
EVENT_MB = 8 / 1024


@dataclass
class Watch:
    """What was seen of a stream: a digest of its frames, and readings taken along the way."""

    digest: str = ""
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    snapshot_bytes: list[int] = field(default_factory=list)

    def read(self) -> None:
        """One reading of this process."""
        gc.collect()
        self.memory.append(memory_mb(torch.device("cpu")))
        self.handles.append(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
        self.threads.append(threading.active_count())


def events_of(index: int) -> StreamEvent | None:
    """What changes at a chunk: the prompt, by each policy in turn, and now and then a drag or its end."""
    prompt = PROMPTS[index // SWITCH_EVERY % len(PROMPTS)] if index % SWITCH_EVERY == 0 else None
    motion = None
    if index % DRAG_EVERY == 0:
        motion = drag((0.2, 0.2), (0.8, 0.8), 24) if index // DRAG_EVERY % 2 else TrackSet.empty(1)
    if index == 0 or (prompt is None and motion is None):
        return None
    policy = ("recache", "keep", "recache", "clear")[index // SWITCH_EVERY % 4]
    return StreamEvent(prompt, motion, cache=policy)  # type: ignore[arg-type]


def stream(session: Session, chunks: int, folder: Path | None = None) -> Watch:
    """Take chunks; with a folder, steer the stream and save it there again and again."""
    watch, digest = Watch(), hashlib.sha256()
    for index in range(chunks):
        event = events_of(index) if folder is not None else None
        if event is not None:
            session.submit(event)
        began = time.process_time()
        chunk = next(session)
        watch.seconds.append(time.process_time() - began)
        digest.update(chunk.frames.numpy().tobytes())
        assert torch.isfinite(session.state.latents.context[-1].latents).all(), f"chunk {index}"
        if folder is not None and index % SAVE_EVERY == SAVE_EVERY - 1:
            session.save(folder / "state")
            snapshot = session.snapshot()
            session.restore(snapshot)
            watch.snapshot_bytes.append(snapshot.size_bytes())
            watch.read()
    watch.digest = digest.hexdigest()
    return watch


def stays_flat_and_comes_again(pipeline: Pipeline, folder: Path, chunks: int, growth_mb: float) -> None:
    session = pipeline.open(PROMPTS[0], seed=5)
    watch = stream(session, chunks, folder)
    early, late = watch.seconds[chunks // 10 : chunks // 5], watch.seconds[-chunks // 10 :]
    assert statistics.median(late) < 1.5 * statistics.median(early)
    settled = len(watch.memory) // 3
    recorded = len(session.timeline.events) * (1 - settled / len(watch.memory)) * EVENT_MB
    growth = watch.memory[-1] - watch.memory[settled]
    sys.stdout.write(f"{chunks} chunks: grown by {growth:.1f} MiB, events {recorded:.1f} MiB\n")
    assert growth < growth_mb + recorded
    assert max(watch.handles[settled:]) <= max(watch.handles[: settled + 1])
    assert max(watch.threads[settled:]) <= max(watch.threads[: settled + 1])
    # a drag that is under way is in the snapshot, too
    assert max(watch.snapshot_bytes) - min(watch.snapshot_bytes) < 20_000
    timeline = Timeline.from_json(json.loads(session.timeline.dumps()))
    assert stream(pipeline.replay(timeline), chunks).digest == watch.digest


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    torch.set_num_threads(1)
    return load_pipeline(write_checkpoint(tmp_path_factory.mktemp("model") / "small", steps=1))


@pytest.mark.slow
def test_300_chunks(pipeline: Pipeline, tmp_path: Path) -> None:
    stays_flat_and_comes_again(pipeline, tmp_path, 300, growth_mb=8)


@pytest.mark.soak
def test_20000_chunks(pipeline: Pipeline, tmp_path: Path) -> None:
    stays_flat_and_comes_again(pipeline, tmp_path, int(os.environ.get("SOAK_CHUNKS", "20000")), growth_mb=16)
