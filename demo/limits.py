"""What one session may take, and what it has given."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one session may take: bytes of snapshots in memory, bytes of recorded frames on disk."""

    snapshot_bytes: int = 96 * 2**20
    recording_bytes: int = 512 * 2**20


@dataclass
class Counters:
    """Frames made for and sent to the viewer."""

    sent: int = 0
    generated: int = 0
