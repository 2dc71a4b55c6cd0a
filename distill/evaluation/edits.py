"""Clips of the world that streams hear as their live input, with the places of their object."""

import functools
from dataclasses import dataclass

from torch import Tensor

from ..scenes import SceneConfig, SceneGenerator

#: Of clips; training draws from other seeds.
_SEED = 8_000_000_009
#: Strengths that each clip is made anew at; the last one does not see it.
STRENGTHS = (0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class WorldClip:
    """A clip of one object that keeps what it is.

    Attributes:
        frames: uint8 (T, H, W, 3).
        path: (T, 2) normalised centres of the object.
        subject: size, colour, shape, motion and background, as indices of the world's vocabulary.
    """

    frames: Tensor
    path: Tensor
    subject: tuple[int, int, int, int, int]


def world_clip(size: int, number: int, frames: int) -> WorldClip:
    """The clip of a number, of `size` x `size` pixels; what it shows does not depend on its length."""
    scene = _generator(size).sample(1, frames, _SEED + number)
    names = ("size", "colour", "shape", "motion")
    one, two, three, four = (int(scene.labels[name][0, 0, 0]) for name in names)
    subject = (one, two, three, four, int(scene.labels["background"][0, 0]))
    return WorldClip(scene.video[0], scene.centres[0, 0], subject)


@functools.cache
def _generator(size: int) -> SceneGenerator:
    return SceneGenerator(SceneConfig(size=size).alone())


def variant_of(strength: float) -> str:
    """How a strength is called in rows and figures: in percent."""
    return f"{100 * strength:.0f}"
