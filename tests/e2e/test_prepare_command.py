"""End-to-end runs of prepare: exit status, printed summary, interruption and resumption."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.video.container import probe
from tests.e2e.conftest import command, crosspair, refused


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_video) -> Path:
    """A manifest of two segments of one video, and one with a missing video in addition."""
    folder = tmp_path_factory.mktemp("sources")
    make_video(folder / "a.avi", fps=25, frames=75, size=(192, 144))
    row = {"path": "a.avi", "title": "A title", "label": "x"}
    rows = [{**row, "pair_id": "one"}, {**row, "pair_id": "two", "start": 1.0}]
    manifest_from_rows(rows, folder / "good.parquet").write(folder / "good.parquet")
    rows.append({**row, "pair_id": "three", "path": "none.mp4"})
    manifest_from_rows(rows, folder / "bad.parquet").write(folder / "bad.parquet")
    return folder


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = crosspair("prepare", *arguments)
    assert "Traceback" not in done.stderr
    return done


def test_prepared_files_are_reused(tmp_path: Path, sources: Path) -> None:
    call = [sources / "good.parquet", "--out", tmp_path / "out", "--short-side", 64,
            "--middle", 2, "--fps", 30, "--gop", 8, "--crf", 24, "--workers", 2]  # fmt: skip
    done = prepare(*call)
    assert done.returncode == 0, done.stderr
    manifest = tmp_path / "out" / "manifest.parquet"
    summary = f"{manifest}: 2 pairs, 0 broken; 2 videos, {{}} prepared earlier\n"
    assert done.stdout == summary.format(0)
    for clip in Manifest.read(manifest).clips():
        info = probe(clip.path)
        assert (info.width, info.height, info.frames, info.fps) == (86, 64, 60, 30)
    again = prepare(*call)
    assert again.returncode == 0
    assert again.stdout == summary.format(2)


def test_broken_sources_set_the_exit_status(tmp_path: Path, sources: Path) -> None:
    done = prepare(sources / "bad.parquet", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "3 pairs, 1 broken; 3 videos, 0 prepared earlier" in done.stdout
    assert f"{sources / 'none.mp4'}: " in " ".join(done.stderr.split())
    errors = Manifest.read(tmp_path / "out").column("error")
    assert errors[:2] == [None, None]
    assert errors[2].startswith(f"{sources / 'none.mp4'}: ")


def test_a_dry_run_writes_nothing(tmp_path: Path, sources: Path) -> None:
    call = sources / "bad.parquet", "--out", tmp_path / "out", "--dry-run"
    done = prepare(*call, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"3 pairs, 3 videos: 0 prepared, 3 missing\n"
        r"estimate from 3 videos \(1 broken\): \d:\d\d:\d\d with 1 processes \(\d:\d\d:\d\d "
        r"with one\), \d+\.\d MB of disk space \(\d+ MB free\)\n",
        done.stdout,
    )
    assert list(tmp_path.iterdir()) == []
    prepare(sources / "good.parquet", "--out", tmp_path / "out")
    done = prepare(sources / "good.parquet", "--out", tmp_path / "out", "--dry-run")
    assert done.stdout == "2 pairs, 2 videos: 2 prepared, 0 missing\n"


@pytest.mark.parametrize(
    ("more", "value"),
    [
        (["--fps", "fast"], "'fast'"),
        (["--fps", "0"], "0"),
        (["--short-side", "127"], "127"),
        (["--address", "auto"], "--address"),
    ],
)
def test_invalid_options(tmp_path: Path, sources: Path, more: list[str], value: str) -> None:
    assert value in refused("prepare", sources / "good.parquet", "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_output_in_the_folder_of_the_manifest_is_rejected(sources: Path) -> None:
    assert f"{sources} " in refused("prepare", sources / "good.parquet", "--out", sources)
    assert sorted(p.name for p in sources.iterdir()) == ["a.avi", "bad.parquet", "good.parquet"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_resumes(tmp_path: Path, make_video, how: signal.Signals) -> None:
    make_video(tmp_path / "a.mp4", frames=60, size=(320, 240))
    rows = [
        {"pair_id": f"{n:03d}", "path": "a.mp4", "title": "t", "start": n / 1000}
        for n in range(500)  # enough to be interrupted in time on any machine
    ]
    manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    out = tmp_path / "out"
    call = command("prepare", tmp_path / "m.parquet", "--out", out, "--workers", 1)
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((out / "videos").glob("*.mp4"))) < 3:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(how)
    running.wait()
    begun = {p: p.stat().st_mtime_ns for p in sorted((out / "videos").glob("*.mp4"))}
    assert 3 <= len(begun) < 500
    assert not (out / "manifest.parquet").exists()
    # The rest of it would take long; of these rows, all but the last two or three are done.
    manifest_from_rows(rows[: len(begun) + 2], tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    done = prepare(tmp_path / "m.parquet", "--out", out)
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.partial"))
    found = re.search(r"(\d+) prepared earlier", done.stdout)
    assert found is not None
    # A kill may come between a file and its journal entry; the worker finishes its current file.
    assert len(begun) - 1 <= int(found[1]) <= len(begun)
    kept = [p for p, at in begun.items() if p.stat().st_mtime_ns == at]
    assert kept[: int(found[1])] == list(begun)[: int(found[1])]
    for clip in Manifest.read(out).clips()[-4:]:
        assert probe(clip.path).codec == "h264"
