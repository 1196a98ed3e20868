"""End-to-end runs of ablate: killed, resumed, failed, retried, reported."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from crosspair.evaluation import read_results
from tests.ablation.conftest import PLAN, write_plan
from tests.e2e.conftest import command, crosspair

# Long enough for a kill in the middle.
LONG = {"training.epochs": 12, "training.checkpoint_steps": 2}
WORDS = ("a", "an", "the", "this", "my", "red", "blue", "up", "down", "left", "right", "moving")


def cells(out: Path) -> dict[str, dict]:
    """The cells in ``ablation.json`` by the name of their row's value, without those for tuning."""
    cells = json.loads((out / "ablation.json").read_text())["cells"]
    return {next(iter(cell["row"].values())): cell for cell in cells if not cell["tuning"]}


def wait_for(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 280
    while not happened():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, list[object]]:
    """An ablation that was killed in the middle of the cell of its second row, whose temperature is tuned."""
    folder = tmp_path_factory.mktemp("ablate")
    settings = {**PLAN, "overrides": {**PLAN["overrides"], **LONG}}
    plan = write_plan(folder / "tiny.yaml", {
        **settings,
        "axes": {"temperature": {
            "cold": {"objective.temperature": 0.07},
            "warm": {"objective.temperature": {"grid": [0.5, 1.0]}},
        }},
        "corpus": {"pairs": 48},
        "tuning": {"overrides": {"training.epochs": 1}},
        "finetuning": {
            "recipe": "laptop-finetune", "clips": 1, "crops": 1,
            "overrides": {
                "clip.size": 32, "clip.frames": 4, "training.batch_size": 8, "training.epochs": 1,
                "training.workers": 1, "labels.hold_out": 0.2,
            },
        },
    })  # fmt: skip
    out = folder / "out"
    arguments = ["ablate", plan, "--out", out]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)

    wait_for(lambda: (out / "ablation.json").exists() and cells(out)["warm"]["status"] != "waiting", process)
    second = out / cells(out)["warm"]["folder"] / "metrics.jsonl"
    wait_for(lambda: second.exists() and second.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return out, arguments


@pytest.fixture(scope="module")
def whole(killed) -> tuple[Path, subprocess.CompletedProcess[str], dict[str, float]]:
    """The same command again, and the earlier modification times of the first cell's files."""
    out, arguments = killed
    first = out / cells(out)["cold"]["folder"]
    written = {path.name: path.stat().st_mtime for path in first.iterdir() if path.is_file()}
    return out, crosspair(*arguments), written


def test_finished_cells_are_not_run_again(whole) -> None:
    out, done, written = whole
    assert done.returncode == 0, done.stderr
    first = out / cells(out)["cold"]["folder"]
    assert "results.json" in written
    assert {p.name: p.stat().st_mtime for p in first.iterdir() if p.is_file()} == written


def test_a_killed_cell_resumes(whole) -> None:
    out, _, _ = whole
    second = out / cells(out)["warm"]["folder"]
    assert "resumed at step" in (second / "log.txt").read_text()
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").open()
             if '"train"' in line and '"loss"' in line]  # fmt: skip
    assert steps == list(range(1, len(steps) + 1))


