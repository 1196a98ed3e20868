"""Title files and video names: csv and tsv, the authors' form, matching, and errors."""

from __future__ import annotations

import codecs
import csv
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.tables import Captions, merge_captions, parse_interval, read_table, read_titles, titles_by_id
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
        ("titles.csv", 'sep=;\r\nVideo_ID;Title\r\na;"A dog, and ""Rex"""\r\n'),
        ("titles.txt", 'PATH;TITLE\r\n./x/a.mp4;A dog, and "Rex"\r\n'),
        ("titles.csv", 'video_id\ttitle\na\tA dog, and "Rex"\n'),
        ("titles.tsv", 'video_id,title\na,"A dog, and ""Rex"""\n'),
        ("titles.tsv", 'video_id\ttitle\na\t"A dog, and ""Rex"""\n'),
        ("titles.csv", 'video_id,title\na,"A dog, and ""Rex"""\n'.encode("utf-16")),
        ("titles.csv", 'video_id,title\na,"A dog, and ""Rex"""\n'.encode("utf-16-le")),
        ("titles.txt", codecs.BOM_UTF16_BE + 'path\ttitle\nx\\a.mp4\tA dog, and "Rex"\n'.encode("utf-16-be")),
        ("titles.json", '[\n{"video_id": "a",\n"title": "A dog, and \\"Rex\\""}]'),
        ("titles.json", '{"video_id": "a", "title": "A dog, and \\"Rex\\""}'),
        ("titles.jsonl", '{"id": 1, "video_id": "a", "Title": "A dog, and \\"Rex\\"", "tags": ["x"]}\n\n'),
    ],
)
def test_every_usual_form_is_read(disk: Disk, name: str, text: str | bytes) -> None:
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


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_pandas_writes_is_read_whole(tmp_path: Path, separator: str) -> None:
    texts = ['hello "you"', "line one\nline two", "a\tb; c, d", '"quoted"', '5" disk', "plain", "\u2028 é"]
    frame = pd.DataFrame({"video_id": [f"{i:03}" for i in range(len(texts))], "title": texts, "label": "x"})
    suffix = "tsv" if separator == "\t" else "csv"
    frame.to_csv(tmp_path / f"titles.{suffix}", sep=separator, index=False)
    frame.to_parquet(tmp_path / "titles.parquet")
    frame.to_json(tmp_path / "titles.jsonl", orient="records", lines=True, force_ascii=False)
    for name in (f"titles.{suffix}", "titles.parquet", "titles.jsonl"):
        found = titles(tmp_path / name)
        assert [row["title"] for row in found] == [text.strip() for text in texts]
        assert {row["video_id"] for row in found} == set(frame["video_id"])


@pytest.mark.parametrize(
    "lines",
    [
        ['a\t"half', 'b\tanother 12"'],  # as quotes, they would merge two lines
        ['a\t"Despacito" (cover)', 'b\t"x"'],
        ['a\t"two""', "b\tx"],
    ],
)
def test_quotation_marks_of_titles_in_a_tsv_are_kept(disk: Disk, lines: list[str]) -> None:
    found = titles(disk.file("titles.tsv", "\n".join(["video_id\ttitle", *lines])))
    assert [row["title"] for row in found] == [line.split("\t")[1] for line in lines]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "café “quote”"),
        ("cp1252", "Über"),
        ("cp1252", "El niño juega – façade"),
        ("cp1250", "Zażółć gęślą jaźń"),
        ("cp1251", "Собака бежит по траве"),
        ("cp932", "猫がソファで寝ている"),
        ("gb18030", "狗在草地上奔跑，猫在沙发上睡觉"),
        ("utf_16_be", "a dog"),
    ],
)
def test_the_encoding_of_other_text_is_logged(
    disk: Disk, caplog: pytest.LogCaptureFixture, encoding: str, text: str
) -> None:
    (row,) = titles(disk.file("titles.csv", f"video_id,title\na,{text}\n".encode(encoding)))
    assert row["title"] == text
    assert "titles.csv" in caplog.text
    assert encoding in caplog.text


