"""Kinetics: official csv files and titles from the web to a manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.readers import kinetics_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, Probed, read, skipped_pairs

HEADER = "label,youtube_id,time_start,time_end,split\n"
ONE, TWO = "-abcdefgh_1", "abc_000010_"  # such ids there are
LINES = f'playing cello,{ONE},417,427,train\n"massaging person\'s head",{TWO},0,10,validate\n'
TITLES = f"{ONE}\tcello\tMy CELLO 🎻 \n{TWO}\t\tÜber !!\n"


def made(disk: Disk, text: str = HEADER + LINES, **options: Any) -> Manifest:
    lists = options.pop("lists", None) or [disk.file("train.csv", text)]
    return kinetics_corpus(disk.videos, lists, disk.root / "m.parquet", **options)


def refused(disk: Disk, message: str, text: str = HEADER + LINES, **options: Any) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        made(disk, text, **options)
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


@pytest.mark.parametrize("form", ["{}.mp4", "playing cello/{}.mkv", "train/playing_cello/{}.webm", "{}/{}.MP4"])
def test_trimmed_clips_in_any_folder(disk: Disk, form: str) -> None:
    for name in (f"{ONE}_000417_000427", f"{TWO}_000000_000010"):
        disk.link(form.format(name, name))
    manifest = made(disk)
    assert read(manifest, "pair_id", "start", "end", "label", "split", "title", "error") == [
        (ONE, None, None, "playing cello", "train", None, None),
        (TWO, None, None, "massaging person's head", "val", None, None),
    ]
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


@pytest.mark.parametrize(
    ("duration", "part"), [(10.0, (None, None)), (11.0, (None, None)), (427.5, (417, 427)), (420.0, (417, 427))]
)
def test_a_video_named_by_its_id(
    disk: Disk, probed: Probed, duration: float, part: tuple[float | None, float | None]
) -> None:
    disk.link(f"{ONE}.mp4")
    probed.duration = duration
    assert read(made(disk), "start", "end", "error") == [(*part, None)]


def test_a_whole_video_that_ends_before_its_segment(disk: Disk, probed: Probed) -> None:
    disk.link(f"{ONE}.mp4")
    probed.duration = 30.0
    manifest = made(disk)
    (error,) = manifest.column("error")
    assert error.endswith("mp4: ends at 30.00 s, before its segment, 417 s to 427 s, begins")
    assert skipped_pairs(manifest.path)[-1] == (ONE, "broken file", error)


def test_trimmed_clips_are_preferred(disk: Disk) -> None:
    disk.link(f"whole/{ONE}.mp4", f"trimmed/{ONE}_000417_000427.mp4")
    assert made(disk).column("path") == [f"videos/trimmed/{ONE}_000417_000427.mp4"]


def test_the_authors_titles(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    third = "playing cello,untitled_11,1,11,train\nplaying cello,no_file_111,1,11,train\n"
    disk.link(f"{ONE}.mp4", f"{TWO}.mp4", "untitled_11.mp4")
    manifest = made(disk, HEADER + LINES + third, titles=disk.file("titles.tsv", TITLES))
    assert read(manifest, "pair_id", "title", "title_clean") == [
        (ONE, "My CELLO 🎻", "cello"), (TWO, "Über !!", "")
    ]  # fmt: skip
    assert skipped_pairs(manifest.path) == [
        ("untitled_11", "no title", str(disk.videos / "untitled_11.mp4")),
        ("no_file_111", "no file", "no video no_file_111_000001_000011 or no_file_111"),
    ]
    assert "no title: 1 pair (untitled_11)" in caplog.text


def test_titles_of_named_columns(disk: Disk) -> None:
    disk.link(f"{ONE}.mp4", f"{TWO}.mp4")
    titles = disk.file("titles.csv", f'id,name\n{ONE},"My, cello"\n{TWO}, \n')
    manifest = made(disk, titles=titles, title_columns={"video_id": "id", "title": "name"})
    assert read(manifest, "title", "title_clean") == [("My, cello", None)]
    assert skipped_pairs(manifest.path) == [(TWO, "no title", str(disk.videos / f"{TWO}.mp4"))]


def test_several_lists_and_class_names(disk: Disk) -> None:
    disk.link(f"{ONE}.mp4", f"{TWO}.mp4")
    first, second = LINES.splitlines()
    lists = [disk.file("train.csv", HEADER + first), disk.file("val.csv", f"{HEADER.strip()},is_cc\n{second},1\n")]
    manifest = made(disk, lists=lists, class_names=disk.file("n.csv", "playing cello,Playing the Cello\n"))
    assert read(manifest, "label", "split") == [
        ("Playing the Cello", "train"), ("massaging person's head", "val")
    ]  # fmt: skip


def test_the_complete_validation_list(disk: Disk, shared_data: Path) -> None:
    official = shared_data / "lists" / "kinetics" / "kinetics-400_val.csv"
    lines = official.read_text().splitlines()[1:]
    rows = [[field.strip('"') for field in line.split(",")] for line in lines]
    clips = [(row[0].replace(" ", "_"), f"{row[1]}_{int(row[2]):06d}_{int(row[3]):06d}") for row in rows]
    disk.link(*(f"{folder}/{name}.mp4" for folder, name in clips[:60]))
    disk.link(*(f"{row[1]}.mp4" for row in rows[60:80]))
    disk.add_broken(*(f"{name}.mp4" for _, name in clips[80:85]))
    titles = disk.file("titles.tsv", "".join(f"{row[1]}\tclean\ttitle of {row[1]}\n" for row in rows[:83]))
    manifest = made(disk, lists=[official], titles=titles)
    assert len(rows) == 19_906
    assert manifest.column("pair_id") == [row[1] for row in rows[:83]]
    assert manifest.column("label") == [row[0] for row in rows[:83]]
    assert len(manifest.split("val")) == 83
    assert [bool(error) for error in manifest.column("error")] == [False] * 80 + [True] * 3
    reasons = Counter(reason for _, reason, _ in skipped_pairs(manifest.path))
    assert reasons == {"no file": 19_906 - 85, "no title": 2, "broken file": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.csv .*'label', .*'split'"),
        ("label,id,time_start,time_end,split\n", "'youtube_id', .*'label', 'id', "
         "'time_start', 'time_end', 'split'$"),
        (HEADER + LINES + LINES, r"train\.csv, line 4: '-abcdefgh_1' .*line 2"),
        (HEADER + "a,,1,2,val\n", r"train\.csv, line 2: youtube_id"),
        (HEADER + "a,b,1,,val\n", r"train\.csv, line 2: youtube_id"),
        (HEADER + "a,b,1:30,2,val\n", r"train\.csv, line 2: time_start .*'1:30'"),
        (HEADER + "a,b,5,2,val\n", r"train\.csv, line 2: time_start '5', time_end '2'"),
        (HEADER + "a,b,1,2,dev\n", r"train\.csv, line 2: split 'dev'"),
        (HEADER + "a,b,1,2,val\n", "^no pair: .*b_000001_000002, b$"),
    ],
)  # fmt: skip
def test_invalid_lists(disk: Disk, text: str, message: str) -> None:
    refused(disk, message, text)


def test_the_same_id_in_two_lists(disk: Disk) -> None:
    lists = [disk.file("a.csv", HEADER + LINES), disk.file("b.csv", HEADER + LINES)]
    refused(disk, r"b\.csv, line 2: '-abcdefgh_1' .*a\.csv, line 2", lists=lists)


def test_invalid_titles(disk: Disk) -> None:
    disk.link(f"{ONE}.mp4")
    other = disk.file("titles.tsv", TITLES.replace(ONE, "other______").replace(TWO, "another____"))
    refused(disk, r"titles\.tsv: .*other______, another____", titles=other)
    twice = disk.file("titles.tsv", TITLES + TITLES)
    refused(disk, r"titles\.tsv, line 3: '.*line 1", titles=twice)
    empty = disk.file("titles.csv", f"video_id,title\n{ONE},\n")
    refused(disk, "^no pair: .*segments", titles=empty)
