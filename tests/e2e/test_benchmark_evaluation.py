"""A small run of the benchmark of frozen protocols: implementations agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import evaluation


@pytest.mark.usefixtures("one_thread")
def test_it_runs_and_agrees_with_the_common_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "CLASSES", 5)
    monkeypatch.setattr(evaluation, "FEATURES", 16)
    out = tmp_path / "evaluation.json"
    monkeypatch.setattr(sys, "argv", ["evaluation", "--scale", "0.005", "--out", str(out)])
    evaluation.main()
    content = json.loads(out.read_text())
    assert content["settings"]["train"] == 1200
    knn, linear = content["results"]["kNN"], content["results"]["linear"]
    retrieval = content["results"]["retrieval"]
    assert retrieval["sorting"]["agreement"] >= 0.99
    assert retrieval["crosspair"]["recall@1"] > 0.9  # among so few
    assert knn["scikit-learn"]["agreement"] >= 0.9
    assert knn["scikit-learn"]["extrapolated_from"] == "50 and 100 of 100 queries"
    assert linear["crosspair"]["epochs"] == 30
    assert 0.2 < linear["crosspair"]["accuracy"] < 1
    assert "1,200 × 16, 100 queries" in capsys.readouterr().out