def test_titles_that_programs_write_for_none_are_empty(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{name},{name},{name}\n" for name in ("NaN", "None", "null", "none")]
    found = titles(disk.file("titles.csv", "video_id,title,title_clean\n" + "".join(lines)))
    assert [(row["video_id"], row["title"], row["title_clean"]) for row in found] == [
        ("NaN", "", None), ("None", "", None), ("null", "", None), ("none", "none", "none"),
    ]  # fmt: skip
    assert "titles.csv, line 2" in caplog.text
    entries = '{"video_id": "a", "title": null}\n{"video_id": "b", "title": NaN, "title_clean": null}\n{"video_id": 7}'
    found = titles(disk.file("titles.jsonl", entries))
    assert [(row["video_id"], row["title"], row["title_clean"]) for row in found] == [
        ("a", "", None), ("b", "", None), ("7", "", None),
    ]  # fmt: skip


def test_numbers_of_a_table_with_types(disk: Disk) -> None:
    frame = pd.DataFrame({"Path": ["a", "b"], "title": ["A", "B"], "start": [0.5, None], "end": [2, 3], "split": None})
    frame.set_index("title").to_parquet(disk.root / "titles.parquet")
    found = titles(disk.root / "titles.parquet")
    assert [(row["path"], row["title"], row["split"]) for row in found] == [("a", "A", ""), ("b", "B", "")]
    assert [parse_interval({**row, "where": ""}, "start", "end") for row in found] == [(0.5, 2), (None, 3)]
    (row,) = titles(disk.file("titles.csv", "video_id;title;start\na;A;0,5\n"))  # a German spreadsheet
    assert parse_interval({**row, "where": ""}, "start", "end") == (0.5, None)


@pytest.mark.parametrize("header", ["description\tcaption\tkind", "VideoNumber\tname\tcaption", "video_title\ta\tb"])
def test_a_header_of_11_letters_is_not_a_video(disk: Disk, header: str) -> None:
    lines = AUTHORS.replace("dog", "a dog")
    with pytest.raises(ManifestError, match=header.partition("\t")[0]):
        read_titles(disk.file("titles.tsv", f"{header}\n{lines}"))
    with pytest.raises(ManifestError, match="first clip"):
        read_titles(disk.file("titles.tsv", "clip_number\tThe first clip\tA\nclip 2\ta\tb\nclip 3\ta\tb\n"))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("error", [("a", "A", "x"), ("b", "B", None), ("a", "C", None), ("a", "A", "y"), ("b", "", None)]),
        ("first", [("a", "A", "x"), ("b", "B", None)]),
        ("join", [("a", "A; C", "x; y"), ("b", "B", None)]),
    ],
)
def test_captions_of_a_video(disk: Disk, how: Captions, expected: list[tuple[str, str, str | None]]) -> None:
    lines = [{"video_id": name, "title": title, "title_clean": clean} for name, title, clean in (
        ("a", "A", "x"), ("b", "B", None), ("a", "C", None), ("a", "A", "y"), ("b", "", None)
    )]  # fmt: skip
    rows = read_titles(disk.file("titles.jsonl", "\n".join(map(json.dumps, lines))))
    merged = merge_captions(rows, rows["video_id"], how)
    assert list(merged[["video_id", "title", "title_clean"]].itertuples(index=False, name=None)) == expected
    rows.loc[rows.index[2], "start"] = "1"  # another part of the video
    assert len(merge_captions(rows, rows["video_id"], how)) == {"error": 5}.get(how, 3)