def test_every_cell_has_times_and_results(whole) -> None:
    out, done, _ = whole
    assert {path.name for path in out.iterdir()} == {
        "plan.yaml", "ablation.json", "cells", "corpora", "report.html", "report.md", "report.csv", "results.parquet",
    }  # fmt: skip
    assert str(out / "report.html") in done.stdout
    for name, cell in cells(out).items():
        assert (cell["status"], cell["error"], cell["seed"]) == ("done", None, 0)
        assert set(cell["seconds"]) == {"pretrain", "evaluate", "finetune"}
        assert cell["clips"] == 12 * (cell["pairs"] // 8 * 8) > 0
        folder = out / cell["folder"]
        assert {"recipe.yaml", "log.txt", "metrics.jsonl", "cell.json", "model", "report.html"} <= {
            path.name for path in folder.iterdir()
        }
        assert not list(folder.glob("**/checkpoints"))
        results, origin = read_results(folder / "results.json")
        found = {(result.protocol, result.of) for result in results}
        subjects = {"trained", "chance"} | ({"random weights"} if name == "cold" else set())
        assert found == {(protocol, s) for protocol in ("kNN", "1 views") for s in subjects}
        assert len({json.dumps(r.__dict__, default=str) for r in results}) == len(results)
        assert origin.seed == 0


def test_tuning_chooses_the_best_value_on_the_validation_split(whole) -> None:
    out, _, _ = whole
    tried = [cell for cell in json.loads((out / "ablation.json").read_text())["cells"] if cell["tuning"]]
    assert [cell["grid"] for cell in tried] == [{"objective.temperature": 0.5}, {"objective.temperature": 1.0}]
    scores = []
    for cell in tried:
        assert (cell["status"], cell["seed"], set(cell["seconds"])) == ("done", 100, {"pretrain", "evaluate"})
        results, _ = read_results(out / cell["folder"] / "results.json")
        assert {(result.protocol, result.split) for result in results} == {("kNN", "val")}
        scores.append(next(result.value for result in results if result.of == "trained"))
    assert cells(out)["warm"]["grid"] == tried[scores.index(max(scores))]["grid"]
    assert cells(out)["cold"]["grid"] == {}
    table = pd.read_parquet(out / "results.parquet")
    assert json.loads(table[table.row == "warm"].job.iloc[-1])["recipe"]["objective.temperature"] in (0.5, 1.0)
    knn = table[(table.protocol == "kNN") & (table["of"] == "trained") & ~table.tuning]
    for each in knn.itertuples():
        assert sum(json.loads(each.correct)) / sum(json.loads(each.tested)) == pytest.approx(each.value)


def test_report_only(whole) -> None:
    out, done, _ = whole
    (out / "report.html").unlink()
    plan = done.args[done.args.index("ablate") + 1]
    again = crosspair("ablate", plan, "--out", out, "--report-only")
    assert again.returncode == 0, again.stderr
    assert (out / "report.html").is_file()
    assert set(pd.read_parquet(out / "results.parquet").row) == {"cold", "warm"}


def test_a_failed_cell_is_reported_and_retried(tmp_path) -> None:
    vectors = tmp_path / "vectors.txt"
    plan = write_plan(tmp_path / "tiny.yaml", {
        **PLAN,
        "axes": {"text": {"given": {"text.source": str(vectors)}, "learnt": {}}},
        "first": {"text": "learnt"},
        "overrides": {k: v for k, v in PLAN["overrides"].items() if k != "text.source"},
    })  # fmt: skip
    out = tmp_path / "out"
    done = crosspair("ablate", plan, "--out", out, "--jobs", 2)
    assert done.returncode == 1, done.stderr
    failed, other = cells(out)["given"], cells(out)["learnt"]
    assert (failed["status"], other["status"]) == ("failed", "done")
    assert str(vectors) in failed["error"]
    log = out / failed["folder"] / "log.txt"
    assert log.read_text().strip().endswith(failed["error"])
    assert "given, seed 0" in " ".join(done.stderr.split())
    assert "1 of 2 cells done, 1 failed" in done.stdout
    vectors.write_text("".join(f"{word} 1.0 0.5 {i}.0\n" for i, word in enumerate(WORDS)))
    again = crosspair("ablate", plan, "--out", out)
    assert cells(out)["given"]["status"] == "done", again.stderr
    assert again.returncode == 0


def test_stop_writes_a_checkpoint(tmp_path) -> None:
    overrides = {**PLAN["overrides"], "training.epochs": 50}
    plan = write_plan(tmp_path / "tiny.yaml", {**PLAN, "overrides": overrides})
    out = tmp_path / "out"
    process = subprocess.Popen(command("ablate", plan, "--out", out), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(out.glob("cells/*/checkpoints/step-*")), process)
    os.kill(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130, log
    cell = cells(out)["cold"]
    assert cell["status"] == "missing"
    assert any((out / cell["folder"] / "checkpoints").iterdir())
    assert not (out / cells(out)["warm"]["folder"] / "log.txt").exists()


def test_dry_run_and_errors_write_nothing(tmp_path) -> None:
    out = tmp_path / "out"
    done = crosspair("ablate", "table-1a", "seeds=0,1", "--out", out, "--dry-run", "--only", "ranking")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "11 cells" in lines[0]  # nine for tuning
    assert [line.split("  ")[-1] for line in lines[10:]] == ["ranking, seed 0", "ranking, seed 1"]
    done = crosspair("--quiet", "ablate", "table-1a", "training.epoch=3", "--out", out)
    assert done.returncode == 2
    assert "'training.epochs'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
