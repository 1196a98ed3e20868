"""A small run of the training benchmark: its parts add up to the whole step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import training

from crosspair.recipes import load_recipe


@pytest.mark.usefixtures("one_thread")
def test_parts_add_up_to_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["clip.size=32", "video.width=4", "training.batch_size=4", "training.workers=1"]
    monkeypatch.setattr(training, "SMALL", small)
    monkeypatch.setattr(training, "cpu_count", lambda: 1)
    monkeypatch.setattr(training, "load_recipe", lambda name, given: load_recipe(name, [*small, *given]))
    out = tmp_path / "training.json"
    options = ["--pairs", "24", "--steps", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training", *options])
    training.main()
    content = json.loads(out.read_text())
    of = content["results"]["rendered"]
    assert {"data wait", "forward", "objective", "backward", "optimiser", "bank"} <= set(of["parts"])
    assert sum(part["share"] for part in of["parts"].values()) == pytest.approx(1)
    assert of["parts"]["all else"]["share"] < 0.3
    assert 0 < of["network"] < 1
    if Path("/proc").exists():
        assert of["most_MiB"] > 50
        assert {each["threads"] > 1 for each in content["growth"]["seen"]} == {True}
    assert "a step" in capsys.readouterr().out
