"""``crosspair report`` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.evaluation import Result, provenance, write_results
from tests.e2e.conftest import crosspair, refused
from tests.reporting.ablations import write_ablation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    result = Result("zero-shot", "top-1", 0.5, "trained", feature="embedding", count=40)
    origin = provenance(recipe="", model="0123456789ab", manifest="ba9876543210", seed=0)
    write_results(tmp_path / "run" / "results.json", [result], origin)
    return tmp_path / "run"


def test_a_report_of_two_runs(tmp_path: Path, run: Path) -> None:
    done = crosspair("report", run, f"again={run}", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "report" / "report.html"
    assert done.stdout == (f"{page}, report.md, report.csv: 2 values of 2 runs in 1 table\n")
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "report.md", "report.csv",
    }  # fmt: skip
    assert page.read_text("utf-8").count("50.0 %") == 2


def test_errors_name_the_run_and_write_nothing(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "report"
    assert "'run'" in refused("report", run, run, "--out", out)
    assert f"{tmp_path}" in refused("report", tmp_path, "--out", out)
    (tmp_path / "notes.json").write_text("[]")
    assert "notes.json" in refused("report", run, tmp_path / "notes.json", "--out", out)
    assert not out.exists()
    assert "results.json" in refused("report", run, "--out", run / "results.json")


def test_ablation_report_is_written_to_its_folder(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "ablation"
    folder.mkdir()
    write_ablation(folder, {"objective": ("one", "other")})
    line = f"{folder} is an ablation"
    assert line in refused("report", folder, run)
    assert line in refused("report", folder, "--out", tmp_path)
    assert "--out" in refused("report", run)
    done = crosspair("report", folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report.html") in done.stdout
    assert "other" in (folder / "report.html").read_text("utf-8")


def test_results_file_with_invalid_settings(tmp_path: Path, run: Path) -> None:
    file = run / "results.json"
    file.write_text(file.read_text().replace('"settings": {}', '"settings": "k 25"'))
    message = refused("report", run, "--out", tmp_path / "out")
    assert "results.json" in message
    assert "'k 25'" in message
