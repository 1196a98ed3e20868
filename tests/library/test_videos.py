"""Collecting videos from manifests and folders, with titles from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing


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
        ("path\ttitle\na/1.mp4\tin a\nb/1\tin b\n", ["in a", "in b"]),
        ("path\ttitle\n../x/./a/1.mp4\tin a\n1.mp4\tany\n", ["in a", "any"]),
        ("path\ttitle\n{folder}/b/1.mp4\tin b\n", [None, "in b"]),
        ("path\ttitle\nx\\b\\1.mp4\tin b\n", [None, "in b"]),
        ("video_id\ttitle\n1\tany\n", ["any", "any"]),
        ("path\ttitle\nc/1.mp4\tin c\n", [None, None]),
    ],
)
def test_titles_match_paths(
    lines: str, expected: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x"
    for within in ("a", "b"):
        (folder / within).mkdir(parents=True)
        (folder / within / "1.mp4").touch()
    titles = tmp_path / "titles.tsv"
    titles.write_text(lines.format(folder=folder))
    assert collect_videos([folder], titles).column("title") == expected
    monkeypatch.chdir(tmp_path)
    assert collect_videos(["x"], titles).column("title") == expected


def test_titles_match_urls(tmp_path: Path) -> None:
    titles = tmp_path / "titles.tsv"
    titles.write_text("path\ttitle\nhttps://a.org/v/1.mp4\tone\n")
    urls = ["https://a.org/v/1.mp4", "https://a.org/w/1.mp4"]
    assert collect_videos(urls, titles).column("title") == ["one", None]
