"""How many steps fit: a subset of the trained levels, fewer near a deadline, more where there is time."""

import math
from itertools import pairwise
from typing import Any

import pytest

from streamgen import InputError
from streamgen.engine.budget import StepBudget, subset
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.stream.settings import StreamSettings

SIGMAS = FlowMatchScheduler(4, 3.0).sigmas()


@pytest.mark.parametrize("trained", [1, 2, 4, 5, 8])
def test_fewer_steps_are_a_subset_of_the_trained_levels(trained: int) -> None:
    sigmas = FlowMatchScheduler(trained, 3.0).sigmas()
    for steps in range(1, trained + 1):
        levels = subset(sigmas, steps)
        assert len(levels) == steps + 1
        assert set(levels) <= set(sigmas)
        assert (levels[0], levels[-1]) == (1.0, 0.0)
        assert all(high > low for high, low in pairwise(levels))
    assert subset(sigmas, trained) == sigmas
    for steps in (0, trained + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {trained} steps, found {steps}"):
            subset(sigmas, steps)


def test_settings_take_levels_of_the_checkpoint() -> None:
    trained = StreamSettings(steps=4, sampler="renoise")
    assert StreamSettings(steps=3, sampler="renoise").sampling(None, trained).sigmas == subset(SIGMAS, 3)
    assert trained.sampling(1, trained).sigmas == (1.0, 0.0)
    assert trained.sampling(4, trained).sigmas == SIGMAS
    # what was asked for beyond, another schedule and a solver of the ODE have levels of their own
    for own in (
        StreamSettings(steps=8, sampler="renoise"),
        StreamSettings(steps=3, sampler="renoise", shift=5.0),
        StreamSettings(steps=3, sampler="euler"),
    ):
        assert own.sampling(None, trained).sigmas == FlowMatchScheduler(own.steps, own.shift).sigmas()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (4, 4, 4, 4)),
        ({"steps": 1, "first_steps": 4}, (4, 1, 4, 1)),
        ({"steps": 1, "change_steps": 3}, (1, 3, 3, 1)),
        ({"steps": 1, "first_steps": 4, "change_steps": 2}, (4, 2, 4, 1)),
        ({"steps": 1, "first_steps": 4, "change_steps": 2, "budget_steps": 3}, (3, 3, 3, 3)),
    ],
)
def test_which_chunks_take_more(settings: dict[str, Any], expected: tuple[int, ...]) -> None:
    chosen = StreamSettings(**settings)
    cases = ((True, False), (False, True), (True, True), (False, False))
    assert tuple(chosen.steps_of(*case) for case in cases) == expected


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "100", True, None])
def test_deadlines_that_cannot_be(bad: Any) -> None:
    with pytest.raises(InputError, match="deadline: expected a positive number of milliseconds, found"):
        StepBudget.of(bad)


def made(budget: StepBudget, steps: int, step_ms: float, rebuilt: bool = False) -> StepBudget:
    """After a chunk on a machine whose steps take so long, and all else 20 ms; a rebuild 100."""
    times = {"denoise": steps * step_ms, "commit": 10.0, "decode": 10.0, "event": 100.0 * rebuilt}
    return budget.after({name: value / 1000 for name, value in times.items()}, steps, rebuilt)


def test_fewer_steps_when_late_and_more_when_there_is_time() -> None:
    budget = StepBudget.of(100)
    assert budget.choose(4, 4) == 4
    steps = 4
    taken = []
    # a machine that gets three times slower, and recovers
    for step_ms in (10, 10, 10, *[30] * 6, *[10] * 12):
        budget = made(budget, steps, step_ms)
        steps = budget.choose(steps, 4)
        taken.append(steps)
    assert taken[2] == 4
    assert taken[8] == 2
    assert taken[-1] == 4
    # one after the other, without a relapse in between
    assert taken[9:] == sorted(taken[9:])


def test_steps_do_not_flutter() -> None:
    """Where a step more would just about fit, it is not taken and given up in turns."""
    budget, steps = StepBudget.of(100), 2
    taken = set()
    for i in range(40):
        budget = made(budget, steps, 25 + (-1) ** i)
        steps = budget.choose(steps, 4)
        taken.add(steps)
    assert len(taken) == 1


def test_a_rebuild_is_counted_in() -> None:
    budget = StepBudget.of(150)
    for _ in range(3):
        budget = made(budget, 4, 10)
    assert (budget.choose(4, 4), budget.choose(4, 4, rebuilds=True)) == (4, 4)
    budget = made(budget, 4, 10, rebuilt=True)
    assert (budget.choose(4, 4), budget.choose(4, 4, rebuilds=True)) == (4, 2)


def test_a_deadline_that_cannot_be_met_is_told() -> None:
    budget, steps = StepBudget.of(15), 4
    for _ in range(12):
        assert budget.late == 0 or budget.note is None or steps == 1
        budget = made(budget, steps, 10)
        steps = budget.choose(steps, 4)
    assert steps == 1
    assert budget.note is not None
    assert budget.note.startswith("deadline: 15 ms cannot be met, a chunk of one step takes about 30 ms here")
    met = StepBudget.of(1000)
    for _ in range(12):
        met = made(met, 1, 10)
    assert met.note is None
    # a chunk that was given says nothing
    assert met.after({"decode": 9.0}, 0) is met
