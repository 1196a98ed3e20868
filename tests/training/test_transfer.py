"""Fine-tuning over official splits: inputs are checked before the first training."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.config import FinetuneRecipe
from crosspair.corpora import manifest_from_rows
from crosspair.errors import ManifestError, ModelError, RunError
from crosspair.training.finetune import finetune_and_test, finetune_over_splits


def test_splits_require_a_manifest_pattern(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--splits"):
        finetune_over_splits(FinetuneRecipe(), "split1.parquet", "random", tmp_path, [1, 2])


def write_manifest(path: Path, *labels: str | None, split: str = "test") -> Path:
    """Write a manifest with a training video of class x and videos with the given labels."""
    rows = [
        {"pair_id": str(i), "path": "a.mp4", "title": "", "label": label, "split": name}
        for i, (label, name) in enumerate([("x", "train"), *((label, split) for label in labels)])
    ]
    return manifest_from_rows(rows, path).write(path).path


def test_invalid_last_split_raises_before_the_first_training(tmp_path: Path) -> None:
    write_manifest(tmp_path / "split1.parquet", "x")
    manifest, run = str(tmp_path / "split{}.parquet"), tmp_path / "run"
    with pytest.raises(ManifestError, match=r"split2\.parquet"):
        finetune_over_splits(FinetuneRecipe(), manifest, "random", run, [1, 2])
    write_manifest(tmp_path / "split2.parquet")
    with pytest.raises(ManifestError, match=r"split2\.parquet: split test"):
        finetune_over_splits(FinetuneRecipe(), manifest, "random", run, [1, 2])
    with pytest.raises(ModelError, match="model1"):
        finetune_over_splits(FinetuneRecipe(), manifest, f"{tmp_path}/model{{}}", run, [1, 2])
    assert not run.exists()


def test_unlabelled_test_video_raises_before_the_training(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.parquet", "x", None)
    with pytest.raises(ManifestError, match=r"m\.parquet: .*'2'"):
        finetune_and_test(FinetuneRecipe(), str(path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_test_split_raises_before_the_training(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: split test"):
        finetune_and_test(FinetuneRecipe(), str(path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()
