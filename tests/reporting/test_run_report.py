"""The report of a run folder: content, missing inputs, escaping; histories and contact sheets."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.evaluation import Provenance, Result, write_results
from crosspair.models import Classifier, build_model
from crosspair.recipes import read_recipe
from crosspair.reporting.examples import ContactSheet, Examples, retrieval_examples
from crosspair.reporting.run_report import (
    finite_values,
    learning_curves,
    read_history,
    retrieval_series,
    write_run_report,
)
from crosspair.training.run import RunFolder
from tests.conftest import VideoMaker
from tests.reporting.conftest import Html

SMALL = ("clip.size=32", "clip.frames=4", "video.depth=10", "video.width=4", "training.workers=0")


@pytest.fixture(scope="module")
def manifest(make_video: VideoMaker, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten videos: five classes, splits train and val in turn."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(10):
        make_video(folder / f"{i}.mp4", frames=20, size=(64, 48))
        texts = {"title": f"a <i>dog</i> number {i}", "label": f"Class{i // 2}"}
        rows.append({"pair_id": f"{i}", "path": f"{i}.mp4", "split": ("train", "val")[i % 2], **texts})
    return manifest_from_rows(rows, folder / "m.parquet").write(folder / "m.parquet")


def make_run(folder: Path, manifest: Manifest, kind: type[Recipe | FinetuneRecipe] = Recipe) -> Path:
    """Add everything but metrics to a run folder."""
    name = "laptop" if kind is Recipe else "laptop-finetune"
    recipe = read_recipe(kind, name, SMALL)
    file = str(manifest.path.absolute())
    RunFolder(folder, recipe, manifest.hash, resume=True, world=World(), origin={"init": "random"}, manifest_file=file)
    torch.manual_seed(0)
    if isinstance(recipe, Recipe):
        build_model(recipe, manifest.column("title")).save_pretrained(folder / "model")
    else:
        classes = sorted(set(manifest.column("label")))
        Classifier(classes, recipe.clip, recipe.video, recipe.classifier).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def run(metrics: Path, manifest: Manifest) -> Path:
    return make_run(metrics, manifest)


def test_pretraining(run: Path) -> None:
    states = torch.get_rng_state(), random.getstate()
    page = Html(write_run_report(run))
    assert states[1] == random.getstate()
    assert torch.equal(states[0], torch.get_rng_state())
    assert "“run <b>” Not finished after 3 of" in page.text
    assert "text→video, R@10 50 of val 20.0 % 75.0 % 3.8" in page.text  # chance, last validation, ratio
    assert page.text.count("of 5; 3 expected by chance") == 4  # five validation videos, titles as queries
    assert page.text.count("✓ correct") == 4
    assert "a <i>dog</i> number 1" in page.text
    assert "noise_samples" in page.text


def test_finetuning(tmp_path: Path, manifest: Manifest, origin: Provenance) -> None:
    run = make_run(tmp_path / "run", manifest, FinetuneRecipe)
    lines = [
        {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.5, "top-1": 0.5, "pairs": 4},
        {"kind": "validation", "step": 2, "epoch": 1, "videos": 5, "loss": 1.6, "top-1": 0.4},
        {"kind": "event", "step": 2, "epoch": 1, "event": "left out", "pair_id": "7", "message": "empty"},
        {"kind": "pairs", "step": 2, "epoch": 1, "failed": 1},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Html(write_run_report(run))
    assert "Finished after 1 of" in page.text
    assert "1 view, top-1 5 of val 20.0 % 40.0 % 2.0" in page.text
    assert len(re.findall(r"Class\d” \d of 1 correct", page.text)) == 4
    assert "Unreadable videos 1" in page.text
    tested = Result("30 views", "top-1", 0.9, "trained", count=40, interval=(0.85, 0.95))
    write_results(run / "results.json", [tested, replace(tested, value=0.2, of="chance", interval=None)], origin)
    page = Html(write_run_report(run))
    assert "30 views, top-1 40 of test 20.0 % 90.0 % 85.0–95.0 4.5" in page.text
    assert "1 view" not in page.text
    assert origin.machine.cpu in page.text


def test_official_splits(tmp_path: Path, manifest: Manifest, origin: Provenance) -> None:
    for split in (1, 2):
        make_run(tmp_path / f"split{split}", manifest, FinetuneRecipe)
    write_results(tmp_path / "results.json", [Result("30 views", "top-1", 0.9, "trained")], origin)
    page = Html(write_run_report(tmp_path))
    assert page.links == {"split1/report.html", "split2/report.html"}
    assert "90.0 %" in page.text
    assert "Predictions" in Html(tmp_path / "split2" / "report.html").text


@pytest.mark.parametrize("missing", ["model", "manifest", "changed", "older", "damaged", "validation", "videos"])
def test_missing_inputs_are_explained(run: Path, manifest: Manifest, missing: str, tmp_path: Path) -> None:
    origin = json.loads((run / "manifest.json").read_text())
    table = {name: manifest.column(name) for name in ("pair_id", "path", "title")}
    if missing == "model":
        shutil.rmtree(run / "model")
    elif missing == "manifest":
        origin["file"] = str(tmp_path / "gone.parquet")
    elif missing == "older":
        del origin["file"]
    elif missing == "damaged":
        origin = [1, 2]
    else:
        split = "train" if missing == "validation" else "val"
        rows = [{"pair_id": "a", "path": "gone.mp4", "title": table["title"][0], "split": split}]
        other = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
        origin["file"] = str(other.path)
        origin["manifest"] = "0" * 12 if missing == "changed" else other.hash
    (run / "manifest.json").write_text(json.dumps(origin))
    text = Html(write_run_report(run)).text
    assert "No examples: " in text
    assert "Text-to-video retrieval" not in text
    assert "Learning curves" in text


def test_damaged_results_are_named(run: Path) -> None:
    (run / "results.json").write_text("[]")
    assert f"No results: {run / 'results.json'}" in Html(write_run_report(run)).text


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        write_run_report(tmp_path)


def test_class_names_are_the_queries_if_the_model_knows_them(manifest: Manifest) -> None:
    known = [f"class{i}" for i in range(5)] * 2
    model = build_model(read_recipe(Recipe, "laptop", SMALL), known)
    embedding = torch.nn.functional.normalize(torch.arange(40.0).view(4, 10)[:, :1] - 15, dim=1).repeat(1, 256) / 16
    found = retrieval_examples(model, manifest, [0, 1, 4, 5], embedding)
    assert [sheet.query for sheet in found.sheets] == ["class0", "class2"]
    assert all(sum(tile.correct for tile in sheet.tiles) == 2 for sheet in found.sheets)


@pytest.fixture
def report(run: Path, results: list[Result], origin: Provenance, sheet: ContactSheet) -> Path:
    """A report of a tested run with a sheet that has an unreadable video."""
    write_results(run / "results.json", results, origin)
    return write_run_report(run, facts=[("pairs", "1,200")], examples=Examples("Retrieval", [sheet], "A <caption>"))


def test_page_is_complete_self_contained_escaped_and_accessible(report: Path) -> None:
    page, text = Html(report), report.read_text("utf-8")
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert not {"caption", "b", "script"} & {tag for tag, _ in page.tags}
    assert "A <b>dog</b> & its ball" in page.text
    assert "kNN, top-1 visual; 400 of test; clips 10; k 25 6.2 % 25.0 % 75.0 % 12.0 3.0" in page.text
    assert "median rank 200 of test 100.5 80 4 25.1 20.0" in page.text
    assert "95 %" not in page.text
    assert page.text.count("✓ correct") == 1
    assert page.text.count("✗ wrong") == 2
    assert "gone.mp4" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(image["alt"] for image in images)
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_incomplete_and_repeated_lines(metrics: Path) -> None:
    history = read_history(metrics)
    assert (len(history.train), len(history.validation), history.stage2_epoch) == (30, 3, 2)
    with (metrics / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "train", "step": 30, "epoch": 3.0, "loss": float("nan")}))
        file.write("\n" + json.dumps({"kind": "train", "step": 5, "epoch": 0.5, "loss": -1.0}) + "\n")
    losses = finite_values(read_history(metrics).train, "loss")
    assert len(losses) == 30
    assert losses.iloc[5] == -1.0


def test_chance_is_rank_over_pairs(metrics: Path) -> None:
    lines, levels = retrieval_series(read_history(metrics), "text_to_video")
    assert levels == [1 / 50, 5 / 50, 10 / 50]
    assert list(lines[0]) == [1 / 40, 2 / 40, 3 / 40]


def test_only_measured_quantities_have_curves(metrics: Path) -> None:
    titles = [curve.title for curve in learning_curves(read_history(metrics))]
    assert titles == ["Retrieval, text → video", "Retrieval, video → text", "Loss", "Posterior of being a pair"]
    (metrics / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.1, "loss": 3}\n')
    assert [curve.title for curve in learning_curves(read_history(metrics))] == ["Loss"]
    (metrics / "metrics.jsonl").unlink()
    assert learning_curves(read_history(metrics)) == []


def test_frames_are_the_middle_two_seconds(sheet: ContactSheet, make_video: VideoMaker) -> None:
    tile = sheet.tiles[0]
    assert tile.frames.shape == (16, 112, 224, 3)
    first = make_video.numbers(tile.frames)[0]
    numbers = [first + 4 * i for i in range(16)]
    assert make_video.numbers(tile.frames) == numbers
    assert abs(first - (150 - 61) / 2) <= 1
    strip = np.asarray(tile.strip())
    frames = np.stack([strip[:, i * 226 : i * 226 + 224] for i in range(4)])
    assert make_video.numbers(frames) == [numbers[i] for i in (0, 5, 10, 15)]


def test_animation_has_all_frames_at_normal_speed(sheet: ContactSheet) -> None:
    with Image.open(io.BytesIO(sheet.tiles[0].animation())) as animation:
        assert animation.format == "WEBP"
        assert getattr(animation, "n_frames", 1) == 16
        assert animation.size == (224, 112)
        animation.seek(1)
        animation.load()
        assert animation.info["duration"] == 133


def test_unreadable_video_is_a_grey_tile_with_an_error(sheet: ContactSheet) -> None:
    tile = sheet.tiles[2]
    assert "gone.mp4" in tile.error
    assert tile.frames.shape[0] == 1
    assert np.ptp(tile.frames.reshape(-1, 3), axis=0).max() == 0
