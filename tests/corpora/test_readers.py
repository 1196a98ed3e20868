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
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, read, skipped_pairs


class Corpus:
    """A folder of copies of one video, and calls of `folder_corpus`."""

    def __init__(self, root: Path, video: Path) -> None:
        self.root, self.video, self.folder = root, video, root / "videos"
        self.out = root / "out" / "manifest.parquet"
        self.folder.mkdir()

    def add(self, *names: str) -> None:
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.video, self.folder / name)

    def titles(self, text: str, name: str = "titles.csv") -> Path:
        file = self.root / name
        file.write_text(text, newline="")
        return file

    def made(self, titles: str, **options: Any) -> Manifest:
        return folder_corpus(self.folder, self.titles(titles), self.out, **options)

    def refused(self, message: str, titles: str, **options: Any) -> None:
        with pytest.raises(ManifestError, match=message) as caught:
            self.made(titles, **options)
        assert "\n" not in str(caught.value)
        assert not self.out.exists()


@pytest.fixture
def corpus(tmp_path: Path, tiny_video: Path) -> Corpus:
    return Corpus(tmp_path, tiny_video)


# --- joining ------------------------------------------------------------------------------------


def test_videos_are_joined_with_titles_and_probed(corpus: Corpus) -> None:
    corpus.add("a.mp4", "sub/b.mp4")
    manifest = corpus.made("video_id,title,label,split,start,end\nb,A cat,cat,val,0.1,0.4\na,A dog,,,,\n")
    assert read(manifest, "pair_id", "title", "label", "split", "start", "end") == [
        ("b", "A cat", "cat", "val", 0.1, 0.4),
        ("a", "A dog", None, None, None, None),
    ]
    assert read(manifest, "width", "height", "frames", "codec", "error") == [(128, 64, 12, "h264", None)] * 2
    assert manifest.column("fps") == [24.0, 24.0]
    assert Manifest.read(corpus.out).hash == manifest.hash
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


def test_names_may_hold_spaces_dots_and_any_script(corpus: Corpus) -> None:
    names = ["My dog", "v.1.final", "собака", "犬 🐕", "Über"]
    corpus.add(*(f"{unicodedata.normalize('NFD', name)}.mp4" for name in names))
    lines = "".join(f"{name},title of {name}\n" for name in names)
    assert corpus.made(f"video_id,title\n{lines}").column("pair_id") == names


def test_column_path_distinguishes_equal_names(corpus: Corpus) -> None:
    corpus.add("x/a.mp4", "y/a.mp4", "a.avi")
    manifest = corpus.made("path,title\ny/a.mp4,Y\nx/a,X\na.avi,top\n", label_by_folder=True)
    assert [Path(clip.path).parent.name for clip in manifest.clips()] == ["y", "x", "videos"]
    assert read(manifest, "pair_id", "label") == [("y/a.mp4", "y"), ("x/a", "x"), ("a.avi", "videos")]


