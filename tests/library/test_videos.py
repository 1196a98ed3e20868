"""Videos that are named: by manifests, wherever those lie, and with the titles of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing


@pytest.fixture
def beside(folder: Path) -> Manifest:
    """A manifest of one video, in a folder beside that of the videos."""
    (folder.parent / "data").mkdir()
    rows = [{"pair_id": "x", "path": "../videos/3.mp4", "duration": 3.0}]
    return manifest_from_rows(rows, ".").write(folder.parent / "data" / "m.parquet")


def test_a_file_that_a_manifest_names_has_no_other_name(beside: Manifest, folder: Path) -> None:
    assert collect_videos([beside.path]).column("path") == [str(folder / "3.mp4")]


def test_paths_count_from_the_manifests_folder(beside: Manifest) -> None:
    unknown = beside.with_columns({"duration": [None]})
    assert probe_missing(unknown).column("error") == [None]
    assert probe_missing(unknown).column("duration") == [pytest.approx(3)]


def test_a_length_alone_is_not_all_that_is_to_know(beside: Manifest) -> None:
    (row,) = probe_missing(collect_videos([beside.path])).table.to_pylist()
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
def test_a_title_is_of_the_video_at_its_path(
    lines: str, expected: list[str | None], tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    for within in ("a", "b"):
        (folder / within).mkdir(parents=True)
        (folder / within / "1.mp4").touch()
    titles = tmp_path / "titles.tsv"
    titles.write_text(lines.format(folder=folder))
    assert collect_videos([folder], titles).column("title") == expected


def test_a_title_is_of_the_video_at_its_url(tmp_path: Path) -> None:
    titles = tmp_path / "titles.tsv"
    titles.write_text("path\ttitle\nhttps://a.org/v/1.mp4\tone\n")
    urls = ["https://a.org/v/1.mp4", "https://a.org/w/1.mp4"]
    assert collect_videos(urls, titles).column("title") == ["one", None]
