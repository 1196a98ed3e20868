"""Differences over seeds and test videos, compared with hand-computed values, loops, and scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crosspair.reporting.ablation_results import estimate_difference, is_significant

VALUES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8)


def test_three_seeds_by_hand() -> None:
    found = estimate_difference(np.array([0.1, 0.2, 0.3]))
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
    found = estimate_difference(np.array(differences))
    assert found["difference"] == pytest.approx(sum(differences) / count, abs=1e-12)
    if found["error"] > 1e-9:
        expected = stats.ttest_rel(one[:count], other[:count]).confidence_interval(0.95)
        interval = found["low"], found["high"]
        assert interval == pytest.approx((expected.low, expected.high), abs=1e-7)


@pytest.mark.parametrize("recordings", [range(10), [0, 0, 1, 1, 1, 2, 3, 3, 4, 4]])
def test_variance_over_test_videos_is_added(recordings: Sequence[int]) -> None:
    seeds, videos = [0.0, 0.2, 0.1], [1.0, 0.5, 0.0, 0.0, -0.5, 1.0, 0.0, -1.0, 0.0, 0.0]
    mean, count = sum(videos) / 10, max(recordings) + 1
    correct, tested, deviations = [0.0] * count, [0] * count, [0.0] * count
    for recording, value in zip(recordings, videos, strict=True):
        correct[recording] += value
        tested[recording] += 1
        deviations[recording] += (value - mean) / 10
    over_videos = sum(each**2 for each in deviations) * count / (count - 1)
    over_seeds = 0.1**2 / 3
    found = estimate_difference(np.array(seeds), np.array(correct), np.array(tested))
    assert found["error"] == pytest.approx(math.sqrt(over_seeds + over_videos))
    reach = math.sqrt(4.302652729749464**2 * over_seeds + 1.959963984540054**2 * over_videos)
    assert (found["low"], found["high"]) == pytest.approx((0.1 - reach, 0.1 + reach))


def test_too_few_seeds_have_no_interval() -> None:
    assert estimate_difference(np.array([0.25])) == {"difference": 0.25}
    assert estimate_difference(np.array([])) == {}
    assert estimate_difference(np.array([0.2, 0.2])) == {"difference": pytest.approx(0.2), "error": 0.0}
