"""Chunk times of the shipped model while prompts are being encoded slowly, against those without.

`python -m tests.benchmarks.live_text [SECONDS]`: two streams in turns, block by block; in one of them a live
prompt is always under way through an encoder that sleeps. Prints medians and 99th percentiles of the chunks
that recache in neither, and their ratio.
"""

import json
import statistics
import sys
import time

from torch import Tensor

from streamgen import Session, StreamEvent, load_pipeline
from streamgen.pipeline import Pipeline
from streamgen.stream.model import ModelParts
from streamgen.tiny.text import WordPrompts

PROMPTS = ("a small red circle moves right over the sea", "a large blue star stays over sand")
BLOCKS, CHUNKS = 24, 20


class Sleeping(WordPrompts):
    """An encoder that takes its time."""

    quick = False
    seconds = 1.0

    def embed(self, prompt: str) -> Tensor:
        time.sleep(self.seconds)
        return super().embed(prompt)


def main() -> None:
    parts = load_pipeline("tiny").parts
    assert isinstance(parts.prompts, WordPrompts)
    Sleeping.seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    slow = Sleeping(parts.prompts.encoder, parts.prompts.vocabulary)
    plain = Pipeline(parts).open(PROMPTS[0])
    busy = Pipeline(ModelParts(parts.name, parts.config, parts.networks, slow, parts.digest)).open(PROMPTS[0])
    for session in (plain, busy):
        for _ in range(20):
            next(session)
    times: dict[str, list[float]] = {"plain": [], "encoding": []}
    for block in range(BLOCKS):
        times["plain"] += block_of(plain)
        receipt = busy.submit(StreamEvent(prompt=f"{PROMPTS[block % 2]} {block}"))
        times["encoding"] += block_of(busy)
        while receipt.status == "accepted":
            next(busy)
    report = {
        name: {
            "n": len(seconds),
            "p50_ms": 1000 * statistics.median(seconds),
            "p99_ms": 1000 * quantile(seconds),
        }
        for name, seconds in times.items()
    }
    for name in ("p50_ms", "p99_ms"):
        report.setdefault("ratio", {})[name] = report["encoding"][name] / report["plain"][name]
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def block_of(session: Session) -> list[float]:
    """Seconds of chunks without a change of words."""
    out = []
    for _ in range(CHUNKS):
        began = time.perf_counter()
        chunk = next(session)
        if not chunk.receipts:
            out.append(time.perf_counter() - began)
    return out


def quantile(seconds: list[float]) -> float:
    """The 99th percentile."""
    return sorted(seconds)[int(0.99 * len(seconds))]


if __name__ == "__main__":
    main()
