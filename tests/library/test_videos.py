"""Collecting videos from manifests and folders, with titles from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    """A manifest of one video, in another folder than the video."""
    (folder.parent / "data").mkdir()
    rows = [{"pair_id": "x", "path": "../videos/3.mp4", "duration": 3.0}]
    return manifest_from_rows(rows, ".").write(folder.parent / "data" / "m.parquet")


def test_paths_of_a_manifest_become_absolute(manifest: Manifest, folder: Path) -> None:
    assert collect_videos([manifest.path]).column("path") == [str(folder / "3.mp4")]


def test_paths_are_relative_to_the_manifest(manifest: Manifest) -> None:
    unknown = manifest.with_columns({"duration": [None]})
    assert probe_missing(unknown).column("error") == [None]
    assert probe_missing(unknown).column("duration") == [pytest.approx(3)]


def test_videos_without_width_and_height_are_probed(manifest: Manifest) -> None:
    (row,) = probe_missing(collect_videos([manifest.path])).table.to_pylist()
    assert (row["width"], row["height"]) == (128, 64)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("path\ttitle\na/1.mp4\tin a\nb/1\tin b\n", ["in a", "in b"]),
        ("path\ttitle\na/1.mp4\tin a\n", ["in a", None]),
        ("path\ttitle\n../x/./a/1.mp4\tin a\n1.mp4\tany\n", ["in a", "any"]),
        ("path\ttitle\n{folder}/b/1.mp4\tin b\n", [None, "in b"]),
        ("video_id\ttitle\n1\tany\n", ["any", "any"]),
        ("path\ttitle\nc/1.mp4\tin c\n", [None, None]),
    ],
)
def test_titles_match_paths(lines: str, expected: list[str | None], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for within in ("a", "b"):
        (folder / within).mkdir(parents=True)
        (folder / within / "1.mp4").touch()
    titles = tmp_path / "titles.tsv"
    titles.write_text(lines.format(folder=folder))
    assert collect_videos([folder], titles).column("title") == expected


def test_titles_match_urls(tmp_path: Path) -> None:
    titles = tmp_path / "titles.tsv"
    titles.write_text("path\ttitle\nhttps://a.org/v/1.mp4\tone\n")
    urls = ["https://a.org/v/1.mp4", "https://a.org/w/1.mp4"]
    assert collect_videos(urls, titles).column("title") == ["one", None]
