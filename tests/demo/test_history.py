"""What a viewer can go back to stays within its bytes, whatever they do."""

from dataclasses import dataclass

import pytest

from demo import history
from demo.history import Mark, Marks, Take, Takes

MEGABYTE = 2**20


@dataclass(frozen=True)
class Weight:
    """A snapshot that weighs something."""

    number: int
    size: int = MEGABYTE

    def size_bytes(self) -> int:
        return self.size


def held(marks: Marks, takes: Takes) -> int:
    """Bytes of all that is kept, shared snapshots once."""
    kept = {id(mark.snapshot): mark.snapshot for mark in marks}
    for take in takes:
        kept |= {id(mark.snapshot): mark.snapshot for mark in take.marks}
        kept[id(take.snapshot)] = take.snapshot
    return sum(one.size_bytes() for one in kept.values())


def wander(budget: int) -> tuple[int, Marks, Takes]:
    """Play, go back to the second mark, play on, again and again; the most bytes held, and what is kept."""
    marks, takes, most, frame, made = Marks(16, budget), Takes(budget), 0, 0, 0
    for turn in range(12):
        for _ in range(20):
            frame, made = frame + 16, made + 1
            marks.add(frame, Weight(made), "")
            takes.fit(marks)
            most = max(most, held(marks, takes))
        made += 1
        takes.add(Take(takes.next_id(), frame, "", 0, Weight(made), "", None, (), tuple(marks)))
        frame = [*marks][1].frame
        marks.cut(frame)
        takes.fit(marks)
        most = max(most, held(marks, takes))
        assert takes, turn
    return most, marks, takes


def test_branches_and_marks_share_one_budget() -> None:
    most, marks, takes = wander(30 * MEGABYTE)
    assert most <= 30 * MEGABYTE
    assert len([*takes]) == history.MAX_TAKES
    # the newest branch keeps its marks longest
    assert [*takes][-1].marks
    assert not next(iter(takes)).marks
    assert [*marks]


def test_without_it_branches_multiply_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Takes, "fit", lambda self, playing: None)
    most, _, _ = wander(30 * MEGABYTE)
    assert most > 60 * MEGABYTE


def test_what_is_shared_counts_once() -> None:
    shared = tuple(Mark(i, 16 * i, Weight(i), "") for i in range(1, 5))
    takes = Takes(6 * MEGABYTE)
    takes.add(Take(1, 80, "", 0, Weight(9), "", None, (), shared))
    takes.fit(shared)
    assert next(iter(takes)).marks == shared


def test_the_newest_branch_stays_in_any_case() -> None:
    takes = Takes(MEGABYTE)
    for number in range(3):
        takes.add(Take(number, 16, "", 0, Weight(number, 5 * MEGABYTE), "", None, (), ()))
    takes.fit(())
    assert [take.id for take in takes] == [2]
