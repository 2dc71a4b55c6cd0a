"""Which streams an exam has, and how many of each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..config import build, require
from .plans import CATEGORIES, Plan, plan

Size = Literal["small", "medium", "full"]
_SIZES: tuple[Size, ...] = ("small", "medium", "full")
#: Streams of each size; each has every kind of stream, but for `long` of the small one.
_COUNTS: Mapping[str, tuple[int, int, int]] = {
    "update": (4, 16, 64),
    "retention": (5, 20, 60),
    "reuse": (2, 8, 32),
    "returns": (2, 8, 32),
    "drags": (3, 12, 48),
    "switches": (4, 16, 64),
    "long": (1, 4, 16),
}
_MOST = 1000


@dataclass(frozen=True)
class ExamConfig:
    """An exam. Counts are streams, 0 leaves a category out; the streams of a smaller count are the first ones
    of a larger one.

    Attributes:
        size: what the counts are where they are not given, see `exam_config`.
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

    size: Size = "medium"
    seed: int = 0
    pixels: int = 64
    update: int = 16
    retention: int = 20
    reuse: int = 8
    returns: int = 8
    drags: int = 12
    switches: int = 16
    long: int = 4

    def __post_init__(self) -> None:
        counts = self.counts
        for name, count in counts.items():
            require(0 <= count < _MOST, name, f"0 to {_MOST - 1}", count)
        require(sum(counts.values()) > 0, ", ".join(counts), "at least one stream", 0)
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        require(
            32 <= self.pixels <= 512 and self.pixels % 16 == 0,
            "pixels",
            "a multiple of 16, 32 to 512",
            self.pixels,
        )

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
    """The config of given values, the counts of its `size` where they are not given.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.
    """
    size = given.get("size", "medium")
    require(size in _SIZES, "size", f"one of {', '.join(_SIZES)}", size)
    place = _SIZES.index(size)
    return build(ExamConfig, {name: counts[place] for name, counts in _COUNTS.items()} | dict(given))
