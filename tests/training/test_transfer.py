"""Means over official splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.config import FinetuneRecipe
from crosspair.corpora import manifest_of
from crosspair.errors import ManifestError, RunError
from crosspair.evaluation import Result
from crosspair.training.transfer import mean_results, transfer, transfer_over_splits


def result(split: int, value: float, of="trained", metric="top-1", **settings) -> Result:
    told = {"clips": 10, "official split": split, **settings}
    return Result("30 views", metric, value, of, count=10 * split, settings=told)


def test_the_mean_is_of_each_kind_by_itself() -> None:
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


def test_what_all_splits_have_in_common_is_told_of_the_mean() -> None:
    (mean,) = mean_results([result(1, 0.5, init="random"), result(2, 0.6, init="random")])
    assert mean.settings["init"] == "random"


def test_splits_need_a_manifest_each(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^--splits needs a manifest for each, as split\{\}\.parq"):
        transfer_over_splits(FinetuneRecipe(), "split1.parquet", "random", tmp_path, [1, 2])


def test_nothing_to_test_on_is_told_before_the_training(tmp_path: Path) -> None:
    rows = [{"pair_id": "a", "path": "a.mp4", "title": "", "label": "x", "split": "train"}]
    manifest = manifest_of(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    message = r"m.parquet: no video of split test to test on; give another by --test-split, or --no"
    with pytest.raises(ManifestError, match=message):
        transfer(FinetuneRecipe(), str(manifest.path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()
