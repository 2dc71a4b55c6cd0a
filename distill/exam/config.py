"""Which streams an exam has, and how many of each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from ..config import Bound, Checked, Natural, build_sized, require
from .plans import CATEGORIES, Plan, plan

_Streams = Annotated[int, Bound("0 to 999", lambda count: 0 <= count < 1000)]


@dataclass(frozen=True)
class ExamConfig(Checked):
    """An exam. Counts are streams, 0 leaves a category out; the streams of a smaller count are the first ones
    of a larger one.

    Attributes:
        size: what the counts are where they are not given, see `configs/exam.yaml`.
        seed: of the set; other seeds give other streams (to choose settings by, say).
        pixels: side of the frames.
        update: one thing changes, and all else is told again.
        retention: one thing changes, and nothing else is told.
        reuse: to another ground and back, of which the words say no more than the ground.
        returns: to another scene and back.
        drags: an object is held, drawn elsewhere and let go.
        switches: another scene, one object more, one fewer, or two switches within a second.
        long: a minute, plain or with two changes.
    """

    size: Literal["small", "medium", "full"] = "medium"
    seed: Natural = 0
    pixels: int = 64
    update: _Streams = 16
    retention: _Streams = 20
    reuse: _Streams = 8
    returns: _Streams = 8
    drags: _Streams = 12
    switches: _Streams = 16
    long: _Streams = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(any(self.counts.values()), ", ".join(self.counts), "at least one stream", 0)
        fits = 32 <= self.pixels <= 512 and self.pixels % 16 == 0
        require(fits, "pixels", "a multiple of 16, 32 to 512", self.pixels)

    @property
    def counts(self) -> dict[str, int]:
        """Streams of each category, in their order."""
        values = asdict(self)
        return {name: values[name] for name in CATEGORIES}

    def plans(self) -> list[Plan]:
        """Its streams, category by category."""
        return [
            plan(self.seed, name, number) for name, count in self.counts.items() for number in range(count)
        ]


def exam_config(given: Mapping[str, Any]) -> ExamConfig:
    """The config of given values, the counts of its `size` where they are not given; raises ConfigError."""
    return build_sized(ExamConfig, "exam.yaml", given)
