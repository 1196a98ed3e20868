"""Title files and video names: csv and tsv, the authors' form, matching, and errors."""

from __future__ import annotations

import codecs
import csv
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.tables import read_table, read_titles, titles_by_id
from crosspair.corpora.video_files import VideoFiles, video_stem
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk

BOM = codecs.BOM_UTF8.decode()
AUTHORS = "0wR5jVB-WPk\tclimb wall\tHow I CLIMB a wall!!\n-_CPS4FHFF8\t \t★ ★\nabcdefghijk\tdog\t\n"


def titles(file: Path, columns: dict[str, str] | None = None) -> list[dict[str, Any]]:
    return read_titles(file, columns).to_dict("records")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("titles.csv", 'video_id,title\na,"A dog, and ""Rex"""\n'),
        ("titles.csv", 'video_id,title\r\na,"A dog, and ""Rex"""\r\n'),
        ("titles.TSV", 'video_id\ttitle\r\na\tA dog, and "Rex"\r\n'),
        ("titles.txt", 'video_id\ttitle\na\tA dog, and "Rex"\n'),
        ("titles.txt", 'video_id,title\na,"A dog, and ""Rex"""\n'),
        ("titles.csv", BOM + 'video_id,title\na,"A dog, and ""Rex"""'),
        ("titles.csv", ' title , video_id \n"A dog, and ""Rex""",a\n\n'),
        ("titles.csv", 'path,title,\na.mp4,"A dog, and ""Rex""",,\n'),
    ],
)
def test_every_usual_form_is_read(disk: Disk, name: str, text: str) -> None:
    (row,) = titles(disk.file(name, text))
    assert row["title"] == 'A dog, and "Rex"'
    assert titles_by_id(disk.file(name, text)).keys() == {"a"}


def test_missing_fields(disk: Disk) -> None:
    found = titles(disk.file("titles.csv", "video_id,title,label,title_clean\n007,A\n1e3,B,dog, b \n"))
    assert [(row["video_id"], row["label"], row["title_clean"]) for row in found] == [
        ("007", "", None),
        ("1e3", "dog", " b "),
    ]
    assert [row["split"] for row in found] == ["", ""]


def test_quotation_marks(disk: Disk) -> None:
    rows = titles(disk.file("titles.tsv", 'video_id\ttitle\na\t"half\nb\twhole\n'))
    assert [row["title"] for row in rows] == ['"half', "whole"]
    rows = titles(disk.file("titles.csv", 'video_id,title\na,"a"|"b"\nb,5" disk\n'))
    assert [row["title"] for row in rows] == ['a|"b"', '5" disk']


@pytest.mark.parametrize("name", ["titles.tsv", "titles.txt"])
def test_the_authors_file_has_no_header(disk: Disk, name: str) -> None:
    found = [(row["video_id"], row["title"], row["title_clean"]) for row in titles(disk.file(name, AUTHORS))]
    assert found == [
        ("0wR5jVB-WPk", "How I CLIMB a wall!!", "climb wall"),
        ("-_CPS4FHFF8", "★ ★", " "),
        ("abcdefghijk", "dog", "dog"),
    ]
    assert len(titles(disk.file("titles.tsv", f"abcdefghij_\tpath\tlabel\n{AUTHORS}"))) == 4


