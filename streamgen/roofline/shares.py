"""Which share of a device's ceilings each part of a chunk reaches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from models.kv_cache import CacheCursor

from ..engine.decoder import DecoderState
from ..engine.runner import CommitTask, DenoiseTask, PlainRunner
from ..stream.session import Session
from .counts import Work, counted
from .peaks import Peaks


class CountingRunner(PlainRunner):
    """The plain runner, whose work is counted by part: `denoise`, `commit`, `decode`, and `recache` where it
    is one forward.
    """

    name = "counting"
    work: dict[str, Work]

    @classmethod
    def like(cls, runner: PlainRunner) -> "CountingRunner":
        """Over the networks of another runner."""
        decoder = runner.decoder
        made = cls(runner.dit, None if decoder is None else decoder.tokenizer)
        made.work = {}
        return made

    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        with self._part("denoise"):
            return super().denoise(task)

    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        with self._part("commit"):
            return super().commit(task)

    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """See `Runner`."""
        with self._part("recache"):
            return super().rejoin(task, keep_sink)

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Runner`."""
        with self._part("decode"):
            return super().decode(latents, state)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        with counted(self.work.setdefault(name, Work())):
            yield


def chunk_work(session: Session) -> dict[str, Work]:
    """The work of a stream's next chunk by part, as the networks read; the stream stays where it is."""
    assert isinstance(session.runner, PlainRunner), "all of ours have the networks of the plain one"
    twin = session.fork()
    runner = CountingRunner.like(session.runner)
    twin.runner = runner
    # until they are decoded, wherever that is
    _ = next(twin).frames
    return runner.work


def shares(work: Mapping[str, Work], measured_ms: Mapping[str, float], peaks: Peaks) -> dict[str, Any]:
    """For each part that was counted and measured: its work, how long the ceilings would take for it, and
    which share of the nearer one was reached.

    Returns:
        by part `gflop`, `gb`, `kernels`; `compute_ms` at the ceiling of matrix products and `traffic_ms` at
        that of memory, if every operation of the plain networks reads and writes its tensors; `measured_ms`;
        `share`, the longer of the two over what was measured. It may be above 1 where a runner fuses.
    """
    out: dict[str, Any] = {}
    for part, counts in work.items():
        if not measured_ms.get(part):
            continue
        compute = 1000 * counts.flops / (1e12 * peaks.gemm_tflops)
        traffic = 1000 * counts.bytes / (1e9 * peaks.bandwidth_gbs)
        out[part] = {
            "gflop": round(counts.flops / 1e9, 3),
            "gb": round(counts.bytes / 1e9, 4),
            "kernels": counts.kernels,
            "compute_ms": round(compute, 3),
            "traffic_ms": round(traffic, 3),
            "measured_ms": round(measured_ms[part], 3),
            "share": round(max(compute, traffic) / measured_ms[part], 4),
        }
    return out
