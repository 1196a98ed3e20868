"""crosspair plan: consistent estimates, no files written, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from crosspair.cli import main
from crosspair.corpora import Manifest
from tests.e2e.conftest import TINY, crosspair

SHORT = ["--seconds", "1"]


def run_plan(*arguments: object) -> None:
    main(["plan", *map(str, arguments)])


def refused(message: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        run_plan(*arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def figures(rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    done = crosspair(
        "plan", "--recipe", "laptop", "--manifest", rendered.path, *SHORT, "--json", file, *TINY,
        "training.epochs=5", "training.validate_every=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {"printed": done.stdout, **json.loads(file.read_text())}


def test_clips_are_those_of_the_training(figures: dict[str, Any], rendered: Manifest) -> None:
    steps_per_epoch = figures["pairs"] // 8
    assert 0 < figures["pairs"] <= len(rendered.split("train"))
    assert figures["clips"] == 5 * 8 * steps_per_epoch
    assert 2 <= figures["measured"]["part"] <= figures["part"] == 8  # limited by time


def test_hours_follow_from_the_measurement(figures: dict[str, Any], rendered: Manifest) -> None:
    measured = figures["measured"]
    assert min(measured[key] for key in ("by_worker", "loading", "step", "together")) > 0
    # Three validations: of epochs 2, 4 and the last.
    clips = figures["clips"] + 3 * len(rendered.split("val"))
    assert figures["hours"] == pytest.approx(clips / measured["together"] / 3600)
    assert 0 <= measured["data_wait"] <= 1
    assert figures["data_bound"] == (measured["data_wait"] > 0.1)
    assert measured["available"] > measured["memory"] > 10**7
    assert measured["worker_memory"] > 10**6


def test_printed_figures(figures: dict[str, Any]) -> None:
    printed = figures["printed"]
    for figure in ("by_worker", "step", "together"):
        assert f"{figures['measured'][figure]:.1f} clips/s" in printed
    assert f"duration: {figures['hours']:.2f} hours" in printed
    assert ("data-bound" in printed) == figures["data_bound"]


def test_disk_usage_matches_a_run(figures: dict[str, Any], rendered: Manifest, tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run"), "--manifest", str(rendered.path)]
    main(["pretrain", "--recipe", "laptop", *run, *TINY])
    model = (tmp_path / "run/model/model.safetensors").stat().st_size
    assert figures["model"] == pytest.approx(model, rel=0.2)
    newest = max((tmp_path / "run/checkpoints").iterdir())
    checkpoint = sum(file.stat().st_size for file in newest.iterdir())
    assert figures["checkpoints"] == pytest.approx(3 * checkpoint, rel=0.3)


def test_fine_tuning_and_no_file_written(
    rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    labels = [str(row % 2) for row in range(len(rendered))]
    manifest = rendered.with_columns({"label": labels}).rebased(tmp_path / "m.parquet")
    manifest.write(tmp_path / "m.parquet")
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path) | files(rendered.path.parent)
    tiny = [each for each in TINY if each.startswith(("clip", "video", "training"))]
    recipe = ["--recipe", "laptop-finetune", "--manifest", "m.parquet"]
    run_plan(*recipe, *SHORT, *tiny, "video.depth=10", "training.workers=0")
    assert files(tmp_path) | files(rendered.path.parent) == before
    assert capsys.readouterr().out.startswith("laptop-finetune on m.parquet: ")


def test_a_recipe_file_of_either_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("classifier: {dropout: 0.1}\n")
    options = ["--recipe", file, "--manifest", "nowhere"]
    refused("nowhere", capsys, *options)  # the recipe is valid
    file.write_text("classifier: {drop: 0.1}\n")
    refused("'classifier.drop'", capsys, *options)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("'lapto'.*'laptop'", ["--recipe", "lapto"]),
        ("nowhere", ["--recipe", "laptop"]),
        ("'training.batch'", ["--recipe", "laptop", "training.batch=1"]),
        ("--json", ["--recipe", "laptop", "--json", "."]),
    ],
)
def test_errors_are_one_line(message: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(message, capsys, "--manifest", "nowhere", *arguments)
