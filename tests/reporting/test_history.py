"""The history: kills and resumes leave marks in the file, not in what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosspair.errors import RunError
from crosspair.reporting import learning_curves, read_history
from crosspair.reporting.run_report import retrieval_series, series


def test_a_last_line_cut_by_a_kill_is_left_out(run: Path) -> None:
    history = read_history(run)
    assert len(history.train) == 30
    assert len(history.validation) == 3
    assert history.stage2_epoch == 2


def test_a_cut_line_before_the_last_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "train", "step": 30, "epoch": 3.0, "loss": 1}) + "\n")
    history = read_history(run)
    assert len(history.train) == 31
    assert history.train[-1]["loss"] == 1


def test_of_a_step_done_twice_the_last_counts(run: Path) -> None:
    path = run / "metrics.jsonl"
    again = json.dumps({"kind": "train", "step": 5, "epoch": 0.5, "loss": -1.0})
    path.write_text(path.read_text() + "\n" + again + "\n")
    losses = series(read_history(path).train, "loss")[1]
    assert len(losses) == 30
    assert losses[5] == -1.0


def test_a_run_without_metrics_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl does not exist; has the training begun"):
        read_history(tmp_path)


def test_numbers_that_are_not_finite_are_not_drawn() -> None:
    lines = [{"epoch": 0, "loss": float("nan")}, {"epoch": 1, "loss": 2.0}]
    assert series(lines, "loss") == ([1.0], [2.0])


def test_chance_is_rank_over_pairs(run: Path) -> None:
    lines = retrieval_series(read_history(run).validation, "text_to_video")
    assert [line.level for line in lines] == [1 / 50, 5 / 50, 10 / 50]
    assert list(lines[0].y) == [1 / 40, 2 / 40, 3 / 40]


def test_there_is_a_curve_for_what_was_measured_and_no_other(run: Path) -> None:
    titles = [curve.title for curve in learning_curves(read_history(run))]
    assert titles == [
        "Retrieval, text → video",
        "Retrieval, video → text",
        "Loss",
        "Posterior of being a pair",
    ]
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.1, "loss": 3}\n')
    assert [curve.title for curve in learning_curves(read_history(run))] == ["Loss"]
    (run / "metrics.jsonl").write_text("")
    assert learning_curves(read_history(run)) == []
