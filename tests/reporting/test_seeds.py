"""Means over seeds and paired differences, compared with hand-computed values and scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crosspair.reporting.ablation_tables import mean_over_seeds, paired_difference, t_quantile

VALUES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8)


def test_three_seeds_by_hand() -> None:
    row, first = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.4, 1: 0.5, 2: 0.3}
    found = paired_difference(row, first)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.interval == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)
    assert not found.significant
    assert mean_over_seeds(row).deviation == pytest.approx(0.1)


@given(VALUES, VALUES)
def test_difference_matches_paired_t_test(one: list[float], other: list[float]) -> None:
    count = min(len(one), len(other))
    differences = [a - b for a, b in zip(one, other, strict=False)]
    found = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    assert found is not None
    assert found.count == count
    assert found.value == pytest.approx(sum(differences) / count, abs=1e-12)
    if found.error and found.error > 1e-9:
        expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-7)
        assert found.significant == (not expected.low <= 0 <= expected.high)


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 200])
def test_t_quantile_matches_scipy(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-6)


def test_only_common_seeds_are_compared() -> None:
    found = paired_difference({0: 0.5, 1: 9.0}, {0: 0.25, 2: 7.0})
    assert found is not None
    assert (found.value, found.error, found.interval, found.count) == (0.25, None, None, 1)
    assert not found.significant
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_have_no_interval() -> None:
    found = paired_difference({0: 0.3, 1: 0.4}, {0: 0.1, 1: 0.2})
    assert found is not None
    assert (found.error, found.interval, found.significant) == (0.0, None, False)


def test_a_single_seed_has_no_deviation() -> None:
    assert mean_over_seeds({3: 0.5}).deviation is None
