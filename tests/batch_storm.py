"""Runs of `streamgen render` killed at random moments, and what must be true of their folder in the end."""

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import decord

from tests.command_line import spawn
from tests.forked import Forked


class Worker:
    """One process of a run, whose events are read as they come; forked, or else started anew."""

    def __init__(
        self, jobs: Path, out: Path, model: Path, options: Sequence[object] = (), anew: bool = False
    ) -> None:
        arguments = ["render", jobs, "-o", out, "--model", model, "--threads", 1, "--json", *options]
        self.process = (spawn if anew else Forked)(*arguments, cwd=jobs.parent)
        self.rendering, self.writing = threading.Event(), threading.Event()
        self.errors = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"event": "start"'):
                self.rendering.set()
            elif line.startswith('{"event": "progress"'):
                self.writing.set()
        self.rendering.set()
        self.writing.set()

    def wait_until_rendering(self) -> None:
        """Until it has begun an item or ended."""
        assert self.rendering.wait(240)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.end()

    def end(self, seconds: float = 240) -> int:
        """Waits for the end; returns the exit code."""
        code = self.process.wait(seconds)
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()
        self._reader.join(10)
        assert "Traceback" not in self.errors, self.errors
        return code


def storm(jobs: Path, out: Path, model: Path, processes: int, kills: int, seed: int) -> int:
    """Render with several processes, of which one is killed again and again and replaced; returns how many
    were killed while they had something to do.

    The first kill comes as soon as any process has begun an item: later ones may find that all is done,
    since processes start slowly and a small model renders fast.
    """
    chance = random.Random(seed)
    workers = [Worker(jobs, out, model) for _ in range(processes)]
    hits = 0
    for kill in range(kills):
        victim = chance.choice(wait_until_any_renders(workers))
        if kill:
            time.sleep(chance.uniform(0, 1.5))
        hits += workers[victim].process.poll() is None
        workers[victim].kill()
        workers[victim] = Worker(jobs, out, model)
    assert [worker.end() for worker in workers] == [0] * processes, [worker.errors for worker in workers]
    return hits


def wait_until_any_renders(workers: Sequence[Worker], seconds: float = 240) -> list[int]:
    """Which workers have begun an item and not ended; all of them once none has anything left to do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = [worker.process.poll() is None for worker in workers]
        if busy := [i for i, worker in enumerate(workers) if alive[i] and worker.rendering.is_set()]:
            return busy
        if not any(alive):
            return list(range(len(workers)))
        time.sleep(0.005)
    raise AssertionError("no process has begun an item")


def run_once(jobs: Path, out: Path, model: Path, options: Sequence[object] = ()) -> Worker:
    """One undisturbed process."""
    worker = Worker(jobs, out, model, options)
    worker.end()
    return worker


def check_folder(out: Path, items: int) -> dict[str, str]:
    """Every item is there exactly once, whole and readable; returns the digests of raw frames by name."""
    videos = sorted(out.glob("*.mp4"))
    assert len(videos) == items
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines() if line.strip()]
    made = Counter(row["key"] for row in rows if row["status"] == "ok")
    assert len(made) == items
    assert set(made.values()) == {1}, "an item was rendered twice"
    digests: dict[str, str] = {}
    for video in videos:
        record: dict[str, Any] = json.loads(video.with_suffix(".json").read_text())
        assert len(decord.VideoReader(str(video))) == record["frames"]
        assert record["file"]["bytes"] == video.stat().st_size
        digests[video.stem] = record["sha256"]
    assert not list(out.glob("*.json.part"))
    return digests


def interrupt(worker: Worker, number: signal.Signals) -> int:
    """Signals a process that has written frames; returns its exit code."""
    assert worker.writing.wait(240)
    worker.process.send_signal(number)
    return worker.end()
