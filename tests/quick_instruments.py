"""The evaluation's instruments after a short training: seconds, not half a minute, and nearly as good."""

import functools
from unittest import mock

from distill.evaluation import classifiers, measures
from distill.evaluation.measures import Instruments
from distill.scenes import SceneConfig


@functools.cache
def quick_instruments(size: int) -> Instruments:
    """Instruments for pictures of this side, in pixels; made once a process."""
    plain = classifiers._train
    with (
        mock.patch.object(measures, "ShapeReader", functools.partial(classifiers.ShapeReader, samples=2000)),
        mock.patch.object(
            measures, "MotionReader", functools.partial(classifiers.MotionReader, samples=1000)
        ),
        mock.patch.object(
            classifiers, "_train", lambda *given, steps, **named: plain(*given, steps=steps // 3, **named)
        ),
    ):
        return Instruments(SceneConfig(size=size))
