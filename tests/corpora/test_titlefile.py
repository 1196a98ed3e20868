"""Title files: csv and tsv, the authors' form, and errors."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.tables import read_table, read_titles, summarize_names, titles_by_id
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk

BOM = codecs.BOM_UTF8.decode()
AUTHORS = "0wR5jVB-WPk\tclimb wall\tHow I CLIMB a wall!!\n-_CPS4FHFF8\t \t★ ★\nabcdefghijk\tdog\t\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("titles.csv", 'video_id,title\na,"A dog, and ""Rex"""\n'),
        ("titles.csv", 'video_id,title\r\na,"A dog, and ""Rex"""\r\n'),
        ("titles.tsv", 'video_id\ttitle\na\tA dog, and "Rex"\n'),
        ("titles.TSV", 'video_id\ttitle\r\na\tA dog, and "Rex"\r\n'),
        ("titles.txt", 'video_id\ttitle\na\tA dog, and "Rex"\n'),
        ("titles.txt", 'video_id,title\na,"A dog, and ""Rex"""\n'),
        ("titles.csv", BOM + 'video_id,title\na,"A dog, and ""Rex"""'),
        ("titles.csv", ' title , video_id \n"A dog, and ""Rex""",a\n\n'),
        ("titles.csv", 'path,title\na.mp4,"A dog, and ""Rex"""\n'),
        ("titles.csv", 'path,title,\na.mp4,"A dog, and ""Rex""",,\n'),
    ],
)
def test_every_usual_form_is_read(disk: Disk, name: str, text: str) -> None:
    (row,) = read_titles(disk.file(name, text)).to_dict("records")
    assert row["title"] == 'A dog, and "Rex"'
    assert titles_by_id(disk.file(name, text)).keys() == {"a"}


def test_unclosed_quotation_mark_in_a_tsv(disk: Disk) -> None:
    rows = read_titles(disk.file("titles.tsv", 'video_id\ttitle\na\t"half\nb\twhole\n')).to_dict("records")
    assert [row["title"] for row in rows] == ['"half', "whole"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('video_id,title\na,A\nb,"half\nc,C\nd,D\n', "after line 2"),
        ('video_id,title\na,"A\nB"\nb,"half', "after line 3"),
        ('"video_id,title\na,A\n', "from line 1 on"),
    ],
)
def test_unclosed_quotation_mark_in_a_csv(disk: Disk, text: str, where: str) -> None:
    with pytest.raises(ManifestError, match=rf"titles\.csv .*{where}"):
        read_titles(disk.file("titles.csv", text))


def test_a_field_that_is_too_large(disk: Disk) -> None:
    text = 'video_id,title\na,A\nb,"half\n' + "c,some title\n" * 12_000
    with pytest.raises(ManifestError, match=r"titles\.csv .*line \d+: .*line 2"):
        read_titles(disk.file("titles.csv", text))


def test_quotation_marks_may_lie_within_a_csvs_field(disk: Disk) -> None:
    rows = read_titles(disk.file("titles.csv", 'video_id,title\na,"a"|"b"\nb,5" disk\n')).to_dict("records")
    assert [row["title"] for row in rows] == ['a|"b"', '5" disk']


@pytest.mark.parametrize("name", ["titles.tsv", "titles.txt"])
def test_the_authors_file_has_no_header(disk: Disk, name: str) -> None:
    rows = read_titles(disk.file(name, AUTHORS)).to_dict("records")
    found = [(row["video_id"], row["title"], row["title_clean"]) for row in rows]
    assert found == [
        ("0wR5jVB-WPk", "How I CLIMB a wall!!", "climb wall"),
        ("-_CPS4FHFF8", "★ ★", " "),
        ("abcdefghijk", "dog", "dog"),
    ]


def test_the_first_title_of_the_authors_file_may_be_any_word(disk: Disk) -> None:
    assert len(read_titles(disk.file("titles.tsv", f"abcdefghij_\tpath\tlabel\n{AUTHORS}"))) == 4


