"""What figures of a few streams are worth: intervals, and comparisons of streams under two conditions.

All of it is a function of the numbers alone: resampling draws from a fixed seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

#: Quantile of the normal distribution that leaves 2.5 % above it.
_Z = 1.959963984540054
RESAMPLES = 2000
_SEED = 20_261_130
#: Of (R, n, k) resampled rows of k numbers each, the figure (R,).
Statistic = Callable[[Tensor], Tensor]
K = TypeVar("K")


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval over `n` streams; None where there are none to tell."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson, 1927): `right` of `count`.

    `right` may be a sum of numbers in [0, 1], such as shares of frames, one per stream: their spread is at
    most that of right and wrong, so that the interval is wide enough, and unlike a bootstrap's it does not
    shrink to nothing where all are 1.
    """
    if not count:
        return 0.0, 1.0
    share, square = right / count, _Z**2 / count
    centre = (share + square / 2) / (1 + square)
    reach = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    # exact where rounding would leave a trace of a number
    low = centre - reach if right > 0 else 0.0
    return max(0.0, low), min(1.0, centre + reach)


def bootstrap(rows: Tensor, statistic: Statistic, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile 95 % interval (Efron, 1979) of `statistic` of rows (n, k), n at least 1, drawn anew with
    replacement `resamples` times from a fixed seed.
    """
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randint(len(rows), (resamples, len(rows)), generator=generator)
    found = torch.cat([statistic(rows[part]) for part in drawn.split(100)]).double()
    found = found[found.isfinite()]
    if not len(found):
        return math.nan, math.nan
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def share(values: Sequence[float]) -> Figure:
    """Mean of numbers in [0, 1], one per stream, with Wilson's interval."""
    if not values:
        return Figure(None, None, None, 0)
    return Figure(sum(values) / len(values), *wilson(sum(values), len(values)), len(values))


def resampled(rows: Sequence[Sequence[float]], statistic: Statistic) -> Figure:
    """A statistic of rows of numbers, one row per stream, with a bootstrap's interval."""
    if not rows:
        return Figure(None, None, None, 0)
    table = torch.tensor(rows, dtype=torch.float64)
    low, high = bootstrap(table, statistic)
    return Figure(_finite(float(statistic(table[None])[0])), _finite(low), _finite(high), len(rows))


def average(values: Sequence[float]) -> Figure:
    """Mean of numbers, one per stream."""
    return resampled([[value] for value in values], lambda rows: rows[..., 0].mean(-1))


def median(values: Sequence[float]) -> Figure:
    """Median of numbers, one per stream."""
    return resampled([[value] for value in values], lambda rows: rows[..., 0].quantile(0.5, -1))


def ratio(pairs: Sequence[Sequence[float]]) -> Figure:
    """Mean of the second numbers of pairs over that of the first ones."""
    return resampled(pairs, lambda rows: rows[..., 1].mean(-1) / rows[..., 0].mean(-1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test (1947): of the pairs that differ, `only_first` are right in the
    first condition alone and `only_second` in the second alone; without a difference either is a coin's toss.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(count, i) for i in range(fewer + 1)) / 2**count)


@dataclass(frozen=True)
class Paired:
    """The same streams under two conditions.

    Attributes:
        n: streams that both have.
        first, second: means over these.
        difference: second minus first, with its bootstrap interval `low` to `high` over pairs.
        only_first, only_second, p: right in one alone, and McNemar's p; None where numbers are not 0 or 1.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two conditions on equal streams, at least one; the numbers of each are in the same order."""
    rows = torch.tensor([first, second], dtype=torch.float64).T
    low, high = bootstrap(rows, lambda some: (some[..., 1] - some[..., 0]).mean(-1))
    means = rows.mean(0).tolist()
    found = Paired(len(rows), means[0], means[1], means[1] - means[0], low, high)
    if not bool(((rows == 0) | (rows == 1)).all()):
        return found
    alone = (int((rows[:, 0] > rows[:, 1]).sum()), int((rows[:, 0] < rows[:, 1]).sum()))
    return replace(found, only_first=alone[0], only_second=alone[1], p=mcnemar(*alone))


def paired_marks(first: Mapping[K, float | None], second: Mapping[K, float | None]) -> Paired | None:
    """Compare the numbers that two conditions have by equal keys; None without any."""
    both = [
        (one, two) for key, one in first.items() if one is not None and (two := second.get(key)) is not None
    ]
    return paired(*zip(*both, strict=True)) if both else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
