"""Means over seeds and paired differences, compared with hand-computed values and scipy."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crosspair.reporting.ablation_tables import is_significant, paired_difference

VALUES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8)


def test_three_seeds_by_hand() -> None:
    found = paired_difference(pd.Series([0.5, 0.7, 0.6]), pd.Series([0.4, 0.5, 0.3]))
    assert found["difference"] == pytest.approx(0.2)
    assert found["error"] == pytest.approx(0.1 / math.sqrt(3))
    reach = 4.302652729749464 * 0.1 / math.sqrt(3)  # 97.5th percentile for two degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((0.2 - reach, 0.2 + reach), abs=1e-9)
    assert not is_significant(found)
    assert is_significant({"low": 0.1, "high": 0.2})
    assert is_significant({"low": -0.2, "high": -0.1})


@given(VALUES, VALUES)
def test_difference_matches_paired_t_test(one: list[float], other: list[float]) -> None:
    count = min(len(one), len(other))
    differences = [a - b for a, b in zip(one, other, strict=False)]
    found = paired_difference(pd.Series(one), pd.Series(other))
    assert found["difference"] == pytest.approx(sum(differences) / count, abs=1e-12)
    if found["error"] > 1e-9:
        expected = stats.ttest_rel(one[:count], other[:count]).confidence_interval(0.95)
        interval = found["low"], found["high"]
        assert interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_only_common_seeds_are_compared() -> None:
    one = pd.Series({0: 0.5, 1: 9.0})
    assert paired_difference(one, pd.Series({0: 0.25, 2: 7.0})) == {"difference": 0.25}
    assert paired_difference(one, pd.Series({3: 1.0})) == {}


def test_equal_differences_have_no_interval() -> None:
    found = paired_difference(pd.Series([0.3, 0.4]), pd.Series([0.1, 0.2]))
    assert found == {"difference": pytest.approx(0.2), "error": 0.0}
