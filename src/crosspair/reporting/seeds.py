"""What numbers of a few seeds say: means, their spread, and differences over the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

_ROUNDING = 1e-9  # of differences that are the same


@dataclass(frozen=True)
class Mean:
    """A mean over so many seeds; the standard deviation of one seed (n − 1), None of a single."""

    value: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference of two rows over the seeds that both have.

    Attributes:
        error: its standard error; None of a single seed.
        interval: where it lies with 95 % by Student's t-distribution; None of a single seed, and
            where every seed happens to have the same difference, which tells nothing of its spread.
        count: seeds.
    """

    value: float
    error: float | None
    interval: tuple[float, float] | None
    count: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero: more than chance between seeds explains."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def mean_over(values: Mapping[int, float]) -> Mean:
    """The mean of the values of some seeds, at least one.

    >>> mean_over({0: 1.0, 1: 3.0}).deviation == math.sqrt(2)
    True
    """
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Mean(statistics.fmean(numbers), deviation, len(numbers))


def paired_difference(row: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """How much more ``row`` has than ``other``, seed by seed; None where they share no seed."""
    shared = sorted(row.keys() & other.keys())
    if not shared:
        return None
    mean = mean_over({seed: row[seed] - other[seed] for seed in shared})
    if mean.deviation is None:
        return Difference(mean.value, None, None, 1)
    error = mean.deviation / math.sqrt(mean.count)
    if error < _ROUNDING:
        return Difference(mean.value, 0.0, None, mean.count)
    reach = error * t_quantile(mean.count - 1)
    return Difference(mean.value, error, (mean.value - reach, mean.value + reach), mean.count)


def t_quantile(freedom: int) -> float:
    """What Student's t of so many degrees of freedom (at least 1) stays within with 95 %.

    >>> round(t_quantile(2), 3)
    4.303
    """
    low, high = 0.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability of -t to t, by the finite sums for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
