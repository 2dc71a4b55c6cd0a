"""Shares of a device's ceilings: of the work of the stream's very next chunk."""

from pathlib import Path

import pytest
import torch

from streamgen import load_pipeline
from streamgen.roofline.counts import Work
from streamgen.roofline.peaks import Peaks, Probe, measure_peaks
from streamgen.roofline.shares import CountingRunner, chunk_work, shares
from tests.streams import RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

UNGUIDED = {"text_guidance": 1.0, "motion_guidance": 0.0}


def test_the_work_of_a_chunk_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is as much work as the commit; the stream that is counted goes on as if it were not."""
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model", steps=2))

    def check() -> None:
        session, other = (pipeline.open(RED, 1, settings=UNGUIDED) for _ in range(2))
        for _ in range(5):
            next(session), next(other)
        work = chunk_work(session)
        assert set(work) == {"denoise", "commit", "decode"}
        assert work["denoise"].flops == 2 * work["commit"].flops > 0
        assert work["decode"].flops > 0
        assert torch.equal(next(session).frames, next(other).frames)

    assert_needs(check, monkeypatch, CountingRunner, "commit", CountingRunner.__mro__[1].commit)  # type: ignore[attr-defined]


def test_shares_are_of_the_nearer_ceiling() -> None:
    work = {"denoise": Work(4e9, 10**9, 7), "commit": Work(1e9, 10**10, 5), "decode": Work(1e9, 1, 1)}
    found = shares(work, {"denoise": 8.0, "commit": 20.0}, Peaks(1.0, 1000.0, 0.5))
    assert set(found) == {"denoise", "commit"}
    assert found["denoise"]["share"] == 4 / 8
    assert found["commit"]["share"] == 10 / 20
    assert found["denoise"]["kernels"] == 7


def test_ceilings_are_measured() -> None:
    peaks = measure_peaks(torch.device("cpu"), torch.float32, Probe(64, 2**16, (2, 16, 32, 64), 0.001))
    assert min(peaks.to_json().values()) > 0
