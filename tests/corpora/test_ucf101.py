"""UCF101: official lists to manifests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import skipped_list_path
from crosspair.corpora.ucf_hmdb import ucf101_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, Probed, read, skipped_pairs

CLASSES = "1 ApplyEyeMakeup\r\n2 YoYo\r\n"
TRAIN = [f"YoYo/v_YoYo_g{group:02d}_c{clip:02d}.avi 2" for group in (8, 9) for clip in (1, 2, 3)]
TEST = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi"]
LISTS = {
    "classInd.txt": CLASSES,
    **{f"trainlist0{split}.txt": "\r\n".join(TRAIN) for split in (1, 2, 3)},
    **{f"testlist0{split}.txt": "\r\n".join(TEST) + "\r\n\r\n" for split in (1, 2, 3)},
}
NAMES = [line.split()[0].removesuffix(".avi") for line in TRAIN + TEST]


def lists(disk: Disk, **other: str) -> Path:
    for name, text in (LISTS | {f"{name}.txt": text for name, text in other.items()}).items():
        disk.file(f"lists/{name}", text)
    return disk.root / "lists"


def made(disk: Disk, folder: Path | None = None, **options: Any) -> Manifest:
    """The manifest by the lists in ``folder``, or by good ones."""
    out = disk.root / "m.parquet"
    (manifest,) = ucf101_corpus(disk.videos, folder or lists(disk), out, **options)
    return manifest


@pytest.mark.parametrize(
    "names",
    [
        [f"{name}.avi" for name in NAMES],
        [f"{name}.mp4" for name in NAMES],
        [f"{name.split('/')[1]}.MP4" for name in NAMES],
    ],
)
def test_one_split(disk: Disk, names: list[str]) -> None:
    disk.link(*names)
    manifest = made(disk)
    found = read(manifest, "pair_id", "label", "split", "title", "error")
    assert found[0] == ("v_YoYo_g08_c01", "yo yo", "train", None, None)
    assert found[6] == ("v_ApplyEyeMakeup_g01_c01", "apply eye makeup", "test", None, None)
    assert manifest.column("split") == ["train"] * 6 + ["test"] * 2
    assert all(Path(clip.path).is_file() for clip in manifest.clips())
    assert manifest.column("duration") == [0.5] * 8
    assert not skipped_list_path(manifest.path).exists()


def test_the_complete_lists(disk: Disk, shared_data: Path, probed: Probed) -> None:
    official = shared_data / "lists" / "ucf101"
    files = [official / "trainlist01.txt", official / "testlist01.txt"]
    lines = [line.split()[0] for file in files for line in file.read_text().splitlines()]
    disk.link(*lines)
    manifests = ucf101_corpus(disk.videos, official, disk.root / "out", splits=(1, 2, 3), val_fraction=0.1, seed=1)
    assert len(probed.paths) == len(set(probed.paths)) == 13_320
    for split, (train, test) in enumerate([(9537, 3783), (9586, 3734), (9624, 3696)], start=1):
        manifest = Manifest.read(disk.root / "out" / f"split{split}.parquet")
        assert manifest.hash == manifests[split - 1].hash
        parts = {name: manifest.split(name) for name in ("train", "val", "test")}
        assert len(parts["test"]) == test
        assert 0 <= round(0.1 * train) - len(parts["val"]) < 4  # no group has fewer clips
        assert len(parts["train"]) == train - len(parts["val"])
        assert len(set(manifest.column("label"))) == 101
        groups = {
            name: {pair_id.rpartition("_c")[0] for pair_id in part.column("pair_id")} for name, part in parts.items()
        }
        assert not groups["train"] & groups["val"]
        assert not groups["train"] & groups["test"]
        assert not skipped_list_path(manifest.path).exists()


def test_the_complete_lists_and_few_videos(disk: Disk, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    present = [f"v_Archery_g{group:02d}_c01.mp4" for group in range(1, 26)]
    disk.link(*present)
    disk.add_broken("v_Archery_g01_c02.avi")
    disk.link("holiday.mp4")
    with caplog.at_level(logging.INFO):
        manifest = made(disk, shared_data / "lists" / "ucf101")
    assert len(manifest) == 26
    assert len(manifest.split("test")) == 8  # groups 1 to 7, the first with the broken one
    (broken,) = [error for error in manifest.column("error") if error]
    listed = skipped_pairs(manifest.path)
    assert [reason for _, reason, _ in listed].count("no file") == 13_320 - 26
    assert listed[-1] == ("v_Archery_g01_c02", "broken file", broken)
    assert "no file: 13294 pairs (v_ApplyEyeMakeup_g08_c01, " in caplog.text
    assert "broken file: 1 pair (v_Archery_g01_c02)" in caplog.text
    assert "holiday.mp4" in caplog.text


def test_real_videos_with_titles(tmp_path: Path, shared_data: Path, probed: Probed) -> None:
    ucf10 = shared_data / "ucf10"
    manifests = ucf101_corpus(
        ucf10 / "videos", ucf10 / "splits", tmp_path, splits=(1, 2, 3), titles=ucf10 / "titles.tsv"
    )
    counts = [tuple(len(m.split(name)) for name in ("train", "test")) for m in manifests]
    assert counts == [(979, 378), (986, 371), (972, 385)]
    assert all(all(m.column("title")) for m in manifests)
    assert len(probed.paths) == 1357


def test_a_pair_without_a_title_is_kept_and_listed(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link(*(f"{name}.mp4" for name in NAMES))
    titles = disk.file("titles.tsv", "video_id\ttitle\nv_YoYo_g08_c01\tLook!\n")
    manifest = made(disk, titles=titles)
    assert manifest.column("title") == ["Look!"] + [None] * 7
    assert len(skipped_pairs(manifest.path)) == 7
    assert "m.parquet: no title: 7 pairs (v_YoYo_g08_c02, " in caplog.text


def test_class_names(disk: Disk) -> None:
    disk.link(*(f"{name}.mp4" for name in NAMES))
    manifest = made(disk, class_names=disk.file("names.csv", "YoYo,playing with a yo-yo\n"))
    assert set(manifest.column("label")) == {"playing with a yo-yo", "apply eye makeup"}


def test_a_group_is_held_out_as_a_whole(disk: Disk) -> None:
    disk.link(*(f"{name}.mp4" for name in NAMES))
    held = made(disk, val_fraction=0.5).split("val").column("pair_id")
    assert {name.removesuffix("_c01") for name in held if name.endswith("_c01")} <= {
        "v_YoYo_g08", "v_YoYo_g09"
    }  # fmt: skip
    assert len(held) == 3
    assert len({name.rpartition("_c")[0] for name in held}) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classInd", "ApplyEyeMakeup\n", "classInd.txt, line 1: 'ApplyEyeMakeup'"),
        ("classInd", "1 ApplyEyeMakeup\n", "trainlist01.txt, line 1: class 'YoYo'"),
        ("testlist01", "v_YoYo_g01_c01.avi\n", "testlist01.txt, line 1: 'v_YoYo_g01_c01.avi'"),
        ("testlist01", TRAIN[1], "testlist01.txt, line 1: 'v_YoYo_g08_c02' .*"
         "trainlist01.txt, line 2"),
    ],
)  # fmt: skip
def test_invalid_lists(disk: Disk, name: str, text: str, message: str) -> None:
    disk.link(*(f"{each}.mp4" for each in NAMES))
    with pytest.raises(ManifestError, match=message) as caught:
        made(disk, lists(disk, **{name: text}))
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


def test_folders_without_lists(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"none/classInd\.txt"):
        made(disk, disk.root / "none")
    with pytest.raises(ManifestError, match=r"classInd\.txt"):
        made(disk, disk.videos)
    (lists(disk) / "testlist01.txt").unlink()
    with pytest.raises(ManifestError, match=r"testlist01\.txt"):
        made(disk, disk.root / "lists")


def test_three_splits_need_a_folder(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"m\.parquet .*3 splits"):
        made(disk, splits=(1, 2, 3))


def test_none_of_the_videos(disk: Disk) -> None:
    disk.link("other.mp4")
    with pytest.raises(ManifestError, match=r"^no pair: .*/videos.*v_YoYo_g08_c01, .* and 3 more$"):
        made(disk)


def test_titles_of_other_videos(disk: Disk) -> None:
    titles = disk.file("titles.csv", "video_id,title\nother,A\n")
    with pytest.raises(ManifestError, match=r"titles\.csv: .*\(other\) .*\(v_YoYo_g08_c01, "):
        made(disk, titles=titles)


def test_a_video_in_two_forms(disk: Disk) -> None:
    disk.link("v_YoYo_g08_c01.avi", "v_YoYo_g08_c01.mp4")
    with pytest.raises(ManifestError, match=r"trainlist01\.txt, line 1: 'v_YoYo_g08_c01'"):
        made(disk)
