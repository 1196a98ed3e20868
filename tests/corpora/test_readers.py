"""Reading a folder with titles: matching, splits, labels, output and errors."""

from __future__ import annotations

import codecs
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora import Manifest
from crosspair.corpora.build import (
    NO_FILE,
    ManifestOutput,
    SkippedPair,
    class_phrase,
    parse_split,
    rename_classes,
    skipped_list_path,
    split_validation,
)
from crosspair.corpora.readers import folder_corpus
from crosspair.corpora.tables import Captions
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, read, skipped_pairs


def made(disk: Disk, text: str, **options: Any) -> Manifest:
    return folder_corpus(disk.videos, disk.file("titles.csv", text), disk.root / "out", **options)


def refused(disk: Disk, message: str, text: str, **options: Any) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        made(disk, text, **options)
    assert "\n" not in str(caught.value)
    assert not (disk.root / "out").exists()


# --- joining ------------------------------------------------------------------------------------


def test_videos_are_joined_with_titles_and_probed(disk: Disk) -> None:
    disk.link("a.mp4", "sub/b.mp4")
    manifest = made(disk, "video_id,title,label,split,start,end\nb,A cat,cat,val,0.1,0.4\na,A dog,,,,\n")
    assert read(manifest, "pair_id", "title", "label", "split", "start", "end") == [
        ("b", "A cat", "cat", "val", 0.1, 0.4),
        ("a", "A dog", None, None, None, None),
    ]
    assert read(manifest, "width", "height", "frames", "codec", "error") == [(128, 64, 12, "h264", None)] * 2
    assert manifest.column("fps") == [24.0, 24.0]
    assert Manifest.read(manifest.path).hash == manifest.hash
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


def test_names_may_hold_spaces_dots_and_any_script(disk: Disk) -> None:
    names = ["My dog", "v.1.final", "собака", "犬 🐕", "Über"]
    disk.link(*(f"{unicodedata.normalize('NFD', name)}.mp4" for name in names))
    lines = "".join(f"{name},title of {name}\n" for name in names)
    assert made(disk, f"video_id,title\n{lines}").column("pair_id") == names


def test_column_path_distinguishes_equal_names(disk: Disk) -> None:
    disk.link("x/a.mp4", "y/a.mp4", "a.avi")
    manifest = made(disk, "path,title\ny/a.mp4,Y\nx/a,X\na.avi,top\n", label_by_folder=True)
    assert [Path(clip.path).parent.name for clip in manifest.clips()] == ["y", "x", "videos"]
    assert read(manifest, "pair_id", "label") == [("y/a.mp4", "y"), ("x/a", "x"), ("a.avi", "videos")]


