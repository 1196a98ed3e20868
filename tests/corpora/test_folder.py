"""`folder_corpus`: matching, splits, labels and errors."""

from __future__ import annotations

import codecs
import logging
import os
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import skipped_list_path
from crosspair.corpora.readers import folder_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import read, skipped_pairs


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

    def titles(self, text: str | bytes, name: str = "titles.csv") -> Path:
        file = self.root / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def made(self, titles: str | bytes, name: str = "titles.csv", **options: Any) -> Manifest:
        return folder_corpus(self.folder, self.titles(titles, name), self.out, **options)

    def refused(self, message: str, titles: str | bytes, name: str = "titles.csv", **options: Any) -> None:
        with pytest.raises(ManifestError, match=message) as caught:
            self.made(titles, name, **options)
        assert "\n" not in str(caught.value)
        assert not self.out.exists()


@pytest.fixture
def corpus(tmp_path: Path, tiny_video: Path) -> Corpus:
    return Corpus(tmp_path, tiny_video)


# --- joining ------------------------------------------------------------------------------------


def test_videos_are_joined_with_titles_and_probed(corpus: Corpus) -> None:
    corpus.add("a.mp4", "sub/b.mp4")
    manifest = corpus.made("video_id,title\nb,A cat\na,A dog\n")
    assert read(manifest, "pair_id", "title") == [("b", "A cat"), ("a", "A dog")]
    assert read(manifest, "width", "height", "frames", "codec", "error") == [(128, 64, 12, "h264", None)] * 2
    assert manifest.column("fps") == [24.0, 24.0]
    assert Manifest.read(corpus.out).hash == manifest.hash
    for clip in manifest.clips():
        assert Path(clip.path).is_file()


def test_names_may_hold_spaces_dots_and_any_script(corpus: Corpus) -> None:
    names = ["My dog", "v.1.final", "собака", "犬 🐕", "Über"]
    corpus.add(*(f"{name}.mp4" for name in names))
    lines = "".join(f"{name},title of {name}\n" for name in names)
    assert corpus.made(f"video_id,title\n{lines}").column("pair_id") == names


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_unicode_normal_forms_are_equal(corpus: Corpus, on_disk: str, in_file: str) -> None:
    corpus.add(unicodedata.normalize(on_disk, "café.mp4"))
    title = unicodedata.normalize(in_file, "café")
    assert len(corpus.made(f"video_id,title\n{title},Coffee\n")) == 1


def test_column_path_distinguishes_equal_names(corpus: Corpus) -> None:
    corpus.add("x/a.mp4", "y/a.mp4", "a.avi")
    manifest = corpus.made("path,title\ny/a.mp4,Y\nx/a,X\na.avi,top\n")
    assert [Path(clip.path).parent.name for clip in manifest.clips()] == ["y", "x", "videos"]
    assert manifest.column("pair_id") == ["y/a.mp4", "x/a", "a.avi"]


