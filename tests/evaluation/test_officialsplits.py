"""Means over official splits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from crosspair.evaluation import Result, provenance, read_results
from crosspair.evaluation.results import mean_results, write_split_means


def result(split: int, value: float, of="trained", metric="top-1", **settings) -> Result:
    settings = {"clips": 10, "official split": split, **settings}
    return Result("30 views", metric, value, of, count=10 * split, settings=settings)


def test_means_are_by_metric_and_subject() -> None:
    each = [
        result(1, 0.5, init="CPD a"), result(1, 0.1, "chance"), result(1, 0.9, metric="top-5"),
        result(2, 0.6, init="CPD b"), result(2, 0.1, "chance"), result(2, 0.8, metric="top-5"),
        result(3, 0.1, init="CPD c"), result(3, 0.1, "chance"), result(3, 1.0, metric="top-5"),
    ]  # fmt: skip
    trained, chance, top5 = mean_results(each)
    assert trained.value == pytest.approx(0.4)
    assert trained.details == {"draws": [0.5, 0.6, 0.1]}
    assert trained.settings == {"clips": 10, "mean of splits": [1, 2, 3]}
    assert trained.count == 60
    assert chance.value == pytest.approx(0.1)
    assert top5.value == pytest.approx(0.9)


def test_common_settings_of_the_splits_are_kept() -> None:
    (mean,) = mean_results([result(1, 0.5, init="random"), result(2, 0.6, init="random")])
    assert mean.settings["init"] == "random"


def test_features_are_not_averaged_with_one_another() -> None:
    both = [
        dataclasses.replace(result(split, value), feature=feature)
        for split in (1, 2)
        for feature, value in (("visual", 0.2), ("embedding", 0.4))
    ]
    assert [(mean.feature, mean.value) for mean in mean_results(both)] == [
        ("visual", pytest.approx(0.2)), ("embedding", pytest.approx(0.4)),
    ]  # fmt: skip


def test_three_like_intervals_give_one_narrower_by_the_root_of_three() -> None:
    each = [dataclasses.replace(result(s, 0.5), interval=(0.4, 0.6)) for s in (1, 2, 3)]
    (mean,) = mean_results(each)
    assert mean.interval == pytest.approx((0.5 - 0.1 / math.sqrt(3), 0.5 + 0.1 / math.sqrt(3)))
    without = dataclasses.replace(each[0], interval=None)
    assert mean_results([without, *each[1:]])[0].interval is None


def test_the_file_holds_means_then_each_split_and_chance_once(tmp_path: Path) -> None:
    origins = {
        split: provenance(recipe="r", model=f"m{split}", manifest="d", seed=0, manifest_file=f"s{split}.parquet")
        for split in (1, 2)
    }
    found = {split: ([result(split, split / 10), result(split, 0.1, "chance")], origins[split]) for split in (1, 2)}
    shown = write_split_means(tmp_path / "results.json", found)
    results, origin = read_results(tmp_path / "results.json")
    assert [each.value for each in results] == pytest.approx([0.15, 0.1, 0.1, 0.2])
    assert results[:2] == shown
    assert [each.settings["official split"] for each in results[2:]] == [1, 2]
    assert (origin.model, origin.manifest) == ("m1+m2", "d")
    assert origin.manifest_file == "s1.parquet+s2.parquet"
