"""Checking a manifest: results in the manifest, the list and the journal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.check import WHOLE, ProbeResult, check, check_videos
from crosspair.corpora.manifest import manifest_from_rows
from crosspair.errors import CheckResult, ManifestError, RunError, VideoStatus


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    return make_video(tmp_path_factory.mktemp("one") / "a.mp4", frames=60)


@pytest.fixture
def corpus(tmp_path: Path, video: Path) -> Manifest:
    """Three videos, one of which is valid and in several rows."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(video, folder / "good.mp4")
    (folder / "empty.mp4").touch()
    rows: list[dict[str, Any]] = [
        {"pair_id": "good", "path": "videos/good.mp4"},
        {"pair_id": "empty", "path": "videos/empty.mp4"},
        {"pair_id": "gone, far", "path": "videos/gone.mp4", "error": "as before"},
        {"pair_id": "part", "path": "videos/good.mp4", "start": 0.5, "end": 1.0, "error": "old"},
        {"pair_id": "late", "path": "videos/good.mp4", "start": 5.0, "end": 9.0},
    ]
    path = tmp_path / "m.parquet"
    return manifest_from_rows([{**row, "title": "t", "label": "x"} for row in rows], path).write(path)


KINDS = [VideoStatus.FINE, VideoStatus.EMPTY, VideoStatus.MISSING, VideoStatus.SHORT, VideoStatus.OUTSIDE]
ERRORS = [
    None,
    "videos/empty.mp4: the file is empty (0 bytes)",
    "videos/gone.mp4: no such file",
    None,
    "videos/good.mp4: the clip starts at 5 s but the video ends at 2.00 s",
]


@pytest.mark.parametrize("decode", [False, True])
def test_check_fills_the_manifest_in_place(corpus: Manifest, video: Path, decode: bool) -> None:
    before, hashed = corpus.table.to_pylist(), corpus.hash
    checked = check(corpus, decode=decode)
    assert [verdict.kind for verdict in checked.results] == KINDS
    assert checked.broken == 3
    written = Manifest.read(corpus.path)
    assert written.table.equals(checked.manifest.table)
    assert written.column("error") == ERRORS
    assert written.column("frames") == [60, None, None, 60, 60]
    assert written.column("codec") == ["h264", None, None, "h264", "h264"]
    assert written.hash != hashed  # broken rows change the hash
    for name in ("pair_id", "path", "title", "label", "start", "end"):
        assert written.column(name) == [row[name] for row in before]
    assert sorted(path.name for path in corpus.path.parent.iterdir()) == ["m.parquet", "videos"]
    for name in ("empty", "gone"):
        shutil.copy(video, corpus.path.parent / "videos" / f"{name}.mp4")
    repaired = check(Manifest.read(corpus.path)).manifest
    assert repaired.column("error")[:4] == [None] * 4
    assert repaired.column("width") == [128] * 5


@pytest.mark.parametrize(("out", "written_to"), [("sub", "sub/m.parquet"), ("n.parquet", "n.parquet")])
def test_another_manifest_can_be_written(corpus: Manifest, tmp_path: Path, out: str, written_to: str) -> None:
    before = corpus.path.read_bytes()
    checked = check(corpus, tmp_path / out)
    assert corpus.path.read_bytes() == before
    written = Manifest.read(tmp_path / written_to)
    assert written.path == checked.manifest.path == tmp_path / written_to
    assert Path(written.clips()[0].path).is_file()


def test_absolute_paths_and_urls_are_unchanged(tmp_path: Path, video: Path) -> None:
    paths = [str(video), f"zip://a.mp4::{tmp_path}/none.zip"]
    rows = [{"pair_id": path, "path": path, "title": "t"} for path in paths]
    checked = check(manifest_from_rows(rows, tmp_path / "m.parquet"), tmp_path / "deep" / "n.parquet")
    assert checked.manifest.column("path") == paths
    assert [verdict.kind for verdict in checked.results] == [VideoStatus.FINE, VideoStatus.MISSING]


def test_counts_and_list_of_problems(corpus: Manifest, tmp_path: Path) -> None:
    rows = corpus.table.to_pylist()
    more = [{**rows[0], "pair_id": "again"}, {**rows[1], "pair_id": "more"}]
    checked = check(manifest_from_rows([*rows, *more], corpus.path))
    counts = {"FINE": (1, 2), "SHORT": (1, 1), "MISSING": (1, 1), "EMPTY": (1, 2), "OUTSIDE": (1, 1)}
    assert checked.count_statuses() == {VideoStatus[name]: count for name, count in counts.items()}
    assert list(checked.count_statuses()) == [kind for kind in VideoStatus if kind in KINDS]
    checked.write_list(tmp_path / "deep" / "list.csv")
    lines = (tmp_path / "deep" / "list.csv").read_text().splitlines()
    assert lines[:3] == [
        "pair_id,path,kind,message",
        "empty,videos/empty.mp4,empty file,the file is empty (0 bytes)",
        '"gone, far",videos/gone.mp4,missing,no such file',
    ]
    assert len(lines) == 6


