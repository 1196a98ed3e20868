"""A small run of the search benchmark: its index finds the nearest windows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import search

from crosspair.library import store

pytest.importorskip("lancedb")


def test_it_runs_and_finds_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "EXACT_UP_TO", store.EXACT_UP_TO)  # restored after the test
    out = tmp_path / "search.json"
    small = ["--windows", "600", "--queries", "5", "--centres", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["search", *small])
    search.main()
    content = json.loads(out.read_text())
    assert content["settings"]["windows"] == 600
    assert content["results"]["index"]["recall@10"] >= 0.9
    assert content["versions"]["lancedb"]
    assert "600 windows" in capsys.readouterr().out
