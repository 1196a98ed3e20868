"""A small run of the library benchmark, and its ground truth for joined videos."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks import library
from benchmarks.joined import join, poor_copy

from crosspair.corpora import Clip, manifest_from_rows
from crosspair.video.decode import read_frames
from tests.conftest import VideoMaker
from tests.evaluation.conftest import tiny_model

pytest.importorskip("lancedb")


@pytest.mark.usefixtures("one_thread")
def test_it_runs_and_loses_nothing(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    few = {"LONG_VIDEOS": 2, "CLIPS_PER_VIDEO": 3, "COPIES": 2, "CHANGED_FILES": 2, "KILLS": 3}
    for name, value in few.items():
        monkeypatch.setattr(library, name, value)
    rows = []
    for row in range(9):
        make_video(tmp_path / "videos" / f"{row}.mp4", frames=60 + row, fps=20)
        split = "train" if row < 3 else "test"
        label = ("dog", "cat")[row % 2]
        rows.append({"pair_id": f"p{row}", "path": f"videos/{row}.mp4", "label": label,
                     "split": split})  # fmt: skip
    manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "library.json"
    call = ("library", "--manifest", tmp_path / "m.parquet", "--model", tmp_path / "model",
            "--out", out)  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, call)))
    library.main()
    assert str(tmp_path) not in out.read_text()
    results = json.loads(out.read_text())["results"]
    assert (results["index"]["videos"], results["index"]["broken"]) == (11, 0)
    of_dog = results["classes"]["dog"]
    assert (of_dog["all"]["chance"], of_dog["test"]["chance"]) == (5 / 9, 3 / 6)
    assert 0 < of_dog["test"]["P@10"] <= 0.3  # at most 3 of 10 moments are correct
    assert results["long videos"]["by a poor copy"]["queries"] == 2
    changes, kills = results["changes"], results["kills"]
    assert (changes["deleted"]["removed"], changes["deleted"]["added"]) == (2, 0)
    assert (changes["added"]["removed"], changes["added"]["added"]) == (0, 2)
    assert changes["windows as before"]
    assert (kills["faults"], kills["opened"] + kills["no library yet"]) == (0, 3)
    assert "dog" in capsys.readouterr().out


def test_joined_video_has_the_sources_at_the_returned_times(tmp_path: Path, make_video: VideoMaker) -> None:
    sources = [make_video(tmp_path / f"{fps}.mp4", frames=30, fps=fps) for fps in (10, 30)]
    spans = join(list(map(str, sources)), tmp_path / "joined.mp4")
    assert spans == [(0, pytest.approx(3)), (pytest.approx(3), pytest.approx(4))]
    instants = np.array([0.05, 2.95, 3.01, 3.99])
    joined = Clip(str(tmp_path / "joined.mp4"))
    frames = read_frames(joined, lambda _: instants, lambda *size: size)
    assert make_video.numbers(frames) == [0, 29, 0, 29]


def test_a_poor_copy_is_smaller_and_shows_the_same(tmp_path: Path, make_video: VideoMaker) -> None:
    source, copy = make_video(tmp_path / "a.mp4", frames=30), tmp_path / "copy.mp4"
    poor_copy(str(source), copy)
    frames = read_frames(Clip(str(copy)), lambda _: np.array([0.02, 0.95]), lambda *size: size)
    assert frames.shape == (2, 32, 64, 3)
    assert make_video.numbers(frames) == [0, 28]


def test_overlap_of_a_time_range_with_an_occurrence() -> None:
    occurrence = library.Occurrence("a.mp4", 10.0, 17.0, "dog", "source.mp4")
    spans = ((6.0, 10.0), (6.1, 10.1), (12.0, 14.0), (16.9, 20.9), (17.0, 21.0))
    assert [occurrence.overlaps("a.mp4", *span) for span in spans] == [False, True, True, True, False]
    assert not occurrence.overlaps("b.mp4", 12.0, 14.0)
