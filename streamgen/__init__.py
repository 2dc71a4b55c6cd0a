"""streamgen: endless video from a prompt, in real time, steered while it plays."""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _guard_siblings() -> None:
    """Refuse to run with a foreign package in place of one of ours: names like `models` are common."""
    here = Path(__file__).resolve().parent.parent
    for name in ("models", "distill", "configs"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != here:
            raise ImportError(
                f"streamgen needs its own package {name!r} beside it in {here}, found {found or 'none'}"
            )


_guard_siblings()

if TYPE_CHECKING:
    from .errors import CheckpointError, InputError, NonFiniteError, StreamgenError
    from .families import model_names
    from .live.picture import Picture
    from .motion.tracks import TrackSet
    from .pipeline import Pipeline, load_pipeline
    from .stream.events import Receipt, StreamEvent
    from .stream.session import Session
    from .stream.snapshot import Snapshot
    from .stream.state import FrameChunk
    from .stream.timeline import Timeline

__all__ = [
    "CheckpointError",
    "FrameChunk",
    "InputError",
    "NonFiniteError",
    "Picture",
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

# Loaded when first asked for: most need torch, which takes seconds, and `streamgen --help` needs none.
_MODULES = {
    "CheckpointError": "errors",
    "FrameChunk": "stream.state",
    "InputError": "errors",
    "NonFiniteError": "errors",
    "Picture": "live.picture",
    "Pipeline": "pipeline",
    "Receipt": "stream.events",
    "Session": "stream.session",
    "Snapshot": "stream.snapshot",
    "StreamEvent": "stream.events",
    "StreamgenError": "errors",
    "Timeline": "stream.timeline",
    "TrackSet": "motion.tracks",
    "load_pipeline": "pipeline",
    "model_names": "families",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
