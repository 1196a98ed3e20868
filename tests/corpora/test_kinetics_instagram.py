"""Kinetics and Instagram-300k: official lists, titles and captions to a manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.readers import instagram_corpus, kinetics_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, Probed, read, skipped_pairs

HEADER = "label,youtube_id,time_start,time_end,split\n"
ONE, TWO = "-abcdefgh_1", "abc_000010_"  # such ids there are
LINES = f'playing cello,{ONE},417,427,train\n"massaging person\'s head",{TWO},0,10,validate\n'
TITLES = f"{ONE}\tcello\tMy CELLO 🎻 \n{TWO}\t\tÜber !!\n"


def kinetics(disk: Disk, text: str = HEADER + LINES, **options: Any) -> Manifest:
    lists = options.pop("lists", None) or [disk.file("train.csv", text)]
    return kinetics_corpus(disk.videos, lists, disk.root / "m.parquet", **options)


def kinetics_refused(disk: Disk, message: str, text: str = HEADER + LINES, **options: Any) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        kinetics(disk, text, **options)
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


@pytest.mark.parametrize("form", ["{}.mp4", "playing cello/{}.mkv", "{}/{}.MP4"])
def test_trimmed_clips_in_any_folder(disk: Disk, form: str) -> None:
    for name in (f"{ONE}_000417_000427", f"{TWO}_000000_000010"):
        disk.link(form.format(name, name))
    disk.link(f"whole/{ONE}.mp4")  # trimmed clips are preferred
    manifest = kinetics(disk)
    assert read(manifest, "pair_id", "start", "end", "label", "split", "title", "error") == [
        (ONE, None, None, "playing cello", "train", None, None),
        (TWO, None, None, "massaging person's head", "val", None, None),
    ]
    assert all(Path(clip.path).is_file() and "whole" not in clip.path for clip in manifest.clips())


@pytest.mark.parametrize(
    ("duration", "part"), [(10.0, (None, None)), (11.0, (None, None)), (427.5, (417, 427)), (420.0, (417, 427))]
)
def test_a_video_named_by_its_id(
    disk: Disk, probed: Probed, duration: float, part: tuple[float | None, float | None]
) -> None:
    disk.link(f"{ONE}.mp4")
    probed.duration = duration
    assert read(kinetics(disk), "start", "end", "error") == [(*part, None)]


def test_a_whole_video_that_ends_before_its_segment(disk: Disk, probed: Probed) -> None:
    disk.link(f"{ONE}.mp4")
    probed.duration = 30.0
    manifest = kinetics(disk)
    (error,) = manifest.column("error")
    assert f"{ONE}.mp4" in error
    assert skipped_pairs(manifest.path)[-1] == (ONE, "broken file", error)


def test_the_authors_titles(disk: Disk) -> None:
    third = "playing cello,untitled_11,1,11,train\nplaying cello,no_file_111,1,11,train\n"
    disk.link(f"{ONE}.mp4", f"{TWO}.mp4", "untitled_11.mp4")
    manifest = kinetics(disk, HEADER + LINES + third, titles=disk.file("titles.tsv", TITLES))
    assert read(manifest, "pair_id", "title", "title_clean") == [(ONE, "My CELLO 🎻", "cello"), (TWO, "Über !!", "")]
    assert skipped_pairs(manifest.path) == [
        ("untitled_11", "no title", str(disk.videos / "untitled_11.mp4")),
        ("no_file_111", "no file", "no video no_file_111_000001_000011 or no_file_111"),
    ]


def test_several_lists_and_class_names(disk: Disk) -> None:
    disk.link(f"{ONE}.mp4", f"{TWO}.mp4")
    first, second = LINES.splitlines()
    lists = [disk.file("train.csv", HEADER + first), disk.file("val.csv", f"{HEADER.strip()},is_cc\n{second},1\n")]
    manifest = kinetics(disk, lists=lists, class_names=disk.file("n.csv", "playing cello,Playing the Cello\n"))
    assert read(manifest, "label", "split") == [("Playing the Cello", "train"), ("massaging person's head", "val")]
    manifest.path.unlink()
    twice = [disk.file("a.csv", HEADER + LINES), disk.file("b.csv", HEADER + LINES)]
    kinetics_refused(disk, r"b\.csv, line 2: '-abcdefgh_1' .*a\.csv, line 2", lists=twice)


def test_the_complete_validation_list(disk: Disk, shared_data: Path) -> None:
    official = shared_data / "lists" / "kinetics" / "kinetics-400_val.csv"
    lines = official.read_text().splitlines()[1:]
    rows = [[field.strip('"') for field in line.split(",")] for line in lines]
    clips = [(row[0].replace(" ", "_"), f"{row[1]}_{int(row[2]):06d}_{int(row[3]):06d}") for row in rows]
    disk.link(*(f"{folder}/{name}.mp4" for folder, name in clips[:60]))
    disk.link(*(f"{row[1]}.mp4" for row in rows[60:80]))
    disk.add_broken(*(f"{name}.mp4" for _, name in clips[80:85]))
    titles = disk.file("titles.tsv", "".join(f"{row[1]}\tclean\ttitle of {row[1]}\n" for row in rows[:83]))
    manifest = kinetics(disk, lists=[official], titles=titles)
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
        ("label,id,time_start,time_end,split\n", "'youtube_id'.*'id'"),
        (HEADER + LINES + LINES, r"train\.csv, line 4: '-abcdefgh_1' .*line 2"),
        (HEADER + "a,,1,2,val\n", r"train\.csv, line 2: youtube_id"),
        (HEADER + "a,b,1,,val\n", r"train\.csv, line 2: youtube_id"),
        (HEADER + "a,b,1:30,2,val\n", r"train\.csv, line 2: time_start .*'1:30'"),
        (HEADER + "a,b,5,2,val\n", r"train\.csv, line 2: time_start '5', time_end '2'"),
        (HEADER + "a,b,1,2,dev\n", r"train\.csv, line 2: split 'dev'"),
        (HEADER + "a,b,1,2,val\n", "^no pair: .*b_000001_000002, b$"),
    ],
)
def test_invalid_lists(disk: Disk, text: str, message: str) -> None:
    kinetics_refused(disk, message, text)


def test_invalid_titles(disk: Disk) -> None:
    disk.link(f"{ONE}.mp4")
    other = disk.file("titles.tsv", TITLES.replace(ONE, "other______").replace(TWO, "another____"))
    kinetics_refused(disk, r"titles\.tsv: .*other______, another____", titles=other)
    empty = disk.file("titles.csv", f"video_id,title\n{ONE},\n")
    kinetics_refused(disk, "^no pair: .*segments", titles=empty)


# --- Instagram ----------------------------------------------------------------------------------


def entry(caption: Any | None, subset: str | None = "train") -> dict[str, str | None]:
    return {"subset": subset, "caption": caption}


def instagram(disk: Disk, captions: Any, **options: Any) -> Manifest:
    text = captions if isinstance(captions, str | bytes) else json.dumps(captions)
    return instagram_corpus(disk.videos, disk.file("captions.json", text), disk.root / "m.parquet", **options)


def test_captions_become_titles(disk: Disk) -> None:
    disk.link("trimmed_resize_17.mp4", "deep/trimmed_resize_B-_x.mp4", "trimmed_resize_9.mp4")
    captions = {"17": entry("Snow 😍\n#ski "), "B-_x": entry("a dog", "validation"), "9": entry("c", None)}
    assert read(instagram(disk, captions), "pair_id", "title", "split", "label", "error") == [
        ("17", "Snow 😍\n#ski", "train", None, None),
        ("B-_x", "a dog", "val", None, None),
        ("9", "c", None, None, None),
    ]


def test_half_an_emoji_at_the_end_of_a_cut_caption_is_replaced(disk: Disk) -> None:
    disk.link("trimmed_resize_a.mp4")
    manifest = instagram(disk, '{"a": {"subset": "train", "caption": "Snow \\ud83d\\ude0d \\ud83d"}}')
    assert manifest.column("title") == ["Snow 😍 \ufffd"]


def test_missing_videos_and_captions_are_listed(disk: Disk) -> None:
    disk.link("trimmed_resize_a.mp4", "trimmed_resize_b.mp4", "trimmed_resize_c.mp4")
    disk.add_broken("trimmed_resize_d.mp4")
    captions = {"a": entry("A"), "b": entry(" "), "c": entry(None), "d": entry("D"), "e": entry("")}
    manifest = instagram(disk, captions)
    assert manifest.column("pair_id") == ["a", "d"]
    assert skipped_pairs(manifest.path) == [
        ("b", "no title", str(disk.videos / "trimmed_resize_b.mp4")),
        ("c", "no title", str(disk.videos / "trimmed_resize_c.mp4")),
        ("e", "no file", "no video trimmed_resize_e.mp4"),
        ("d", "broken file", manifest.column("error")[1]),
    ]


@pytest.mark.parametrize(
    ("template", "name"), [("{id}.webm", "x{1}.webm"), ("{id}/video.mp4", "x{1}/video.mp4"), ("{a}{id}", "{a}x{1}.avi")]
)
def test_files_of_other_names(disk: Disk, template: str, name: str) -> None:
    disk.link(name)
    assert len(instagram(disk, {"x{1}": entry("A")}, template=template)) == 1


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ('{"a": 1', r"captions\.json.*line 1"),
        ([], r"captions\.json.*list"),
        ({"a": "A dog"}, r"captions\.json, 'a': .*'subset'"),
        ({"a": {"caption": "A"}}, r"captions\.json, 'a': .*'subset'"),
        ({"a": entry(["A"])}, r"captions\.json, 'a': .*\['A'\]"),
        ({"a": entry("A", "dev")}, r"captions\.json, 'a': split 'dev'"),
        ('{"a": {"subset": "", "caption": ""}, "b": {}, "a": {}}', r"captions\.json: .*'a'"),
        (b"\xff\0\x88", r"captions\.json is not text"),
        ({}, "^no pair: .*/videos$"),
        ({"x": entry("A")}, r"^no pair: .*trimmed_resize_x\.mp4$"),
        ({"a": entry(""), "b": entry("B")}, "^no pair: .*captions"),
    ],
)
def test_invalid_captions(disk: Disk, captions: Any, message: str) -> None:
    disk.link("trimmed_resize_a.mp4")
    with pytest.raises(ManifestError, match=message) as caught:
        instagram(disk, captions)
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


def test_a_template_without_id(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"'video.mp4'.*\{id\}"):
        instagram(disk, {"a": entry("A")}, template="video.mp4")
