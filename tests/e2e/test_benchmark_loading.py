"""A small run of the loading benchmark: all variants return the same frames."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks.loading import BASE, main
from benchmarks.measuring import compare_times, run_in_turns


def test_it_runs_and_writes_no_paths(
    tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, fps in (("a.avi", 25), ("b.mp4", 30)):
        make_video(tmp_path / "videos" / name, fps=fps, frames=60, size=(192, 144))
    out = tmp_path / "loading.json"
    call = ["loading", tmp_path / "videos", "--rounds", 2, "--views", 1, "--seconds", 3, "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, call)))
    main()
    assert str(tmp_path) not in out.read_text()
    content = json.loads(out.read_text())
    assert content["settings"]["videos"] == 2
    assert {"commit", "machine", "versions", "created", "seed"} <= set(content)
    assert len(content["results"]["ways"]) == 4
    for results in content["results"]["ways"].values():
        assert results[BASE]["times_faster"]["median"] == 1
        assert results["ours, untouched"]["difference"] == 0
        # The neighbouring frame differs by a third of the range.
        assert all(result["difference"] < 12 for result in results.values())
    for state, parts in content["results"]["parts"].items():
        assert list(parts) == ["open", "seek, first frame", "decode", "scale", "crop and copy"]
        assert content["results"]["workers"][state].keys() == {"1", "2", "4"}
        assert all(clips > 0 for clips in content["results"]["workers"][state].values())
    assert "ours, prepared" in capsys.readouterr().out


def test_every_way_takes_every_turn() -> None:
    order: list[tuple[str, int]] = []
    ways = {name: lambda job, name=name: order.append((name, job)) for name in "abc"}
    seconds = run_in_turns(ways, [0, 1, 2], rounds=2)
    assert [[len(each) for each in of] for of in seconds.values()] == [[3, 3]] * 3
    firsts = [order[i][0] for i in range(0, len(order), 3)]
    assert firsts == ["c", "a", "b", "a", "b", "c", "b", "c", "a"]
    assert [job for _, job in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 3


def test_ratios_are_of_medians_within_a_round() -> None:
    seconds = {"slow": [[0.2, 0.4, 9.0], [0.8, 0.8, 0.8]], "fast": [[0.1, 0.1, 5.0], [0.2, 0.2, 8]]}
    results = compare_times(seconds, "slow")
    assert results["fast"]["times_faster"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert results["slow"]["ms"]["median"] == 800
