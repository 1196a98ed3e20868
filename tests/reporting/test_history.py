"""History of runs that were killed and resumed, and its curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosspair.errors import RunError
from crosspair.reporting import learning_curves, read_history
from crosspair.reporting.run_report import finite_values, retrieval_series


def test_incomplete_last_line_is_skipped(run: Path) -> None:
    history = read_history(run)
    assert len(history.train) == 30
    assert len(history.validation) == 3
    assert history.stage2_epoch == 2


def test_incomplete_line_in_the_middle_is_skipped(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "train", "step": 30, "epoch": 3.0, "loss": 1}) + "\n")
    history = read_history(run)
    assert len(history.train) == 31
    assert history.train[-1]["loss"] == 1


def test_last_line_of_a_repeated_step_is_used(run: Path) -> None:
    path = run / "metrics.jsonl"
    again = json.dumps({"kind": "train", "step": 5, "epoch": 0.5, "loss": -1.0})
    path.write_text(path.read_text() + "\n" + again + "\n")
    losses = finite_values(read_history(path).train, "loss")
    assert len(losses) == 30
    assert losses.iloc[5] == -1.0


def test_run_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        read_history(tmp_path)


def test_non_finite_values_are_skipped() -> None:
    lines = [{"epoch": 0, "loss": float("nan")}, {"epoch": 1, "loss": 2.0}]
    assert finite_values(lines, "loss").to_dict() == {1.0: 2.0}


def test_chance_is_rank_over_pairs(run: Path) -> None:
    lines, levels = retrieval_series(read_history(run), "text_to_video")
    assert levels == [1 / 50, 5 / 50, 10 / 50]
    assert list(lines[0]) == [1 / 40, 2 / 40, 3 / 40]


def test_only_measured_quantities_have_curves(run: Path) -> None:
    titles = [curve.title for curve in learning_curves(read_history(run))]
    assert titles == ["Retrieval, text → video", "Retrieval, video → text", "Loss", "Posterior of being a pair"]
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.1, "loss": 3}\n')
    assert [curve.title for curve in learning_curves(read_history(run))] == ["Loss"]
    (run / "metrics.jsonl").write_text("")
    assert learning_curves(read_history(run)) == []
