"""Collecting videos from manifests and folders, with titles from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.errors import ManifestError


def test_paths_are_relative_to_the_manifest(folder: Path) -> None:
    (folder.parent / "data").mkdir()
    rows = [{"pair_id": "x", "path": "../videos/3.mp4", "duration": 3.0}]
    manifest = manifest_from_rows(rows, ".").write(folder.parent / "data" / "m.parquet")
    assert collect_videos([manifest.path]).column("path") == [str(folder / "3.mp4")]
    unknown = probe_missing(manifest.with_columns({"duration": [None]}))
    assert (unknown.column("error"), unknown.column("duration")) == ([None], [pytest.approx(3)])
    (row,) = probe_missing(collect_videos([manifest.path])).table.to_pylist()  # width and height are missing
    assert (row["width"], row["height"]) == (128, 64)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("path\ttitle\nx/1.mp4\tin x\ny/1\tin y\n", {"x/1.mp4": "in x", "y/1.mp4": "in y"}),
        ("path\ttitle\n../videos/./x/1.mp4\tin x\n./1.mp4\troot\n", {"x/1.mp4": "in x", "1.mp4": "root"}),
        ("path\ttitle\n{folder}/y/1.mp4\tin y\n", {"y/1.mp4": "in y"}),
        ("path\ttitle\ny\\1.mp4\tin y\n", {"y/1.mp4": "in y"}),
        ("path\ttitle\nvideos/y/2.avi\tend\n", {"y/2.avi": "end"}),
        ("video_id\ttitle\ny/1\tin y\n", {"y/1.mp4": "in y"}),
        ("video_id\ttitle\n2.mp4\tmp4\n2.avi\tavi\n", {"y/2.mp4": "mp4", "y/2.avi": "avi"}),
        ("video_id\tpath\ttitle\nx/1\ty/1.mp4\tin y\n", {"y/1.mp4": "in y"}),
        ("path\ttitle\n1.mp4\tone\nno/1.mp4\tno\n./1.mp4\ttwo\n1.mp4\tone\n", {"1.mp4": "one; two"}),
        ("video_id\ttitle\nodd\tspaces\n", {"z / odd.mp4": "spaces"}),
    ],
)
def test_titles_match_the_videos_of_a_folder(
    lines: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``corpus folder``; the end of a path suffices in addition."""
    folder = tmp_path / "videos"
    for name in ("1.mp4", "x/1.mp4", "y/1.mp4", "y/2.mp4", "y/2.avi", "z / odd.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    titles = tmp_path / "titles.tsv"
    titles.write_text(lines.format(folder=folder))
    monkeypatch.chdir(tmp_path)
    for named in (str(folder), "videos"):
        rows = collect_videos([named], titles).table.to_pylist()
        assert {os.path.relpath(row["path"], folder): row["title"] for row in rows if row["title"]} == expected


@pytest.mark.parametrize("name", ["2", "y/2", "nowhere/1.mp4"])
def test_a_title_of_two_videos_or_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "y").mkdir()
    for suffix in ("avi", "mp4"):
        (tmp_path / "y" / f"2.{suffix}").touch()
    titles = tmp_path / "titles.csv"
    titles.write_text(f"path,title\n{name},one\n")
    with pytest.raises(ManifestError, match=name):
        collect_videos([tmp_path], titles)


def test_titles_without_a_video_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("video_id,title\na,one\ngone,two\n")
    assert collect_videos([tmp_path / "a.mp4"], titles).column("title") == ["one"]
    assert "gone" in caplog.text


def test_titles_match_urls(tmp_path: Path) -> None:
    titles = tmp_path / "titles.tsv"
    titles.write_text("path\ttitle\nhttps://a.org/v/1.mp4\tone\n")
    urls = ["https://a.org/v/1.mp4", "https://a.org/w/1.mp4"]
    assert collect_videos(urls, titles).column("title") == ["one", None]


def test_new_titles_replace_all_captions_of_a_manifest(tmp_path: Path) -> None:
    rows = [{"pair_id": name, "path": f"{name}.mp4", "title": "old", "titles": ["old", "older"]} for name in "ab"]
    manifest = manifest_from_rows(rows, ".").write(tmp_path / "m.parquet")
    titles = tmp_path / "titles.csv"
    titles.write_text("video_id,title\na,new\n")
    collected = collect_videos([manifest.path], titles)
    assert (collected.column("title"), collected.column("titles")) == (["new", "old"], [None, ["old", "older"]])
