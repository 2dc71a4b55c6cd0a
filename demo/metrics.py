"""What a monitor reads of a server: figures in Prometheus' form, and whether it is ready.

Counters of sessions that are over are kept, so that they only ever grow.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from streamgen.machine import free_bytes

from .drain import Drain
from .engine import Engine
from .limits import Counters, Durations
from .live import LiveSession
from .lobby import Lobby

_STATES = ("ready", "opening", "playing", "paused", "failed")


@dataclass
class Totals:
    """What all sessions that are over have given."""

    counters: Counters = field(default_factory=Counters)
    sessions: int = 0
    skipped: int = 0

    def add(self, session: LiveSession) -> None:
        """A session is over."""
        self.counters += session.counters
        self.sessions += 1
        self.skipped += session.outbox.dropped


class DemoMetrics(Collector):
    """Figures of one server.

    Args:
        engine: what makes its streams.
        lobby: its viewers.
        totals: of its sessions that are over.
        drain: whether it is on its way out.
    """

    def __init__(self, engine: Engine, lobby: Lobby, totals: Totals, drain: Drain) -> None:
        self.engine, self.lobby, self.totals, self.drain = engine, lobby, totals, drain
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    @property
    def status(self) -> str:
        """`ready` to take viewers, `loading`, `draining`, or `failed`."""
        if self.engine.failure is not None:
            return "failed"
        if self.drain.begun:
            return "draining"
        return "ready" if self.engine.loading is None else "loading"

    def text(self) -> str:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        sessions = [seat.session for seat in self.lobby.running if seat.session is not None]
        yield from self._people(sessions)
        yield from self._work(sessions)
        yield from self._machine()

    def _people(self, sessions: list[LiveSession]) -> Iterator[Metric]:
        states = Counter(session.state for session in sessions)
        family = GaugeMetricFamily("streamgen_sessions", "Sessions by state.", labels=["state"])
        for state in _STATES:
            family.add_metric([state], states[state])
        yield family
        yield _gauge("places", "Sessions that may run at a time.", self.lobby.rules.max_sessions)
        yield _gauge("waiting", "Viewers in the row.", len(self.lobby.waiting))
        yield _gauge("ready", "Whether viewers are taken.", self.status == "ready")
        done = self.totals.sessions + len(sessions)
        yield CounterMetricFamily("streamgen_sessions_begun", "Sessions that have begun.", value=done)

    def _work(self, sessions: list[LiveSession]) -> Iterator[Metric]:
        counted = Counters()
        for counters in (self.totals.counters, *(session.counters for session in sessions)):
            counted += counters
        skipped = self.totals.skipped + sum(session.outbox.dropped for session in sessions)
        for name, about, value in (
            ("frames_made", "Frames made.", counted.generated),
            ("frames_sent", "Frames sent to viewers.", counted.sent),
            ("frames_skipped", "Frames left out: they would have come too late.", skipped),
        ):
            yield CounterMetricFamily(f"streamgen_{name}", about, value=value)
        fps = self.engine.info.fps
        rates = [session.rate for session in sessions if session.state == "playing"]
        yield _gauge("model_frames_per_second", "Of the model.", fps)
        yield _gauge(
            "playing_frames_per_second", "At which the slowest stream plays.", min(rates, default=fps)
        )
        yield _histogram("chunk_seconds", "Time to make a chunk.", counted.making)
        yield _histogram("late_seconds", "How long viewers stood still for a chunk.", counted.late)

    def _machine(self) -> Iterator[Metric]:
        info = self.engine.info
        family = GaugeMetricFamily("streamgen_model_info", "The model.", labels=["model", "device"])
        family.add_metric([info.name, info.device], 1)
        yield family
        memory = GaugeMetricFamily(
            "streamgen_device_memory_bytes", "Memory of GPUs, all processes together.", labels=["gpu", "kind"]
        )
        # one that nothing of this process has touched is left alone: asking costs hundreds of megabytes
        for gpu in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            free, total = torch.cuda.mem_get_info(gpu)
            memory.add_metric([str(gpu), "used"], total - free)
            memory.add_metric([str(gpu), "total"], total)
        yield memory
        yield _gauge("free_memory_bytes", "What streams may still take.", free_memory() or 0)


def free_memory() -> int | None:
    """Bytes that streams of this process may still take; None where nobody knows."""
    return free_bytes(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"streamgen_{name}", about, value=float(value))


def _histogram(name: str, about: str, durations: Durations) -> Metric:
    buckets, so_far = [], 0
    for step, count in zip((*map(str, Durations.STEPS), "+Inf"), durations.counts, strict=True):
        so_far += count
        buckets.append((step, float(so_far)))
    return HistogramMetricFamily(f"streamgen_{name}", about, buckets=buckets, sum_value=durations.total)
