"""Examples of an ablation: the clips found best and worst, and pairs with their titles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import embed_texts, feature_spec
from crosspair.evaluation.features import write_features
from crosspair.reporting.ablation import retrieval_examples
from crosspair.reporting.ablation_tables import Ablation, read_ablation
from tests.conftest import VideoMaker
from tests.evaluation.conftest import tiny_model
from tests.reporting.ablations import write_ablation

TITLES = ["dog", "cat", "dog cat", "nothing known 😍", "123 unheard of"]


@pytest.fixture
def ablation(tmp_path: Path, make_video: VideoMaker) -> Ablation:
    """The model finds every tested video but that of "cat", whose embedding is turned round."""
    for name in map(str, range(len(TITLES))):
        make_video(tmp_path / f"{name}.mp4", frames=40)
    rows = [
        {"pair_id": f"p{i}", "path": f"{i}.mp4", "title": title, "split": split}
        for i, (title, split) in enumerate(zip(TITLES, ["test"] * 3 + ["train", "test"], strict=True))
    ]
    manifest = manifest_from_rows(rows, tmp_path / "pairs.parquet").write(tmp_path / "pairs.parquet")
    found = read_ablation(write_ablation(tmp_path, {"objective": ("first",)}, seeds=(0,)))
    cell, model = found.cells[0].path, tiny_model().eval()
    model.save_pretrained(cell / "model")
    embedding = embed_texts(model, [*TITLES[:3], TITLES[4]])
    embedding[1] *= -1
    (cell / "features").mkdir()
    write_features(
        cell / "features", manifest,
        feature_spec(model, manifest, clips=1, precision="float32", device=torch.device("cpu")),
        {"visual": torch.zeros(4, 4), "embedding": embedding}, [0, 1, 2, 4], {},
    )  # fmt: skip
    path = str(tmp_path / "pairs.parquet")
    (cell / "job.json").write_text(json.dumps({"paths": {"evaluation": path, "training": path}}))
    return found


def test_queries_are_sorted_by_the_rank_of_their_clip(ablation: Ablation) -> None:
    found = retrieval_examples(ablation)
    assert found.unavailable == []
    assert {sheet.query for sheet in found.best[:2]} == {"dog", "dog cat"}
    worst = found.worst[0]
    assert worst.query == "cat"
    assert "3 of 3" in worst.note
    assert [tile.retrieved.correct for tile in worst.tiles] == [False, False, True]
    assert found.best[0].tiles[0].retrieved.correct


def test_pairs_have_a_frame_and_a_clean_title(ablation: Ablation) -> None:
    ((tile, example),) = retrieval_examples(ablation).pairs
    assert tile.frames.shape[0] > 1
    assert (example.raw, example.clean) == (TITLES[3], "nothing known")


def test_changed_manifest_does_not_match_the_features(ablation: Ablation, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    manifest = Manifest.read(path)
    manifest.take(range(len(manifest))[::-1]).write(path)
    (message,) = retrieval_examples(ablation).unavailable
    assert str(path) in message


def test_deleted_files_are_reported(ablation: Ablation, tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        (tmp_path / f"{name}.mp4").unlink()
    found = retrieval_examples(ablation)
    assert found.unavailable == []
    assert all(".mp4" in tile.error for tile in found.best[0].tiles)
    shutil.rmtree(ablation.cells[0].path / "features")
    (message,) = retrieval_examples(ablation).unavailable
    assert "features" in message
    (tmp_path / "pairs.parquet").unlink()
    messages = retrieval_examples(ablation).unavailable
    assert len(messages) == 2
    assert all("pairs.parquet" in message for message in messages)
    failed = replace(ablation, cells=[replace(ablation.cells[0], status="failed")])
    assert len(retrieval_examples(failed).unavailable) == 1
