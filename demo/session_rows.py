"""The rows in which a session tells where it is."""

import time
from collections.abc import Mapping
from typing import Any

from .branches import Branches
from .engine import Generated, Stream, place_of
from .pictures import OutFrame


def state_row(state: str, epoch: int, text: str = "") -> dict[str, Any]:
    """What the session does, and why."""
    return {"type": "state", "state": state, "text": text, "epoch": epoch}


def chunk_row(made: Generated, epoch: int, rate: float, seconds: float) -> dict[str, Any]:
    """A chunk that took `seconds` and plays at `rate` frames per second."""
    place = {"index": made.index, "start": made.start, "end": made.start + len(made.frames)}
    figures = {"rate": round(rate, 3), "gen_ms": round(seconds * 1000, 1)}
    return {"type": "chunk", "epoch": epoch} | place | figures


def place_row(
    stream: Stream,
    epoch: int,
    frame: int,
    picture: str,
    held: Mapping[str, Any],
    branches: Branches,
) -> dict[str, Any]:
    """Everything that a page needs to draw a session before frame `frame`; `picture` is the one before it.

    Args:
        held: what hands hold, as rows.
    """
    row = {"type": "place", "epoch": epoch, "frame": frame, "picture": picture}
    why_none = {"no_rewind": branches.marks.why_none(stream.snapshot_bytes)}
    return row | place_of(stream) | dict(held) | branches.rows() | why_none


def out_frames(made: Generated, epoch: int) -> list[OutFrame]:
    """A chunk's frames on their way to whoever sees them."""
    moment = time.time()
    return [
        OutFrame(epoch, made.start + offset, made.index, moment, picture)
        for offset, picture in enumerate(made.frames)
    ]
