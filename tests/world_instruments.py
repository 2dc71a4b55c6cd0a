"""The evaluation's instruments, which take seconds to be learned, once for all tests of a session."""

import functools

from distill.evaluation.measures import Instruments
from distill.scenes import SceneConfig


@functools.cache
def instruments_of(size: int) -> Instruments:
    """Instruments for frames of this size."""
    return Instruments(SceneConfig(size=size))
