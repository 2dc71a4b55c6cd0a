"""A stream that nobody sees, so that the first one that is seen waits for nothing that happens only once.

On a GPU libraries choose a kernel and plan it for each shape when that shape is first asked for (cuDNN's
attention and convolutions): each chunk until the window is full is such a shape, and so is each length of
cache that is rebuilt. On CPUs nothing is planned so.
"""

from collections.abc import Callable

import torch

from .errors import InputError
from .motion.tracks import drag
from .pipeline import Pipeline
from .stream.events import StreamEvent

# told what is done, and the share of it that is
Tell = Callable[[str, float | None], None]
_WORDS = ("a small red circle moves right over the sea", "a large blue star stays over sand")
# chunks behind the one that fills the window: it is rebuilt when it is full, and moves on
_BEYOND = 2
# no shape depends on the number of steps
_FEW = {"steps": 1, "first_steps": 0, "change_steps": 0}


def plans_by_shape(device: torch.device) -> bool:
    """Whether a device's libraries plan for each shape anew."""
    return device.type == "cuda"


def rehearse(pipeline: Pipeline, tell: Tell = lambda text, share: None) -> None:
    """Go through every shape that streams with the pipeline's own settings ask the device for: chunks while
    the window fills and once it is full, a cache that is rebuilt at each of those lengths, tracks, a start
    from a picture.

    Raises:
        StreamgenError: see `Pipeline.open`.
    """
    plan = pipeline.settings.plan(pipeline.plan)
    chunks = 1 + -(-plan.context_frames // plan.chunk_frames) + _BEYOND
    tell("rehearsing", 0.0)
    _played(pipeline, chunks)
    tell("rehearsing changes", 0.4)
    _changed(pipeline, chunks)
    tell("rehearsing a start from a picture", 0.8)
    _from_picture(pipeline)


def _played(pipeline: Pipeline, chunks: int) -> None:
    """As it is left alone: each chunk is committed by itself."""
    session = pipeline.open(_WORDS[0], settings=_FEW, decode=pipeline.codec is not None)
    for _ in range(chunks):
        next(session)


def _changed(pipeline: Pipeline, chunks: int) -> None:
    """Under other words with each chunk, so that the cache is rebuilt at every length, and with tracks."""
    tracks = None if pipeline.motion_encoder is None else drag((0.3, 0.3), (0.6, 0.6), 8)
    session = pipeline.open(_WORDS[0], motion=tracks, settings=_FEW, decode=pipeline.codec is not None)
    for chunk in range(1, chunks + 1):
        next(session)
        session.submit(StreamEvent(prompt=_WORDS[chunk % 2], motion=tracks))


def _from_picture(pipeline: Pipeline) -> None:
    geometry = pipeline.geometry
    picture = torch.zeros(geometry.height, geometry.width, 3, dtype=torch.uint8)
    try:
        session = pipeline.open(_WORDS[0], image=picture, settings=_FEW, decode=pipeline.codec is not None)
    except InputError:
        # a decoder alone reads no pictures, and nobody will start from one
        return
    next(session)
    next(session)
