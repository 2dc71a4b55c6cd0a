"""Intervals and paired comparisons, against numbers that can be looked up or counted."""

import math

import pytest
import torch

from distill.evaluation.intervals import average, bootstrap, mcnemar, median, paired, ratio, share, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 5), (4, 16), (48, 64), (63.5, 64), (64, 64)])
def test_wilson_holds_all_shares_that_the_score_test_does_not_reject(right: float, count: int) -> None:
    found = right / count
    for bound in wilson(right, count):
        if 0 < bound < 1:
            # 1.96 standard deviations of the bound itself away
            assert abs(found - bound) == pytest.approx(
                1.95996 * math.sqrt(bound * (1 - bound) / count), rel=1e-3
            )
    assert wilson(0, 0) == (0, 1)


def test_intervals_cover_what_they_should() -> None:
    """Of samples from a known distribution about 95 % have its mean inside their interval."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        values = torch.rand(40, generator=generator).square().tolist()
        found = average(values)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1 / 3 <= found.high
    assert 88 <= covered <= 100


def test_figures_are_functions_of_their_numbers() -> None:
    values = [0.1, 0.5, 0.9, 0.4]
    assert average(values) == average(values)
    assert average(values).value == pytest.approx(0.475)
    assert median(values).value == pytest.approx(0.45)
    assert ratio([(1, 2), (3, 2)]).value == pytest.approx(1.0)
    assert share([1.0, 1.0]).low == pytest.approx(0.3424, abs=1e-3)
    for make in (share, average, median, ratio):
        assert make([]).value is None  # type: ignore[operator]
        assert make([]).n == 0  # type: ignore[operator]
    low, high = bootstrap(torch.ones(5, 1), lambda rows: rows[..., 0].mean(-1))
    assert low == high == 1


def test_mcnemar_is_a_sign_test_of_those_that_differ() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1
    assert mcnemar(10, 2) == pytest.approx(2 * sum(math.comb(12, i) for i in range(3)) / 2**12)
    assert mcnemar(10, 2) == mcnemar(2, 10)


def test_pairs_see_what_two_means_do_not() -> None:
    """A small constant gain on numbers that differ widely."""
    first = [float(i) for i in range(20)]
    second = [value + 0.1 for value in first]
    found = paired(first, second)
    assert found.low > 0
    assert found.difference == pytest.approx(0.1)
    assert found.p is None
    shares = paired([1.0] * 8 + [0.0], [0.0] * 8 + [1.0])
    assert (shares.only_first, shares.only_second) == (8, 1)
    assert shares.p == pytest.approx(mcnemar(8, 1))