@pytest.mark.parametrize("decode", [False, True])
def test_outputs_that_cannot_be_written(corpus: Manifest, tmp_path: Path, decode: bool) -> None:
    with pytest.raises(RunError, match=r"videos .*Is a directory"):
        check(corpus).write_list(corpus.path.parent / "videos")
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match="file"):
        check(corpus, tmp_path / "file" / "n.parquet", decode=decode)


def test_every_video_is_opened_once(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noting(jobs, **options):
        asked.extend(jobs)
        return check_videos(jobs, **options)

    monkeypatch.setattr("crosspair.corpora.check.check_videos", noting)
    done: list[int] = []
    check(corpus, progress=done.append, decode=True)
    assert [Path(path).name for path, _ in asked] == ["good.mp4", "empty.mp4", "gone.mp4"]
    assert [parts for _, parts in asked] == [[WHOLE, (0.5, 1.0), (5.0, 9.0)], [WHOLE], [WHOLE]]
    assert done == [0, 1, 2, 3]


# --- resuming -----------------------------------------------------------------------------------


def stopped_after(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Interrupt a check after ``number`` videos; return the list of checked names."""
    asked: list[str] = []

    def interrupted(jobs, **options):
        one_by_one = {**options, "workers": 1}
        for count, (job, found) in enumerate(check_videos(jobs, **one_by_one)):
            if count == number:
                raise KeyboardInterrupt
            asked.append(Path(jobs[job][0]).name)
            yield job, found

    monkeypatch.setattr("crosspair.corpora.check.check_videos", interrupted)
    return asked


def test_an_interrupted_check_resumes(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = corpus.path.read_bytes()
    stopped_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        check(corpus, decode=True)
    assert corpus.path.read_bytes() == before
    journal = corpus.path.with_name(".m.parquet.checked")
    assert "good.mp4" in journal.read_text()
    journal.write_text(journal.read_text() + '["cut sho')
    asked = stopped_after(99, monkeypatch)
    done: list[int] = []
    monkeypatch.chdir(corpus.path.parent)
    again = Manifest.read(corpus.path.name)  # the same videos, called otherwise
    checked = check(again, decode=True, progress=done.append)
    assert asked == ["empty.mp4", "gone.mp4"]
    assert done == [1, 2, 3]
    assert [verdict.kind for verdict in checked.results] == KINDS
    assert checked.manifest.column("error") == ERRORS
    assert not journal.exists()


def test_a_changed_video_is_checked_again(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        check(corpus, decode=True)
    (corpus.path.parent / "videos" / "empty.mp4").write_text("text, for a change\n")
    asked = stopped_after(99, monkeypatch)
    checked = check(corpus, decode=True)
    assert asked == ["empty.mp4", "gone.mp4"]
    assert checked.results[1].kind is VideoStatus.NOT_A_VIDEO


def test_results_are_read_from_the_journal(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal holds results that no check would produce."""
    results = [CheckResult(VideoStatus.CUT, "zu kürz"), CheckResult(VideoStatus.FINE)]
    found = ProbeResult({"fps": 29.97, "codec": "h264"}, results)
    corpus = corpus.take([0, 3])
    monkeypatch.setattr("crosspair.corpora.check.check_videos", lambda *_, **__: (each for each in [(0, found)]))
    with pytest.raises(KeyboardInterrupt):
        check(corpus, decode=True, progress=interrupt)
    journal = corpus.path.with_name(".m.parquet.checked")
    journal.write_text(journal.read_text() + "\n".join(["[1]", "7", '["a", {}, [["NONE", ""]]]', "{"]))
    assert stopped_after(99, monkeypatch) == []
    checked = check(corpus, decode=True)
    assert checked.results == found.results
    assert checked.manifest.column("fps") == [29.97] * 2
    assert not journal.exists()


def interrupt(done: int) -> None:
    if done:
        raise KeyboardInterrupt


def test_other_segments_are_checked_again(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        check(corpus.take([0, 3]), decode=True, progress=interrupt)
    asked = stopped_after(99, monkeypatch)
    check(corpus.take([0]), decode=True)
    assert asked == ["good.mp4"]


def test_a_journal_that_cannot_be_written(corpus: Manifest) -> None:
    corpus.path.with_name(".m.parquet.checked").mkdir()
    with pytest.raises(RunError, match=r"\.m\.parquet\.checked .*Is a directory$"):
        check(corpus, decode=True)