def test_unmatched_titles_and_videos_are_listed(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link(*(f"{name}.mp4" for name in "abcdefgh"))
    manifest = made(disk, "video_id,title\na,A\nx,X\ny,Y\nb, \n")
    assert manifest.column("pair_id") == ["a"]
    assert "no file: 2 pairs (x, y)" in caplog.text
    listed = skipped_pairs(manifest.path)
    assert listed[:2] == [("x", "no file", "no video x"), ("y", "no file", "no video y")]
    assert [pair[:2] for pair in listed[2:]] == [(name, "no title") for name in "bcdefgh"]
    made(disk, "video_id,title\n" + "".join(f"{name},A\n" for name in "abcdefgh"))
    assert not skipped_list_path(manifest.path).exists()


def test_names_that_are_not_utf_8(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link("a.mp4")
    latin = "caf\udce9"  # as Python gives é of an old file system
    os.link(disk.videos / "a.mp4", disk.videos / f"{latin}.mp4")
    manifest = made(disk, "video_id,title\na,A\n")
    assert len(manifest) == 1
    assert not skipped_list_path(manifest.path).exists()
    assert "caf\\udce9.mp4" in caplog.text
    shutil.rmtree(disk.root / "out")
    folder = disk.videos.rename(disk.root / latin)
    with pytest.raises(ManifestError, match=r"'.*caf\\udce9/a.mp4'"):
        folder_corpus(folder, disk.file("titles.csv", "video_id,title\na,A\n"), disk.root / "out")
    assert not (disk.root / "out").exists()


def test_columns_and_classes_may_have_other_names(disk: Disk) -> None:
    disk.link("a.mp4", "b.mp4")
    text = "id,title,caption,kind\na,wrong,A dog,dogs\nb,,A cat,cats\n"
    columns = {"video_id": "id", "title": "caption", "label": "kind"}
    manifest = made(disk, text, title_columns=columns, class_names=disk.file("names.csv", "dogs,all dogs\n"))
    assert read(manifest, "pair_id", "title", "label") == [("a", "A dog", "all dogs"), ("b", "A cat", "cats")]


@pytest.mark.parametrize(("how", "title"), [("join", "A dog; It runs; Fast"), ("first", "A dog")])
def test_several_captions_of_a_video(disk: Disk, how: Captions, title: str) -> None:
    disk.link("a.mp4", "sub/b.mp4")
    text = "path,title\n./a.mp4,A dog\nsub\\b.mp4,A cat\na.mp4,It runs\n"
    refused(disk, r"titles\.csv, line 4: 'a\.mp4' .*line 2.*--captions", text)
    text += "a,Fast\n"  # another name of the same video
    assert read(made(disk, text, captions=how), "pair_id", "title") == [("a.mp4", title), ("sub/b.mp4", "A cat")]


def test_progress_counts_rows(disk: Disk) -> None:
    disk.link("a.mp4", "b.mp4")
    calls: list[tuple[int, int]] = []
    text = "video_id,path,title,start,end\na,a,A,,\na2,a,A,0.1,0.2\nb,b,B,,\n"
    made(disk, text, progress=lambda *now: calls.append(now))
    assert calls[-1] == (3, 3)
    assert calls == sorted(set(calls))


# --- output -------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
def test_paths_are_relative_to_the_manifest(disk: Disk, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    disk.link("sub/a b.mp4")
    monkeypatch.chdir(disk.root)
    root = Path() if relative else disk.root
    file = disk.file("titles.csv", "video_id,title\na b,A\n")
    manifest = folder_corpus(root / "videos", file, root / "deep" / "down")
    assert manifest.column("path") == [str(Path("../../videos/sub/a b.mp4"))]
    monkeypatch.chdir("/")
    (clip,) = Manifest.read(disk.root / "deep" / "down" / "manifest.parquet").clips()
    assert Path(clip.path).is_file()


def test_out_in_a_linked_folder(disk: Disk) -> None:
    disk.link("a.mp4")
    (disk.root / "far" / "away" / "place").mkdir(parents=True)
    (disk.root / "link").symlink_to(disk.root / "far" / "away" / "place")
    file = disk.file("titles.csv", "video_id,title\na,A\n")
    (clip,) = folder_corpus(disk.videos, file, disk.root / "link" / "m.parquet").clips()
    assert Path(clip.path).is_file()


ROWS = [{"pair_id": "a", "path": "videos/a.mp4"}, {"pair_id": "b", "path": "b", "error": "b: cut"}]


def test_manifest_and_skipped_list_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out/pairs.parquet")
    ManifestOutput(out).write(ROWS, [SkippedPair('c, "d"', NO_FILE, "nowhere")])
    manifest = Manifest.read(out)
    assert read(manifest, "path", "error") == [("../videos/a.mp4", None), ("../b", "b: cut")]
    assert skipped_pairs(out) == [('c, "d"', "no file", "nowhere"), ("b", "broken file", "b: cut")]
    ManifestOutput(out).write(ROWS[:1], [])
    assert len(Manifest.read(out)) == 1
    assert not skipped_list_path(out).exists()


def test_other_files_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.parquet").write_text("my notes")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "a.left-out.csv").write_text("name,age\n")
    (tmp_path / "titles.tsv").write_text("")
    for name, named in {"a.parquet": "a.left-out.csv"}.items() | {
        (name, name) for name in ("notes.parquet", "folder.parquet", "titles.tsv")
    }:
        with pytest.raises(ManifestError, match=named):
            ManifestOutput(tmp_path / name)
    monkeypatch.setattr("crosspair.files.tempfile.TemporaryFile", lambda **_: (tmp_path / "none" / "file").open())
    with pytest.raises(ManifestError, match=r"manifest\.parquet"):
        ManifestOutput(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


# --- splits -------------------------------------------------------------------------------------

THREE = "video_id,title\nv_a,A\nv_b,B\nv_c,C\n"


def test_split_lists_of_ucf101_assign_splits(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link("X/v_a.mp4", "X/v_b.mp4", "Y/v_c.mp4")
    train = disk.file("train.txt", "X/v_a.avi 1\r\nX/v_none.avi 1\r\n")
    test = disk.file("test.txt", "Y/v_c.avi\n")
    manifest = made(disk, THREE, split_lists={"train": train, "test": test})
    assert manifest.column("split") == ["train", None, "test"]
    assert "train.txt: 1 of 2 lines" in caplog.text


def test_split_lists_may_hold_a_bom_spaces_and_names_without_suffix(disk: Disk) -> None:
    titles = {"my dog": "test", "b": None, "v.1": "test", "clip 2": "test", "trip": None, "trip 1": "test"}
    disk.link(*(f"{name}.mp4" for name in titles))
    names = codecs.BOM_UTF8.decode() + "my dog.mp4\nv.1\nclip 2.mp4\ntrip 1\n"  # a class number follows a suffix
    text = "video_id,title\n" + "".join(f"{name},A\n" for name in titles)
    manifest = made(disk, text, split_lists={"test": disk.file("test.txt", names)})
    assert manifest.column("split") == list(titles.values())


def test_folders_in_split_lists(disk: Disk) -> None:
    disk.link("biking/001.mp4", "rowing/001.mp4")
    titles = "path,title\nbiking/001.mp4,A\nrowing/001.mp4,B\n"
    for line in ("biking/001.mp4", "biking/001.avi 7", "biking/001"):
        test = disk.file("test.txt", line)
        assert made(disk, titles, split_lists={"test": test}).column("split") == ["test", None]
    shutil.rmtree(disk.root / "out")
    refused(disk, r"test\.txt, line 2: '001\.mp4'", titles, split_lists={"test": disk.file("test.txt", "\n001.mp4")})


def test_invalid_split_lists(disk: Disk) -> None:
    disk.link("v_a.mp4", "v_b.mp4", "v_c.mp4")
    other = disk.file("other.txt", "X/w.avi 1\n")
    refused(disk, r"other\.txt .*X/w\.avi$", THREE, split_lists={"test": other})
    refused(disk, r"none\.txt", THREE, split_lists={"test": disk.root / "none.txt"})
    refused(disk, "'dev'", THREE, split_lists={"dev": other})


def test_segments_of_a_video_are_held_out_together(disk: Disk) -> None:
    disk.link("a.mp4", "b.mp4")
    parts = "".join(f"{v}{i},{v},T,{i / 20},{i / 20 + 0.05}\n" for v in "ab" for i in range(8))
    manifest = made(disk, "video_id,path,title,start,end\n" + parts, val_fraction=0.5)
    assert {split for _, split in set(read(manifest, "path", "split"))} == {None, "val"}
    assert len(set(read(manifest, "path", "split"))) == 2


def pairs(count: int) -> list[dict[str, Any]]:
    """Of train, whether they say so or not, and as many of test."""
    train = [{"pair_id": f"v{i}", "split": "train" if i % 2 else None} for i in range(count)]
    return [*train, *({"pair_id": f"t{i}", "split": "test"} for i in range(count))]


def held(of: list[dict[str, Any]]) -> list[str]:
    return [row["pair_id"] for row in of if row["split"] == "val"]


@given(count=st.integers(0, 40), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_validation_fraction(count: int, share: float, seed: int) -> None:
    first, second = pairs(count), pairs(count)
    split_validation(first, share, seed)
    split_validation(second, share, seed)
    assert len(held(first)) == round(share * count)
    assert held(first) == held(second)
    split_validation(third := pairs(40), 0.5, seed + 1)
    split_validation(fourth := pairs(40), 0.5, seed)
    assert held(third) != held(fourth)
    assert not any(name.startswith("t") for name in held(first))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), share=st.floats(0.01, 0.9), seed=st.integers(0, 99))
def test_groups_are_never_divided(sizes: list[int], share: float, seed: int) -> None:
    of = [{"pair_id": f"{g}-{i}", "split": None} for g, n in enumerate(sizes) for i in range(n)]
    split_validation(of, share, seed, lambda row: row["pair_id"].split("-")[0])
    groups = [name.split("-")[0] for name in held(of)]
    wanted = round(share * len(of))
    assert all(groups.count(group) == sizes[int(group)] for group in groups)
    assert len(groups) <= wanted or len(set(groups)) == 1
    if wanted:
        left = [size for group, size in enumerate(sizes) if str(group) not in groups]
        assert groups
        assert len(groups) >= wanted or len(groups) + min(left) > wanted


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_validation_fraction_out_of_range(share: float) -> None:
    with pytest.raises(ManifestError, match=str(share)):
        split_validation(pairs(3), share, 0)


def test_names_of_splits() -> None:
    known = {"train": "train", "training": "train", "validate": "val", "Val": "val", "testing": "test", "": None}
    assert {name: parse_split(name, "") for name in known} == known
    with pytest.raises(ManifestError, match=r"^a.csv, line 2: split 'dev'"):
        parse_split("dev", "a.csv, line 2")


# --- classes ------------------------------------------------------------------------------------


def test_class_phrase() -> None:
    phrases = {
        "ApplyEyeMakeup": "apply eye makeup", "brush_hair": "brush hair", "playing cello": "playing cello", "": "",
        "PlayingTVGame": "playing tv game", "Yo-Yo  tricks on TV": "Yo-Yo tricks on TV",
    }  # fmt: skip
    assert {label: class_phrase(label) for label in phrases} == phrases
    assert [class_phrase(phrase) for phrase in phrases.values()] == list(phrases.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.csv", 'TaiChi,"t\'ai chi, slowly"\nnone,of these\n'),
        ("names.tsv", "official\tfor people\nTaiChi\tt'ai chi, slowly\n"),
    ],
)
def test_a_file_of_names_overrides(disk: Disk, name: str, text: str) -> None:
    rows = [{"label": label} for label in ("TaiChi", "YoYo", None)]
    rename_classes(rows, disk.file(name, text), class_phrase)
    assert [row["label"] for row in rows] == ["t'ai chi, slowly", "yo yo", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"names.csv: .*\(TaiChi\)"),
        ("TaiChi\n", "names.csv, line 1: "),
        ("TaiChi,a\nTaiChi,b\n", "names.csv, line 2: 'TaiChi' "),
        ("tai chi,TaiChi\n", r"names.csv: .*\(tai chi\) .*\(TaiChi\)"),
        ("TaiChi,a,b\n", "names.csv, line 1: 3 fields"),
    ],
)
def test_invalid_class_names(disk: Disk, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        rename_classes([{"label": "TaiChi"}], disk.file("names.csv", text), class_phrase)


# --- errors -------------------------------------------------------------------------------------


def test_missing_files_and_folders(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv"):
        folder_corpus(disk.videos, disk.root / "none.csv", disk.root / "out")
    with pytest.raises(ManifestError, match=str(disk.videos)):
        folder_corpus(disk.videos, disk.videos, disk.root / "out")
    disk.videos.rmdir()
    refused(disk, str(disk.videos), THREE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_id,title\n\n\na,A\n", r"titles\.csv, line 4: 'a'"),  # two videos
        ("video_id,title\nb,A\nb,B\n", r"titles\.csv, line 3: 'b' .*line 2"),
        ("video_id,title\nb,A\nb.mp4,B\n", r"titles\.csv: 'b' and 'b.mp4'"),
        ("video_id,title,start\nb,A,0.1\nb.mp4,B,0.1\n", r"titles\.csv: 'b' and 'b.mp4'"),
        ("video_id,title\n ,A\n", r"titles\.csv, line 2: "),
        ("video_id,title\nx,X\ny,Y\n", "^no pair: .*titles.csv .*/videos.*x, y$"),
        ("video_id,title\n", "^no pair: 0 titles"),
        ("video_id,title,start\nb,B,1:30\n", "line 2: start .*'1:30'"),
        ("video_id,title,start\nb,B,nan\n", "line 2: start 'nan'"),
        ("video_id,title,start\nb,B,-1\n", "line 2: start '-1'"),
        ("video_id,title,split\nb,B,dev\n", r"titles\.csv, line 2: split 'dev'"),
    ],
)
def test_invalid_titles(disk: Disk, text: str, message: str) -> None:
    disk.link("x/a.mp4", "y/a.mp4", "b.mp4")
    refused(disk, message, text)


def test_broken_videos_are_rejected_or_marked(disk: Disk) -> None:
    disk.link("v_a.mp4")
    for name in ("v_b.mp4", "v_c.mp4"):
        (disk.videos / name).write_text("no video")
    refused(disk, r"^2 of 3 videos .*v_b\.mp4", THREE)
    manifest = made(disk, THREE, skip_broken=True)
    assert [bool(error) for error in manifest.column("error")] == [False, True, True]
    assert manifest.column("codec") == ["h264", None, None]