def test_labels_splits_and_intervals_are_read(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    manifest = corpus.made("video_id,title,label,split,start,end\na,A,dog,val,0.1,0.4\nb,B,,,,\n")
    found = read(manifest, "label", "split", "start", "end")
    assert found == [("dog", "val", 0.1, 0.4), (None, None, None, None)]


def test_label_by_folder(corpus: Corpus) -> None:
    corpus.add("ApplyLipstick/a.mp4", "deep/Biking/b.mp4")
    manifest = corpus.made("video_id,title\na,A\nb,B\n", label_by_folder=True)
    assert manifest.column("label") == ["ApplyLipstick", "Biking"]


def test_other_files_are_ignored(corpus: Corpus) -> None:
    corpus.add("a.mp4", ".hidden.mp4", "notes.txt", "B.MP4")
    (corpus.folder / "folder.mp4").mkdir()
    manifest = corpus.made("video_id,title\na,A\nB,B\n")
    assert manifest.column("pair_id") == ["a", "B"]


def test_unmatched_titles_and_videos_are_listed(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add(*(f"{name}.mp4" for name in "abcdefgh"))
    with caplog.at_level(logging.WARNING):
        manifest = corpus.made("video_id,title\na,A\nx,X\ny,Y\n")
    assert manifest.column("pair_id") == ["a"]
    assert "manifest.parquet: no file: 2 pairs (x, y)" in caplog.text
    assert "manifest.parquet: no title: 7 pairs (b, c, d, e, f and 2 more)" in caplog.text
    lines = skipped_list_path(corpus.out).read_text().splitlines()
    assert lines[:2] == ["video_id,reason,detail", "x,no file,no video x"]
    assert lines[-1] == f"h,no title,{corpus.folder / 'h.mp4'}"
    assert len(lines) == 1 + 2 + 7


def test_a_video_with_an_empty_title_is_listed_once(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    manifest = corpus.made("video_id,title\na,A\nb, \n")
    assert manifest.column("pair_id") == ["a"]
    assert skipped_pairs(corpus.out) == [("b", "no title", str(corpus.folder / "b.mp4"))]


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


def test_skipped_list_is_removed_if_empty(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    corpus.made("video_id,title\na,A\n")
    assert skipped_list_path(corpus.out).exists()
    corpus.made("video_id,title\na,A\nb,B\n")
    assert not skipped_list_path(corpus.out).exists()


# --- out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
def test_paths_are_relative_to_the_manifest(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    corpus.add("sub/a b.mp4")
    monkeypatch.chdir(corpus.root)
    root = Path() if relative else corpus.root
    titles = corpus.titles("video_id,title\na b,A\n")
    manifest = folder_corpus(root / "videos", titles, root / "deep" / "down" / "m.parquet")
    assert manifest.column("path") == [str(Path("../../videos/sub/a b.mp4"))]
    monkeypatch.chdir("/")
    (clip,) = Manifest.read(corpus.root / "deep" / "down" / "m.parquet").clips()
    assert Path(clip.path).is_file()


def test_an_out_without_suffix_is_a_folder(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    titles = corpus.titles("video_id,title\na,A\n")
    made = folder_corpus(corpus.folder, titles, corpus.root / "corpus")
    assert made.path == corpus.root / "corpus" / "manifest.parquet"


def test_out_in_a_linked_folder(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    (corpus.root / "far" / "away" / "place").mkdir(parents=True)
    (corpus.root / "link").symlink_to(corpus.root / "far" / "away" / "place")
    titles = corpus.titles("video_id,title\na,A\n")
    (clip,) = folder_corpus(corpus.folder, titles, corpus.root / "link" / "m.parquet").clips()
    assert Path(clip.path).is_file()


# --- splits -------------------------------------------------------------------------------------

THREE = "video_id,title\nv_a,A\nv_b,B\nv_c,C\n"


def test_split_lists_of_ucf101_assign_splits(corpus: Corpus) -> None:
    corpus.add("X/v_a.mp4", "X/v_b.mp4", "Y/v_c.mp4")
    train = corpus.titles("X/v_a.avi 1\r\nX/v_none.avi 1\r\n", "train.txt")
    test = corpus.titles("Y/v_c.avi\n", "test.txt")
    manifest = corpus.made(THREE, split_lists={"train": train, "test": test})
    assert manifest.column("split") == ["train", None, "test"]


def test_split_lists_may_hold_a_bom_spaces_and_names_without_suffix(corpus: Corpus) -> None:
    corpus.add("my dog.mp4", "b.mp4", "v.1.mp4", "clip 2.mp4")
    names = codecs.BOM_UTF8.decode() + "my dog.mp4\nv.1\nclip 2.mp4\n"
    manifest = corpus.made(
        "video_id,title\nmy dog,A\nb,B\nv.1,C\nclip 2,D\n", split_lists={"test": corpus.titles(names, "test.txt")}
    )
    assert manifest.column("split") == ["test", None, "test", "test"]


def test_folders_in_split_lists(corpus: Corpus) -> None:
    corpus.add("biking/001.mp4", "rowing/001.mp4")
    titles = "path,title\nbiking/001.mp4,A\nrowing/001.mp4,B\n"
    for line in ("biking/001.mp4", "biking/001.avi 7", "biking/001"):
        test = corpus.titles(line, "test.txt")
        assert corpus.made(titles, split_lists={"test": test}).column("split") == ["test", None]
    corpus.out.unlink()
    message = r"test\.txt, line 2: '001\.mp4'"
    test = corpus.titles("\n001.mp4\n", "test.txt")
    corpus.refused(message, titles, split_lists={"test": test})


def test_class_number_is_removed_after_a_suffix_only(corpus: Corpus) -> None:
    corpus.add("trip.mp4", "trip 1.mp4", "trip v.2.mp4", "trip v.2 1.mp4")
    titles = "video_id,title\ntrip,A\ntrip 1,B\ntrip v.2,C\ntrip v.2 1,D\n"
    test = corpus.titles("trip 1\ntrip v.2 1\n", "test.txt")
    manifest = corpus.made(titles, split_lists={"test": test})
    assert manifest.column("split") == [None, "test", None, "test"]


def test_unknown_lines_of_a_split_list_are_logged(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add("v_a.mp4", "untitled.mp4", "trip.mp4")
    test = corpus.titles("v_a\ntrip 1\nuntitled\n", "test.txt")
    corpus.made("video_id,title\nv_a,A\ntrip,B\n", split_lists={"test": test})
    assert "test.txt: 2 of 3 lines" in caplog.text
    assert "(trip 1, untitled)" in caplog.text


def test_invalid_split_lists(corpus: Corpus) -> None:
    corpus.add("v_a.mp4", "v_b.mp4", "v_c.mp4")
    other = corpus.titles("X/w.avi 1\n", "other.txt")
    corpus.refused(r"other\.txt .*X/w\.avi$", THREE, split_lists={"test": other})
    missing = corpus.root / "none.txt"
    corpus.refused(r"none\.txt", THREE, split_lists={"test": missing})
    corpus.refused("'dev'", THREE, split_lists={"dev": other})


def test_validation_fraction(corpus: Corpus) -> None:
    names = [f"v{i}" for i in range(20)]
    corpus.add(*(f"{name}.mp4" for name in names))
    lines = "".join(f"{name},T,{'test' if i < 10 else ''}\n" for i, name in enumerate(names))
    manifest = corpus.made("video_id,title,split\n" + lines, val_fraction=0.3, seed=1)
    assert manifest.column("split")[:10] == ["test"] * 10
    assert manifest.column("split")[10:].count("val") == 3


def test_segments_of_a_video_are_held_out_together(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    parts = "".join(f"{v}{i},{v},T,{i / 20},{i / 20 + 0.05}\n" for v in "ab" for i in range(8))
    manifest = corpus.made("video_id,path,title,start,end\n" + parts, val_fraction=0.5)
    assert {split for _, split in set(read(manifest, "path", "split"))} == {None, "val"}
    assert len(set(read(manifest, "path", "split"))) == 2


def test_invalid_validation_fraction(corpus: Corpus) -> None:
    corpus.add("v_a.mp4")
    corpus.refused("1.0", THREE, val_fraction=1.0)


# --- errors -------------------------------------------------------------------------------------


def test_no_folder(corpus: Corpus) -> None:
    corpus.folder.rmdir()
    corpus.refused(str(corpus.folder), THREE)


def test_no_title_file(corpus: Corpus) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv"):
        folder_corpus(corpus.folder, corpus.root / "none.csv", corpus.out)
    with pytest.raises(ManifestError, match=str(corpus.folder)):
        folder_corpus(corpus.folder, corpus.folder, corpus.out)


def test_a_name_of_two_videos(corpus: Corpus) -> None:
    corpus.add("x/a.mp4", "y/a.mp4")
    message = r"titles\.csv, line 4: 'a'"
    corpus.refused(message, "video_id,title\n\n\na,A\n")


def test_two_titles_for_one_video(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    message = r"titles\.csv, line 3: 'a' .*line 2"
    corpus.refused(message, "video_id,title\na,A\na,B\n")


def test_two_names_for_one_part_of_a_video(corpus: Corpus) -> None:
    corpus.add("other.mp4")
    message = r"titles\.csv: 'other' and 'other.mp4'"
    corpus.refused(message, "video_id,title\nother,A\nother.mp4,B\n")
    corpus.refused(message, "video_id,title,start\nother,A,0.1\nother.mp4,B,0.1\n")
    parts = "video_id,title,start\nother,A,\nother.mp4,B,0.1\n"
    assert len(corpus.made(parts)) == 2


def test_a_title_of_no_video(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    message = "titles.csv, line 2: "
    corpus.refused(message, "video_id,title\n ,A\n")


def test_no_pair(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    corpus.refused("^no pair: .*titles.csv .*/videos.*x, y$", "video_id,title\nx,X\ny,Y\n")


def test_no_titles_at_all(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    corpus.refused("^no pair: 0 titles", "video_id,title\n")


@pytest.mark.parametrize(
    ("start", "message"),
    [("1:30", "line 2: start .*'1:30'"), ("nan", "line 2: start 'nan'"),
     ("-1", "line 2: start '-1'")],
)  # fmt: skip
def test_invalid_intervals(corpus: Corpus, start: str, message: str) -> None:
    corpus.add("a.mp4")
    corpus.refused(message, f"video_id,title,start\na,A,{start}\n")


def test_unknown_split(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    message = "titles.csv, line 2: split 'dev'"
    corpus.refused(message, "video_id,title,split\na,A,dev\n")


def test_broken_videos_are_rejected_or_marked(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus.add("v_a.mp4")
    for name in ("v_b.mp4", "v_c.mp4"):
        (corpus.folder / name).write_text("no video")
    message = r"^2 of 3 videos .*v_b\.mp4"
    corpus.refused(message, THREE)
    assert len(re.findall(r"broken: .*v_[bc]\.mp4: not a readable video", caplog.text)) == 2
    manifest = corpus.made(THREE, skip_broken=True)
    errors = manifest.column("error")
    assert errors[0] is None
    assert all("not a readable video" in error for error in errors[1:])
    assert manifest.column("codec") == ["h264", None, None]


# --- names of columns and classes ---------------------------------------------------------------


def test_columns_may_have_other_names(corpus: Corpus) -> None:
    corpus.add("a.mp4")
    text = "id,title,caption,kind\na,wrong,A dog,dogs\n"
    columns = {"video_id": "id", "title": "caption", "label": "kind"}
    manifest = corpus.made(text, title_columns=columns)
    assert read(manifest, "pair_id", "title", "label") == [("a", "A dog", "dogs")]


def test_class_names(corpus: Corpus) -> None:
    corpus.add("YoYo/a.mp4", "TaiChi/b.mp4")
    names = corpus.titles("YoYo,playing with a yo-yo\n", "names.csv")
    text = "video_id,title\na,A\nb,B\n"
    manifest = corpus.made(text, label_by_folder=True, class_names=names)
    assert manifest.column("label") == ["playing with a yo-yo", "TaiChi"]


def test_progress_of_probing(corpus: Corpus) -> None:
    corpus.add("a.mp4", "b.mp4")
    calls: list[tuple[int, int]] = []
    text = "video_id,path,title,start,end\na,a,A,,\na2,a,A,0.1,0.2\nb,b,B,,\n"
    corpus.made(text, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, 3)
    assert calls == sorted(set(calls))
