"""A small run of the network benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import network


@pytest.mark.usefixtures("one_thread")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(network.NETWORKS, 18, (112, 2))
    monkeypatch.setattr(network, "cpu_count", lambda: 1)
    out = tmp_path / "network.json"
    small = ["--scale", "0.3", "--depths", "18", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["network", *small])
    network.main()
    content = json.loads(out.read_text())
    assert set(content["settings"]["GFLOP_per_s"]) == {"float32", "bfloat16"}
    of = content["results"]["ResNet-18"]
    assert of["training"]["GFLOP_a_clip"] > 2.5 * of["inference"]["GFLOP_a_clip"]
    for doing in ("training", "inference"):
        assert list(of[doing]["ways"]) == [network.BASE, network.INTERMEDIATE, network.OURS]
        assert of[doing]["ways"][network.BASE]["times_faster"]["median"] == 1
        assert 0 < of[doing]["share_of_the_rate"] < 3
    assert "ResNet-18, 2 clips of 8×34²" in capsys.readouterr().out
