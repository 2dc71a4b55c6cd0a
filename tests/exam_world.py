"""Exams of a few short streams and readers that need no training, for tests of the exam."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.evaluation.measures import Instruments
from distill.evaluation.reading import FrameReader, torus_step
from distill.evaluation.streams import Subject
from distill.evaluation.suites import canonical
from distill.exam.facts import Fact
from distill.exam.plans import Plan, Scene
from distill.exam.truth import Truth
from distill.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SceneConfig

SIZE = 64


class BoxShapes:
    """Tells squares from circles by how much of their box they fill; for objects away from the border."""

    def __call__(self, masks: Tensor, centre: Tensor) -> Tensor:
        boxes = masks.any(1).sum(1) * masks.any(2).sum(1)
        filled = masks.sum((1, 2)) / boxes.clamp(min=1)
        shape = torch.where(filled > 0.9, SHAPES.index("square"), SHAPES.index("circle"))
        return torch.where(boxes > 0, shape, -1)


class WayMotions:
    """Tells the four ways, and resting, by where an object went on the whole."""

    def __call__(self, positions: Tensor) -> Tensor:
        steps = torus_step(positions[:, :-1], positions[:, 1:])
        way = steps.nan_to_num(0.0).sum(1)
        sideways = way[:, 0].abs() > way[:, 1].abs()
        names = [
            "stays" if float(one.norm()) < 0.2 else _way(one, bool(side))
            for one, side in zip(way, sideways, strict=True)
        ]
        unseen = positions.isnan().any(-1).float().mean(1) > 0.5
        found = torch.tensor([MOTIONS.index(name) for name in names], dtype=torch.long)
        return torch.where(unseen, -1, found)


def _way(step: Tensor, sideways: bool) -> str:
    x, y = step.tolist()
    return ("right" if x > 0 else "left") if sideways else ("down" if y > 0 else "up")


class PlainInstruments(Instruments):
    """The evaluation's own readers of colours, grounds and places; of shapes and motions those above."""

    def __init__(self, config: SceneConfig) -> None:
        self.frames = FrameReader(config)
        self.shapes = BoxShapes()  # type: ignore[assignment]
        self.motions = WayMotions()  # type: ignore[assignment]


@functools.cache
def plain_instruments() -> PlainInstruments:
    """Made once a process."""
    return PlainInstruments(SceneConfig(size=SIZE))


@functools.cache
def world() -> Truth:
    """Made once a process."""
    return Truth(SIZE)


def subject(words: str) -> Subject:
    """From words such as `red circle right sea`; of medium size."""
    colour, shape, motion, ground = words.split()
    return Subject(
        1, COLOURS.index(colour), SHAPES.index(shape), MOTIONS.index(motion), BACKGROUNDS.index(ground)
    )


def plan_of(
    scenes: Mapping[int, Sequence[str]],
    facts: Sequence[Fact] = (),
    frames: int = 80,
    motions: Mapping[int, Mapping[str, Any]] | None = None,
    name: str = "update-000",
) -> Plan:
    """A stream of scenes by the frame from which they count, each one or two objects in words."""
    told = []
    for start, words in scenes.items():
        subjects = tuple(map(subject, words))
        told.append(Scene(start, canonical(*subjects), subjects))
    category = name.partition("-")[0]
    seed = sum(map(ord, name))
    return Plan(name, category, "own", seed, frames, tuple(told), tuple(facts), motions or {})


def led(*knots: Sequence[float]) -> dict[str, Any]:
    """A motion file's object of one path through [frame, x, y]."""
    return {"paths": [{"points": [[frame / 16, x, y] for frame, x, y in knots]}]}


def moved(frames: Tensor, start: int, x: int, y: int) -> Tensor:
    """The pictures from a frame on shifted on the torus by pixels."""
    later = frames[start:].roll((y, x), (1, 2))
    return torch.cat([frames[:start], later])
