"""A small run of the benchmark of loss curves: variants differ only by rounding."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import curves


@pytest.mark.usefixtures("one_thread")
def test_it_runs_and_curves_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(curves, "WINDOW", 4)
    out = tmp_path / "curves.json"
    monkeypatch.setattr(sys, "argv", ["curves", "--steps", "8", "--out", str(out)])
    curves.main()
    results = json.loads(out.read_text())["results"]
    assert list(results) == list(curves.WAYS)
    assert {len(of["losses"]) for of in results.values()} == {8}
    for name in ("channels_last_3d", "one pass of the optimiser"):
        assert results[name]["largest_difference"] < 1e-3
        assert results[name]["losses"] != [0.0] * 8
    assert 0 < results["bfloat16"]["largest_difference"] < 0.05
    assert "noise of the batch" in capsys.readouterr().out


def test_differences_are_of_means_over_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "WINDOW", 2)
    found = curves.differences([1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 4.0, 4.0])
    assert found == {
        "first": 2, "last": 6, "largest_difference": 0.5, "last_difference": 0.5,
    }  # fmt: skip
