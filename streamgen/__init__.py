"""streamgen: endless video from a prompt, in real time, steered while it plays."""

import importlib.util
from pathlib import Path


def _guard_siblings() -> None:
    """Refuse to run with a foreign top-level package in place of one of ours: names like `models` are common."""
    here = Path(__file__).resolve().parent.parent
    for name in ("models", "distill", "configs"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != here:
            raise ImportError(f"streamgen needs its own package {name!r} beside it in {here}, found {found or 'none'}")


_guard_siblings()

from .errors import CheckpointError, InputError, StreamgenError  # noqa: E402
from .motion import TrackSet  # noqa: E402
from .pipeline import Pipeline, load_pipeline, model_names  # noqa: E402
from .session import FrameChunk, Session  # noqa: E402
from .snapshot import Snapshot  # noqa: E402
from .timeline import Receipt, StreamEvent, Timeline  # noqa: E402

__all__ = [
    "CheckpointError",
    "FrameChunk",
    "InputError",
    "Pipeline",
    "Receipt",
    "Session",
    "Snapshot",
    "StreamEvent",
    "StreamgenError",
    "Timeline",
    "TrackSet",
    "load_pipeline",
    "model_names",
]
