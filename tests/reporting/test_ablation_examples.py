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
from crosspair.evaluation.feature_cache import write_features
from crosspair.reporting.ablation_figures import examples
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
        for i, (title, split) in enumerate(
            zip(TITLES, ["test"] * 3 + ["train", "test"], strict=True)
        )
    ]
    manifest = manifest_from_rows(rows, tmp_path / "pairs.parquet").write(
        tmp_path / "pairs.parquet"
    )
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
    (cell / "job.json").write_text(json.dumps({"videos": path, "manifest": path}))
    return found


def test_best_and_worst_are_by_the_rank_of_ones_own(ablation: Ablation) -> None:
    found = examples(ablation)
    assert found.lacking == []
    assert {sheet.query for sheet in found.best[:2]} == {"dog", "dog cat"}
    worst = found.worst[0]
    assert worst.query == "cat"
    assert worst.note == "Its own clip is at place 3 of 3."
    assert [tile.found.right for tile in worst.tiles] == [False, False, True]
    assert found.best[0].tiles[0].found.right


def test_pairs_have_a_frame_and_what_cleaning_makes_of_the_title(ablation: Ablation) -> None:
    ((tile, example),) = examples(ablation).pairs
    assert tile.frames.shape[0] > 1
    assert (example.raw, example.clean) == (TITLES[3], "nothing known")


def test_a_manifest_that_was_made_anew_is_not_shown_beside_old_features(
    ablation: Ablation, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.parquet"
    manifest = Manifest.read(path)
    manifest.take(range(len(manifest))[::-1]).write(path)
    (told,) = examples(ablation).lacking
    assert told == (
        f"Retrievals of the first row lack: {path} has other pairs than when the cell was tested"
    )


def test_what_is_gone_since_is_told(ablation: Ablation, tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        (tmp_path / f"{name}.mp4").unlink()
    found = examples(ablation)
    assert found.lacking == []
    assert {tile.error.partition(": ")[2] for tile in found.best[0].tiles} == {"no such file"}
    shutil.rmtree(ablation.cells[0].path / "features")
    (told,) = examples(ablation).lacking
    assert told.startswith("Retrievals of the first row lack: ")
    (tmp_path / "pairs.parquet").unlink()
    assert [line.partition(": ")[0] for line in examples(ablation).lacking] == [
        "Retrievals of the first row lack", "Examples of pairs lack",
    ]  # fmt: skip
    none = replace(ablation, cells=[replace(ablation.cells[0], status="failed")])
    assert examples(none).lacking == ["No cell of the first row is done: its retrievals lack."]
