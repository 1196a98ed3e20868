"""Fine-tuning over official splits: what is told before the first training."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.config import FinetuneRecipe
from crosspair.corpora import manifest_from_rows
from crosspair.errors import ManifestError, ModelError, RunError
from crosspair.training.finetune import finetune_and_test, finetune_over_splits


def test_splits_need_a_manifest_each(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--splits"):
        finetune_over_splits(FinetuneRecipe(), "split1.parquet", "random", tmp_path, [1, 2])


def written(path: Path, *labels: str | None, split: str = "test") -> Path:
    """A manifest with a training video of class x, and others with those labels."""
    rows = [
        {"pair_id": str(i), "path": "a.mp4", "title": "", "label": label, "split": of}
        for i, (label, of) in enumerate([("x", "train"), *((label, split) for label in labels)])
    ]
    return manifest_from_rows(rows, path).write(path).path


def test_a_fault_of_the_last_split_is_told_before_the_first_is_trained_on(tmp_path: Path) -> None:
    written(tmp_path / "split1.parquet", "x")
    manifest, run = str(tmp_path / "split{}.parquet"), tmp_path / "run"
    with pytest.raises(ManifestError, match=r"^manifest .*split2\.parquet does not exist"):
        finetune_over_splits(FinetuneRecipe(), manifest, "random", run, [1, 2])
    written(tmp_path / "split2.parquet")
    with pytest.raises(ManifestError, match=r"split2\.parquet: no video of split test to test on"):
        finetune_over_splits(FinetuneRecipe(), manifest, "random", run, [1, 2])
    with pytest.raises(ModelError, match=r"^model folder .*model1 does not exist$"):
        finetune_over_splits(FinetuneRecipe(), manifest, f"{tmp_path}/model{{}}", run, [1, 2])
    assert not run.exists()


def test_a_tested_video_without_a_label_is_told_before_the_training(tmp_path: Path) -> None:
    path = written(tmp_path / "m.parquet", "x", None)
    with pytest.raises(ManifestError, match=r"m.parquet: pair '2' of split test has no label$"):
        finetune_and_test(FinetuneRecipe(), str(path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_test_on_is_told_before_the_training(tmp_path: Path) -> None:
    path = written(tmp_path / "m.parquet")
    message = r"m.parquet: no video of split test to test on; give another by --test-split, or --no"
    with pytest.raises(ManifestError, match=message):
        finetune_and_test(FinetuneRecipe(), str(path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()
