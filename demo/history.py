"""What a viewer can go back to: marks on the way of the stream, and the branches that were left.

Both are bounded, in number and together in bytes: marks thin out with age, those of branches that were left
go first, and the oldest branch gives way.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

MAX_MARKS = 24
MAX_TAKES = 4
# Marks reach back this many spacings at most.
MAX_REACH = 120


class Saved(Protocol):
    """A snapshot of a stream."""

    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        ...


@dataclass(frozen=True)
class Mark:
    """A moment to go back to: the snapshot before frame `frame`, the last picture before it as a URL."""

    id: int
    frame: int
    snapshot: Saved
    picture: str

    def row(self) -> dict[str, Any]:
        """For the page."""
        return {"id": self.id, "frame": self.frame, "picture": self.picture}


@dataclass(frozen=True)
class Take:
    """A branch that was left at frame `frame`, with everything needed to go on with it."""

    id: int
    frame: int
    prompt: str
    seed: int
    snapshot: Saved
    picture: str
    lineage: Any
    strip: tuple[dict[str, Any], ...]
    marks: tuple[Mark, ...]

    def row(self) -> dict[str, Any]:
        """For the page."""
        place = {"id": self.id, "frame": self.frame, "picture": self.picture}
        return place | {"prompt": self.prompt, "seed": self.seed}


class Marks:
    """Snapshots of the branch that plays, in order; about every `spacing` frames, fewer the older they are.

    Args:
        spacing: frames between new marks, at least.
        budget: bytes that all snapshots may take; one is kept in any case.
    """

    def __init__(self, spacing: int, budget: int) -> None:
        self.spacing, self.budget = spacing, budget
        self._marks: list[Mark] = []
        self._made = 0

    def __iter__(self) -> Iterator[Mark]:
        return iter(tuple(self._marks))

    def wants(self, frame: int) -> bool:
        """Whether it is time for a mark before frame `frame`."""
        return frame > 0 and (not self._marks or frame - self._marks[-1].frame >= self.spacing)

    def affords(self, size: int) -> bool:
        """Whether snapshots of so many bytes are kept at all: one that alone is more than all may take is not
        even made, since it would double what a large model's stream takes.
        """
        return size <= self.budget

    def why_none(self, size: int) -> str:
        """Why there are no moments to go back to where one takes so many bytes; "" where there are."""
        if self.affords(size):
            return ""
        taken, most = size / 2**20, self.budget / 2**20
        return f"Going back is off: a moment takes {taken:,.0f} MiB, {most:,.0f} are allowed (--rewind-mb)."

    def add(self, frame: int, snapshot: Saved, picture: str) -> Mark:
        """Keep a moment; older ones may give way."""
        self._made += 1
        mark = Mark(self._made, frame, snapshot, picture)
        self._marks.append(mark)
        size = max(1, snapshot.size_bytes())
        most = max(1, min(MAX_MARKS, self.budget // size))
        while len(self._marks) > most:
            del self._marks[self._dispensable(frame)]
        return mark

    def find(self, number: int) -> Mark | None:
        """The mark of that number, if it is still kept."""
        return next((mark for mark in self._marks if mark.id == number), None)

    def before(self, frame: int) -> Mark | None:
        """The last mark that is not behind frame `frame`, if one is kept."""
        return next((mark for mark in reversed(self._marks) if mark.frame <= frame), None)

    def cut(self, frame: int) -> None:
        """Forget what lies after frame `frame`: the stream went back to it."""
        self._marks = [mark for mark in self._marks if mark.frame <= frame]

    def put_back(self, marks: tuple[Mark, ...]) -> None:
        """Marks of a branch that plays again."""
        self._marks = list(marks)

    def _dispensable(self, now: int) -> int:
        """Of all but the newest, the one whose neighbours are closest for their age."""
        if len(self._marks) <= 2:
            return 0

        def gap(index: int) -> float:
            apart = self._marks[index + 1].frame - self._marks[index - 1].frame
            return apart / (now - self._marks[index].frame + self.spacing)

        reach = now - self._marks[0].frame
        if reach > MAX_REACH * self.spacing:
            return 0
        return min(range(1, len(self._marks) - 1), key=gap)


class Takes:
    """The last few branches that were left.

    Args:
        budget: bytes that their snapshots may take together with those of the branch that plays; the newest
            branch is kept in any case.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._takes: list[Take] = []
        self._made = 0

    def __iter__(self) -> Iterator[Take]:
        return iter(tuple(self._takes))

    def next_id(self) -> int:
        """A number for a new one."""
        self._made += 1
        return self._made

    def add(self, take: Take) -> None:
        """Keep a branch; beyond four the oldest gives way."""
        self._takes = [*self._takes, take][-MAX_TAKES:]

    def fit(self, playing: Iterable[Mark]) -> None:
        """Let go of what exceeds the budget: marks of branches, oldest branch first, then branches.

        Args:
            playing: marks of the branch that plays; snapshots that branches share are counted once.
        """
        playing, takes = tuple(playing), list(self._takes)
        for index, take in enumerate(takes):
            if _bytes(playing, takes) > self.budget:
                takes[index] = replace(take, marks=())
        while len(takes) > 1 and _bytes(playing, takes) > self.budget:
            del takes[0]
        self._takes = takes

    def remove(self, number: int) -> Take | None:
        """Take a branch out, if it is still kept."""
        found = next((take for take in self._takes if take.id == number), None)
        self._takes = [take for take in self._takes if take is not found]
        return found

    def clear(self) -> None:
        """Forget all."""
        self._takes = []


def _bytes(playing: Iterable[Mark], takes: Iterable[Take]) -> int:
    """Bytes of all snapshots, each counted once."""
    snapshots: list[Saved] = [mark.snapshot for mark in playing]
    for take in takes:
        snapshots += [take.snapshot, *(mark.snapshot for mark in take.marks)]
    return sum(one.size_bytes() for one in {id(one): one for one in snapshots}.values())
