"""What one session may take, and what it has given."""

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What one session may take: bytes of snapshots in memory, bytes of recorded frames on disk."""

    snapshot_bytes: int = 96 * 2**20
    recording_bytes: int = 512 * 2**20


@dataclass
class Durations:
    """How often something took long: `counts[i]` times no more than `STEPS[i]` seconds, the last more."""

    STEPS = (0.0, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    counts: list[int] = field(default_factory=lambda: [0] * (len(Durations.STEPS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """It took this long."""
        self.counts[bisect_left(self.STEPS, seconds)] += 1
        self.total += seconds

    def __iadd__(self, other: "Durations") -> "Durations":
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        return self


@dataclass
class Counters:
    """Frames made for and sent to the viewer; seconds that chunks took, and that the viewer stood still
    before they came.
    """

    sent: int = 0
    generated: int = 0
    making: Durations = field(default_factory=Durations)
    late: Durations = field(default_factory=Durations)

    def chunk(self, seconds: float, late: float) -> None:
        """A chunk was made in so many seconds, and was so late."""
        self.making.add(seconds)
        self.late.add(late)

    def __iadd__(self, other: "Counters") -> "Counters":
        self.sent += other.sent
        self.generated += other.generated
        self.making += other.making
        self.late += other.late
        return self