@pytest.mark.parametrize("name", ["titles.tsv", "titles.txt"])
def test_the_authors_file_has_no_header(disk: Disk, name: str) -> None:
    found = [(row["video_id"], row["title"], row["title_clean"]) for row in titles(disk.file(name, AUTHORS))]
    assert found == [
        ("0wR5jVB-WPk", "How I CLIMB a wall!!", "climb wall"),
        ("-_CPS4FHFF8", "★ ★", " "),
        ("abcdefghijk", "dog", "dog"),
    ]
    assert len(titles(disk.file("titles.tsv", f"abcdefgh1j_\tpath\tlabel\n{AUTHORS}"))) == 4


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
        ("titles.csv", "a;b\na;A\n", "semicolons.* 'a', 'b'$"),
        ("titles.csv", b"PK\x03\x04\x14\0\x06\0" + bytes(range(256)), "titles.csv is not text"),
        ("titles.jsonl", '{"video_id": "a", "title": "A"}\n{"vid\n', r"titles\.jsonl, line 2"),
        ("titles.jsonl", '{"video_id": "a", "title": ["A", "B"]}\n', r"titles\.jsonl, line 1"),
        ("titles.csv", "video_id,title\na,Café\nb,日本\n".encode() + b"c,\xe9t\xe9\n", r"titles\.csv .*line 4"),
        ("titles.jsonl", '["a", "A"]\n', r"titles\.jsonl, line 1"),
        ("titles.jsonl", '{"id": "a", "title": "A"}\n', r"titles\.jsonl needs .* are 'id', 'title'$"),
        ("titles.parquet", "PAR1", r"titles\.parquet"),
        ("titles.csv", "video_id,title\n\na,A dog, a cat\n", "csv, line 3: 3 fields .*2 col.*commas"),
        ("titles.tsv", "video_id\ttitle\na\tA\tB\n", "tsv, line 2: 3 fields .*2 columns.*tabs"),
        ("titles.tsv", AUTHORS + "bbbbbbbbbbb\ta\tb\tc\n", "tsv, line 4: 4 fields .*3 columns"),
        ("titles.csv", 'video_id,title\na,A\nb,"half\nc,C\nd,D\n', r"titles\.csv .*after line 2"),
        ("titles.csv", 'video_id,title\na,"A\nB"\nb,"half', r"titles\.csv .*after line 3"),
        ("titles.csv", '"video_id,title\na,A\n', r"titles\.csv .*from line 1 on"),
        ("titles.csv", 'video_id,title\na,A\nb,"half\n' + "c,some title\n" * 12_000, r"csv .*line \d+: .*line 2"),
        ("titles.csv", 'video_id,title\na,"' + "long " * 30_000, r"titles\.csv .*line \d+: field"),
        ("titles.csv", "video_id,title\na,A\nx/a.avi,B\n", "csv, line 3: 'a' .*csv, line 2"),
        ("titles.csv", "video_id,title\n,A\n", "csv, line 2: "),
        ("titles.csv", 'video_id,title\na,A\nb,"half\nc,C\nd,"D"\n', r"line 3\. .*after line 2"),
        ("titles.csv", "video_id,title\n" + "a,Café\n" * 9 + "a,\0\n", "csv is text .* line 11"),
        ("titles.csv", "video_id,title,TITLE\na,A,B\n", "csv has several columns 'title'"),
        ("titles.jsonl", '{"video_id": "a"}\n{"video_id": "b", "title": "A", "title": "B"}', "line 2: key 'title'"),
        ("titles.jsonl", '{"video_id": "a", "title": "\\ud800"}', r"titles\.jsonl, line 1 "),
        ("titles.json", '[{"video_id": "a", "title": "A"}, 7]', r"titles\.json, entry 2 "),
    ],
)
def test_invalid_title_files(disk: Disk, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        titles_by_id(disk.file(name, text))
    assert "\n" not in str(caught.value)


def test_binary_titles_are_refused(disk: Disk) -> None:
    frame = pd.DataFrame({"video_id": ["a", "b"], "title": [b"A", b"B"]})
    frame.to_parquet(disk.root / "titles.parquet")
    with pytest.raises(ManifestError, match=r"titles\.parquet, row 0"):
        read_titles(disk.root / "titles.parquet")


def test_real_titles_of_the_web_are_read_whole_or_refused(shared_data: Path) -> None:
    read, refused = {}, {}
    for file in sorted((shared_data / "titles").glob("*.csv")):
        try:
            read[file.stem] = titles(file)
        except ManifestError as error:
            refused[file.stem] = str(error)
    assert any("Beyoncé" in row["title"] for row in read["US_abhijeet2729"])  # Windows-1252
    assert "semicolons" in refused["MSRVTT_JSFUSION_test"]
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


def test_a_video_is_found_by_every_form_of_its_path(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.link("sub/a.mp4", "b.mp4", "odd\\name.mp4", "videos/c.mp4")
    (disk.root / "link").symlink_to(disk.videos)
    monkeypatch.chdir(disk.root)
    for folder in (disk.videos, Path("videos"), disk.root / "link"):
        videos = VideoFiles(folder)
        for name in ("./sub/a.mp4", "sub\\a.mp4", ".\\sub\\a", "sub//a.mp4", "x/../sub/a.mp4", f"{disk.videos}/sub/a"):
            assert videos.find(name) == "sub/a.mp4"
        assert videos.find(f"./{folder}/b.mp4" if not folder.is_absolute() else f"{folder}/b.mp4") == "b.mp4"
        assert videos.find("odd\\name.mp4") == "odd\\name.mp4"
        assert videos.find("videos/c.mp4") == "videos/c.mp4"
        assert videos.find("/elsewhere/b.mp4") is None
        assert videos.find("elsewhere/b.mp4") is None


@pytest.mark.parametrize("names", [("x/a.mp4", "y/a.mp4"), ("a.avi", "a.mp4"), ("a.mp4", "x/a.avi")])
def test_a_name_of_two_videos(disk: Disk, names: tuple[str, ...]) -> None:
    disk.link(*names)
    with pytest.raises(ManifestError, match=f"^list, line 3: 'a' .*{names[0]}, .*{names[1]}"):
        VideoFiles(disk.videos).find("a", "list, line 3")


def test_hidden_and_other_files_are_ignored(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    disk.link("a.mp4", ".hidden.mp4", ".hidden/c.mp4", "deep/.d/e.mp4", "notes.txt", "b.WEBM", "x/c.xyz", "d.3G2")
    (disk.videos / "folder.mp4").mkdir()
    (disk.videos / "dangling.mp4").symlink_to("nowhere.mp4")
    assert VideoFiles(disk.videos).paths == ["a.mp4", "b.WEBM", "d.3G2"]
    assert "2 (notes.txt, x/c.xyz)" in caplog.text


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