def test_unmatched_titles_and_videos_are_listed(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add(*(f"{name}.mp4" for name in "abcdefgh"))
    manifest = corpus.made("video_id,title\na,A\nx,X\ny,Y\nb, \n")
    assert manifest.column("pair_id") == ["a"]
    assert "no file: 2 pairs (x, y)" in caplog.text
    listed = skipped_pairs(corpus.out)
    assert listed[:2] == [("x", "no file", "no video x"), ("y", "no file", "no video y")]
    assert [pair[:2] for pair in listed[2:]] == [(name, "no title") for name in "bcdefgh"]
    corpus.made("video_id,title\n" + "".join(f"{name},A\n" for name in "abcdefgh"))
    assert not skipped_list_path(corpus.out).exists()


def test_names_that_are_not_utf_8(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add("a.mp4")
    latin = "caf\udce9"  # as Python gives é of an old file system
    os.link(corpus.folder / "a.mp4", corpus.folder / f"{latin}.mp4")
    corpus.made("video_id,title\na,A\n")
    ((name, reason, _),) = skipped_pairs(corpus.out)
    assert (name, reason) == ("caf\\udce9", "no title")
    assert "(caf\\udce9)" in caplog.text
    corpus.out.unlink()
    folder = corpus.folder.rename(corpus.root / latin)
    with pytest.raises(ManifestError, match=r"'.*caf\\udce9/a.mp4'"):
        folder_corpus(folder, corpus.titles("video_id,title\na,A\n"), corpus.out)
    assert not corpus.out.exists()


def test_columns_and_classes_may_have_other_names(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    text = "id,title,caption,kind\na,wrong,A dog,dogs\nb,,A cat,cats\n"
    columns = {"video_id": "id", "title": "caption", "label": "kind"}
    manifest = corpus.made(text, title_columns=columns, class_names=corpus.titles("dogs,all dogs\n", "names.csv"))
    assert read(manifest, "pair_id", "title", "label") == [("a", "A dog", "all dogs"), ("b", "A cat", "cats")]


def test_progress_counts_rows(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    calls: list[tuple[int, int]] = []
    text = "video_id,path,title,start,end\na,a,A,,\na2,a,A,0.1,0.2\nb,b,B,,\n"
    corpus.made(text, progress=lambda *now: calls.append(now))
    assert calls[-1] == (3, 3)
    assert calls == sorted(set(calls))


# --- output -------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
def test_paths_are_relative_to_the_manifest(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    corpus.add("sub/a b.mp4")
    monkeypatch.chdir(corpus.root)
    root = Path() if relative else corpus.root
    titles = corpus.titles("video_id,title\na b,A\n")
    manifest = folder_corpus(root / "videos", titles, root / "deep" / "down")
    assert manifest.column("path") == [str(Path("../../videos/sub/a b.mp4"))]
    monkeypatch.chdir("/")
    (clip,) = Manifest.read(corpus.root / "deep" / "down" / "manifest.parquet").clips()
    assert Path(clip.path).is_file()


def test_out_in_a_linked_folder(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    (corpus.root / "far" / "away" / "place").mkdir(parents=True)
    (corpus.root / "link").symlink_to(corpus.root / "far" / "away" / "place")
    titles = corpus.titles("video_id,title\na,A\n")
    (clip,) = folder_corpus(corpus.folder, titles, corpus.root / "link" / "m.parquet").clips()
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
    monkeypatch.setattr("crosspair.corpora.build.os.access", lambda *_: False)
    with pytest.raises(ManifestError, match=f"manifest.parquet .*{tmp_path}$"):
        ManifestOutput(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


# --- splits -------------------------------------------------------------------------------------

THREE = "video_id,title\nv_a,A\nv_b,B\nv_c,C\n"


def test_split_lists_of_ucf101_assign_splits(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add("X/v_a.mp4", "X/v_b.mp4", "Y/v_c.mp4")
    train = corpus.titles("X/v_a.avi 1\r\nX/v_none.avi 1\r\n", "train.txt")
    test = corpus.titles("Y/v_c.avi\n", "test.txt")
    manifest = corpus.made(THREE, split_lists={"train": train, "test": test})
    assert manifest.column("split") == ["train", None, "test"]
    assert "train.txt: 1 of 2 lines" in caplog.text


def test_split_lists_may_hold_a_bom_spaces_and_names_without_suffix(corpus: Corpus) -> None:
    titles = {"my dog": "test", "b": None, "v.1": "test", "clip 2": "test", "trip": None, "trip 1": "test"}
    corpus.add(*(f"{name}.mp4" for name in titles))
    names = codecs.BOM_UTF8.decode() + "my dog.mp4\nv.1\nclip 2.mp4\ntrip 1\n"  # a class number follows a suffix
    text = "video_id,title\n" + "".join(f"{name},A\n" for name in titles)
    manifest = corpus.made(text, split_lists={"test": corpus.titles(names, "test.txt")})
    assert manifest.column("split") == list(titles.values())


def test_folders_in_split_lists(corpus: Corpus) -> None:
    corpus.add("biking/001.mp4", "rowing/001.mp4")
    titles = "path,title\nbiking/001.mp4,A\nrowing/001.mp4,B\n"
    for line in ("biking/001.mp4", "biking/001.avi 7", "biking/001"):
        test = corpus.titles(line, "test.txt")
        assert corpus.made(titles, split_lists={"test": test}).column("split") == ["test", None]
    corpus.out.unlink()
    corpus.refused(
        r"test\.txt, line 2: '001\.mp4'", titles, split_lists={"test": corpus.titles("\n001.mp4", "test.txt")}
    )


def test_invalid_split_lists(corpus: Corpus) -> None:
    corpus.add("v_a.mp4", "v_b.mp4", "v_c.mp4")
    other = corpus.titles("X/w.avi 1\n", "other.txt")
    corpus.refused(r"other\.txt .*X/w\.avi$", THREE, split_lists={"test": other})
    corpus.refused(r"none\.txt", THREE, split_lists={"test": corpus.root / "none.txt"})
    corpus.refused("'dev'", THREE, split_lists={"dev": other})


def test_segments_of_a_video_are_held_out_together(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    parts = "".join(f"{v}{i},{v},T,{i / 20},{i / 20 + 0.05}\n" for v in "ab" for i in range(8))
    manifest = corpus.made("video_id,path,title,start,end\n" + parts, val_fraction=0.5)
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
    assert not any(name.startswith("t") for name in held(first))


def test_seed_of_validation() -> None:
    chosen = set()
    for seed in range(4):
        rows = pairs(20)
        split_validation(rows, 0.3, seed)
        chosen.add(tuple(held(rows)))
    assert len(chosen) > 1


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


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("brush_hair", "brush hair"),
        ("playing cello", "playing cello"),
        ("", ""),
        ("PlayingTVGame", "playing tv game"),
        ("Yo-Yo  tricks on TV", "Yo-Yo tricks on TV"),
    ],
)
def test_class_phrase(label: str, phrase: str) -> None:
    assert class_phrase(label) == phrase
    assert class_phrase(phrase) == phrase


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


def test_missing_files_and_folders(corpus: Corpus) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv"):
        folder_corpus(corpus.folder, corpus.root / "none.csv", corpus.out)
    with pytest.raises(ManifestError, match=str(corpus.folder)):
        folder_corpus(corpus.folder, corpus.folder, corpus.out)
    corpus.folder.rmdir()
    corpus.refused(str(corpus.folder), THREE)


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
def test_invalid_titles(corpus: Corpus, text: str, message: str) -> None:
    corpus.add("x/a.mp4", "y/a.mp4", "b.mp4")
    corpus.refused(message, text)


def test_broken_videos_are_rejected_or_marked(corpus: Corpus) -> None:
    corpus.add("v_a.mp4")
    for name in ("v_b.mp4", "v_c.mp4"):
        (corpus.folder / name).write_text("no video")
    corpus.refused(r"^2 of 3 videos .*v_b\.mp4", THREE)
    manifest = corpus.made(THREE, skip_broken=True)
    assert [bool(error) for error in manifest.column("error")] == [False, True, True]
    assert manifest.column("codec") == ["h264", None, None]