def test_columns_may_have_other_names(disk: Disk) -> None:
    file = disk.file("titles.tsv", "youtube_id1\traw\ttitle\nx\tR\tT\n")
    with pytest.raises(ManifestError, match=r"'title'.*'video_id'"):
        read_titles(file)  # not the authors' file
    (row,) = titles(file, {"video_id": "youtube_id1", "title": "raw", "label": "raw"})
    assert (row["video_id"], row["title"], row["label"]) == ("x", "R", "R")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": "id"}, "'name'.*video_id"),
        ({"title": "text"}, "titles.csv .*'text'"),
        ({"title": "title"}, "'video_id'"),
    ],
)
def test_unknown_columns(disk: Disk, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_titles(disk.file("titles.csv", "id,title\na,A\n"), columns)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("titles.csv", "", "titles.csv .*'video_id' .*commas.*none$"),
        ("titles.csv", "title\nA\n", "titles.csv .*'video_id' .*commas.* 'title'$"),
        ("titles.csv", "video_id\ttitle\na\tA\n", r"commas.* 'video_id\\ttitle'$"),
        ("titles.tsv", "video_id,title\na,A\n", "tabs.* 'video_id,title'$"),
        ("titles.csv", "video_id,title\n\na,A dog, a cat\n", "csv, line 3: 3 fields .*2 col.*commas"),
        ("titles.tsv", "video_id\ttitle\na\tA\tB\n", "tsv, line 2: 3 fields .*2 columns.*tabs"),
        ("titles.tsv", AUTHORS + "bbbbbbbbbbb\ta\tb\tc\n", "tsv, line 4: 4 fields .*3 columns"),
        ("titles.csv", 'video_id,title\na,A\nb,"half\nc,C\nd,D\n', r"titles\.csv .*after line 2"),
        ("titles.csv", 'video_id,title\na,"A\nB"\nb,"half', r"titles\.csv .*after line 3"),
        ("titles.csv", '"video_id,title\na,A\n', r"titles\.csv .*from line 1 on"),
        ("titles.csv", 'video_id,title\na,A\nb,"half\n' + "c,some title\n" * 12_000, r"csv .*line \d+: .*line 2"),
        ("titles.csv", 'video_id,title\na,"' + "long " * 30_000, r"titles\.csv .*line \d+: field"),
        ("titles.csv", "video_id,title\na,Caf\xe9\n".encode("latin-1"), r"titles\.csv .*line 2, byte 20"),
        ("titles.csv", "video_id,title\na,A\nx/a.avi,B\n", "csv, line 3: 'a' .*csv, line 2"),
        ("titles.csv", "video_id,title\n,A\n", "csv, line 2: "),
    ],
)
def test_invalid_title_files(disk: Disk, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        titles_by_id(disk.file(name, text))
    assert "\n" not in str(caught.value)


def test_real_titles_of_the_web_are_read_whole_or_refused(shared_data: Path) -> None:
    read, refused = {}, {}
    for file in sorted((shared_data / "titles").glob("*.csv")):
        try:
            read[file.stem] = titles(file)
        except ManifestError as error:
            refused[file.stem] = str(error)
    assert "UTF-8" in refused["US_abhijeet2729"]
    assert "11 columns" in refused["US_numifye"]
    french = read["FR_AndersonReyes"]
    assert french[2]["title"].startswith("DESSINS ANIM")
    assert {len(row["video_id"]) for row in french} == {11}


@given(names=st.lists(st.text("ab\"',\t é", min_size=1), min_size=1, max_size=5))
def test_what_a_csv_writer_wrote_is_read_back(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("table") / "names.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["name"], *([name] for name in names)])
    assert read_table(file, "names").rows("name")["name"].tolist() == [name.strip() for name in names]


# --- names of videos ----------------------------------------------------------------------------


def test_a_video_is_found_by_path_and_name_with_and_without_suffix(disk: Disk) -> None:
    disk.link("deep/down/v.1.final.MP4", "a.mp4", "x/a.mp4", unicodedata.normalize("NFD", "café.mp4"))
    videos = VideoFiles(disk.videos)
    names = ("deep/down/v.1.final.MP4", "deep/down/v.1.final", "v.1.final.MP4", " v.1.final ")
    assert {videos.find(name) for name in names} == {"deep/down/v.1.final.MP4"}
    for name in ("v.1", "v.1.final.mp4", "down/v.1.final", "final", ""):
        assert videos.find(name) is None
    assert videos.find("a.mp4") == "a.mp4"  # full paths are preferred
    assert {videos.find(unicodedata.normalize(form, "café")) for form in ("NFC", "NFD")} == {videos.paths[1]}


@pytest.mark.parametrize("names", [("x/a.mp4", "y/a.mp4"), ("a.avi", "a.mp4"), ("a.mp4", "x/a.avi")])
def test_a_name_of_two_videos(disk: Disk, names: tuple[str, ...]) -> None:
    disk.link(*names)
    with pytest.raises(ManifestError, match=f"^list, line 3: 'a' .*{names[0]}, .*{names[1]}"):
        VideoFiles(disk.videos).find("a", "list, line 3")


def test_hidden_and_other_files_are_ignored(disk: Disk) -> None:
    disk.link("a.mp4", ".hidden.mp4", ".hidden/c.mp4", "deep/.d/e.mp4", "notes.txt", "b.WEBM")
    (disk.videos / "folder.mp4").mkdir()
    (disk.videos / "dangling.mp4").symlink_to("nowhere.mp4")
    assert VideoFiles(disk.videos).paths == ["a.mp4", "b.WEBM"]


def test_links_are_followed_but_not_in_circles(disk: Disk) -> None:
    disk.link("real/a.mp4")
    elsewhere = disk.root / "elsewhere"
    elsewhere.mkdir()
    os.link(disk.video, elsewhere / "b.mp4")
    (disk.videos / "a link to real").symlink_to(disk.videos / "real")
    (disk.videos / "real" / "up").symlink_to(disk.videos)
    (disk.videos / "there").symlink_to(elsewhere)
    assert VideoFiles(disk.videos).paths == ["real/a.mp4", "there/b.mp4"]


def test_folders_that_cannot_be_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match=r"a\.mp4"):
        VideoFiles(disk.root / "a.mp4")

    def scan(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("crosspair.corpora.video_files.os.scandir", scan)
    with pytest.raises(ManifestError, match=r"videos .*Permission denied"):
        VideoFiles(disk.videos)


@given(st.text("ab. ", min_size=1, max_size=8), st.sampled_from(["", ".avi", ".MP4"]))
def test_video_stem(name: str, suffix: str) -> None:
    name = f"v{name}x".replace(" ", "_")
    assert video_stem(f"a folder.mp4/{name}{suffix}") == name
    assert video_stem(f"{name}.txt") == f"{name}.txt"
