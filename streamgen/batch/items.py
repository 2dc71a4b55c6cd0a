"""Items of work: one video each, with a name and a seed that no other process or shard changes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..suggest import shorten
from .job import RenderJob
from .names import item_name


@dataclass(frozen=True)
class RenderItem:
    """One video.

    Attributes:
        job: what to render, with the sample's own seed.
        name: of its files, without suffix.
        copy: how many rows before this one ask for the very same video.
    """

    job: RenderJob
    name: str
    copy: int = 0


@dataclass(frozen=True)
class Shard:
    """Every `count`-th item from `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "i/n", i from 0.

        Raises:
            InputError: another form, or i not below n.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if found is None or not int(found[1]) < int(found[2]):
            raise InputError(
                f"--shard: expected I/N such as 0/4, with I from 0 to N - 1, found {shorten(text)}"
            )
        return cls(int(found[1]), int(found[2]))

    def of(self, items: Sequence[RenderItem]) -> list[RenderItem]:
        """This shard's items, in order."""
        return list(items[self.index :: self.count])


def items_of(jobs: Iterable[RenderJob]) -> list[RenderItem]:
    """All samples of all jobs, in order."""
    items: list[RenderItem] = []
    seen: Counter[str] = Counter()
    for job in jobs:
        for number in range(job.samples):
            sample = job.sample(number)
            content = repr(sample.to_json())
            items.append(
                RenderItem(sample, item_name(job.index, sample.label, sample.seed), copy=seen[content])
            )
            seen[content] += 1
    return items