def test_three_columns_with_a_header_are_not_the_authors(disk: Disk) -> None:
    file = disk.file("titles.tsv", "youtube_id1\traw\ttitle\nx\tR\tT\n")
    with pytest.raises(ManifestError, match=r"'title'.*'video_id'"):
        read_titles(file)
    (row,) = read_titles(file, {"video_id": "youtube_id1"}).to_dict("records")
    assert (row["video_id"], row["title"]) == ("x", "T")


def test_a_renamed_column_replaces_the_one_of_that_name(disk: Disk) -> None:
    file = disk.file("titles.csv", "id,title,caption\na,short,long\n")
    columns = {"video_id": "id", "title": "caption", "label": "caption"}
    (row,) = read_titles(file, columns).to_dict("records")
    assert (row["video_id"], row["title"], row["label"]) == ("a", "long", "long")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": "id"}, "'name'.*video_id, path, title, "),
        ({"title": "text"}, "titles.csv .*'text'.*'title'.*'id', 'title'$"),
        ({"title": "title"}, "titles.csv .*'video_id'.*'id', 'title'$"),
    ],
)  # fmt: skip
def test_unknown_columns(disk: Disk, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_titles(disk.file("titles.csv", "id,title\na,A\n"), columns)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("titles.csv", "", "commas.*none"),
        ("titles.csv", "video_id,caption\na,A\n", "commas.* 'video_id', 'caption'"),
        ("titles.csv", "title\nA\n", "commas.* 'title'"),
        ("titles.csv", "video_id\ttitle\na\tA\n", r"commas.* 'video_id\\ttitle'"),
        ("titles.tsv", "video_id,title\na,A\n", "tabs.* 'video_id,title'"),
    ],
)
def test_missing_columns(disk: Disk, name: str, text: str, found: str) -> None:
    with pytest.raises(ManifestError, match=f"'video_id' .*{found}$"):
        read_titles(disk.file(name, text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("titles.csv", "video_id,title\n\na,A dog, a cat\n", "line 3: 3 fields .*2 col.*commas"),
        ("titles.tsv", "video_id\ttitle\na\tA\tB\n", "line 2: 3 fields .*2 columns.*tabs"),
        ("titles.tsv", AUTHORS + "bbbbbbbbbbb\ta\tb\tc\n", "line 4: 4 fields .*3 columns"),
    ],
)  # fmt: skip
def test_a_title_is_never_cut_at_a_separator(disk: Disk, name: str, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_titles(disk.file(name, text))


def test_a_file_in_latin_1(disk: Disk) -> None:
    file = disk.file("titles.csv", "video_id,title\na,Caf\xe9\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"titles\.csv .*line 2, byte 20"):
        read_titles(file)


def test_a_field_without_end_in_a_csv(disk: Disk) -> None:
    file = disk.file("titles.csv", 'video_id,title\na,"' + "long " * 30_000)
    with pytest.raises(ManifestError, match=r"titles\.csv .*line \d+: field"):
        read_titles(file)


def test_ids_are_compared_without_folder_and_suffix(disk: Disk) -> None:
    file = disk.file("titles.csv", "video_id,title\nBiking/v_a.avi,A\nv_1.5,B\n")
    assert list(titles_by_id(file)) == ["v_a", "v_1.5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_id,title\na,A\nx/a.avi,B\n", "csv, line 3: 'a' .*csv, line 2"),
        ("video_id,title\n,A\n", "csv, line 2: "),
    ],
)  # fmt: skip
def test_invalid_ids(disk: Disk, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        titles_by_id(disk.file("titles.csv", text))


def test_real_titles_of_the_web_are_read_whole_or_refused(shared_data: Path) -> None:
    read, refused = {}, {}
    for file in sorted((shared_data / "titles").glob("*.csv")):
        try:
            read[file.stem] = read_titles(file).to_dict("records")
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
    rows = read_table(file, "names").below_header({"name": 0}).to_dict("records")
    assert [row["name"] for row in rows] == [name.strip() for name in names]


def test_summarize_names() -> None:
    assert summarize_names(["a", "b"]) == "a, b"
    assert summarize_names(list("abcdefg")) == "a, b, c, d, e and 2 more"
