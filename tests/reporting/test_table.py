"""Comparison with chance and random weights: ratios, ranks and duplicates."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from crosspair.errors import RunError
from crosspair.evaluation import Result
from crosspair.reporting import compare_with_baselines
from crosspair.reporting.tables import markdown_table


def test_ratios_by_hand(results: list[Result]) -> None:
    knn, rank = compare_with_baselines(results).itertuples()
    assert (knn.chance, knn.random, knn.trained) == (0.0625, 0.25, 0.75)
    assert (knn.over_chance, knn.over_random) == (12.0, 3.0)
    assert (rank.chance, rank.random, rank.trained) == (100.5, 80.0, 4.0)
    assert (rank.over_chance, rank.over_random) == (25.125, 20.0)


def test_the_order_of_results_within_a_row_does_not_matter(results: list[Result]) -> None:
    found = compare_with_baselines(results[::-1]).sort_values("protocol", ignore_index=True)
    pd.testing.assert_frame_equal(found, compare_with_baselines(results))


def test_chance_without_a_feature_applies_to_all_features(results: list[Result]) -> None:
    other = replace(results[2], feature="embedding", value=0.5)
    first, second = compare_with_baselines([*results[:3], other]).itertuples()
    assert (first.feature, second.feature) == ("visual", "embedding")
    assert second.over_chance == 8.0
    assert second.over_random is None


def test_no_ratio_to_zero(results: list[Result]) -> None:
    frame = compare_with_baselines([replace(results[1], value=0.0), results[2]])
    assert frame.over_random.tolist() == [None]


def test_duplicate_results_are_refused(results: list[Result]) -> None:
    with pytest.raises(RunError, match=r"trained.*kNN, top-1 \(visual"):
        compare_with_baselines([*results, replace(results[2], value=0.8)])


def test_interval_follows_the_trained_value(results: list[Result]) -> None:
    trained = replace(results[2], interval=(0.705, 0.79))
    assert "| 75.0 % (70.5–79.0) |" in markdown_table([*results[:2], trained])
    assert "| 75.0 % |" in markdown_table(results[:3])
