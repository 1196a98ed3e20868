"""UCF101 and HMDB51: official lists to manifests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import skipped_list_path
from crosspair.corpora.ucf_hmdb import hmdb51_corpus, recording_ids, ucf101_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, Probed, read, skipped_pairs

TRAIN = [f"YoYo/v_YoYo_g{group:02d}_c{clip:02d}.avi 2" for group in (8, 9) for clip in (1, 2, 3)]
TEST = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi"]
UCF101_LISTS = {
    "classInd": "1 ApplyEyeMakeup\r\n2 YoYo\r\n",
    **{f"trainlist0{split}": "\r\n".join(TRAIN) for split in (1, 2, 3)},
    **{f"testlist0{split}": "\r\n".join(TEST) + "\r\n\r\n" for split in (1, 2, 3)},
}
NAMES = [line.split()[0].removesuffix(".avi") for line in TRAIN + TEST]
HAIR = [
    "#1_tip!!!_(& more)_brush_hair_u_nm_np1_ba_goo_0",
    "#1_tip!!!_(& more)_brush_hair_u_nm_np1_ba_goo_1",
    "a film;)_brush_hair_h_cm_np2_le_med_3",
]
WAVE = ["me~+you[]_wave_f_nm_np1_fr_bad_7", "@home_wave_f_nm_np1_fr_bad_0"]
USES = {1: (1, 1, 2), 2: (1, 2, 0), 3: (2, 1, 1)}
HMDB51_LISTS = {
    f"{label}_test_split{split}": "".join(
        f"{name}.avi {use} \n" for name, use in zip(names, uses[-len(names) :], strict=True)
    )
    for split, uses in USES.items()
    for label, names in {"brush_hair": HAIR, "wave": WAVE}.items()
}


def lists(disk: Disk, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        disk.file(f"lists/{name}.txt", text)
    disk.file("lists/readme.txt", "of the lists")
    return disk.root / "lists"


def ucf101(disk: Disk, folder: Path | None = None, **options: Any) -> Manifest:
    """The manifest by the lists in ``folder``, or by valid ones."""
    folder = folder or lists(disk, UCF101_LISTS)
    (manifest,) = ucf101_corpus(disk.videos, folder, disk.root / "m.parquet", **options)
    return manifest


def hmdb51(disk: Disk, folder: Path | None = None, **options: Any) -> Manifest:
    folder = folder or lists(disk, HMDB51_LISTS)
    (manifest,) = hmdb51_corpus(disk.videos, folder, disk.root / "m.parquet", **options)
    return manifest


def link_all(disk: Disk) -> None:
    disk.link(*(f"{name}.mp4" for name in NAMES), *(f"{name}.avi" for name in HAIR + WAVE))


@pytest.mark.parametrize("form", ["{0}.avi", "{0}.mp4", "{1}.MP4"])
def test_one_split_of_ucf101(disk: Disk, form: str) -> None:
    disk.link(*(form.format(name, name.split("/")[1]) for name in NAMES))
    manifest = ucf101(disk)
    found = read(manifest, "pair_id", "label", "split", "title", "error", "duration")
    assert found[0] == ("v_YoYo_g08_c01", "yo yo", "train", None, None, 0.5)
    assert found[6] == ("v_ApplyEyeMakeup_g01_c01", "apply eye makeup", "test", None, None, 0.5)
    assert manifest.column("split") == ["train"] * 6 + ["test"] * 2
    assert all(Path(clip.path).is_file() for clip in manifest.clips())
    assert not skipped_list_path(manifest.path).exists()


@pytest.mark.parametrize("form", ["brush_hair/{}.avi", "{}.mp4"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (1, ["train", "train", "test", "train", "test"]),
        (2, ["train", "test", None, "test", None]),
        (3, ["test", "train", "train", "train", "train"]),
    ],
)
def test_one_split_of_hmdb51(disk: Disk, form: str, split: int, expected: list[str | None]) -> None:
    disk.link(*(form.format(name) for name in HAIR + WAVE))
    manifest = hmdb51(disk, splits=(split,))
    named = zip(HAIR + WAVE, ["brush hair"] * 3 + ["wave"] * 2, expected, strict=True)
    assert read(manifest, "pair_id", "label", "split") == [row for row in named if row[2]]
    assert all(Path(clip.path).is_file() for clip in manifest.clips())
    assert not skipped_list_path(manifest.path).exists()


def test_the_complete_lists_of_ucf101(disk: Disk, shared_data: Path, probed: Probed) -> None:
    official = shared_data / "lists" / "ucf101"
    files = [official / "trainlist01.txt", official / "testlist01.txt"]
    disk.link(*(line.split()[0] for file in files for line in file.read_text().splitlines()))
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
        groups = {name: {pair.rpartition("_c")[0] for pair in part.column("pair_id")} for name, part in parts.items()}
        assert not groups["train"] & (groups["val"] | groups["test"])


def test_the_complete_lists_of_hmdb51(disk: Disk, shared_data: Path, probed: Probed) -> None:
    official = shared_data / "lists" / "hmdb51"
    files = sorted(official.glob("*_test_split1.txt"))
    lines = [line.split()[0] for file in files for line in file.read_text().splitlines()]
    disk.link(*(f"{line.removesuffix('.avi')}.mp4" for line in lines[:-10]))
    manifests = hmdb51_corpus(disk.videos, official, disk.root / "out", splits=(1, 2, 3), val_fraction=0.1)
    assert len(lines) == 6766
    assert len(probed.paths) == len(set(probed.paths))
    for manifest in manifests:
        parts = {name: manifest.split(name) for name in ("train", "val", "test")}
        missing = len(skipped_pairs(manifest.path))
        assert 0 < missing <= 10
        assert len(manifest) + missing == 3570 + 1530
        assert len(parts["val"]) == round(0.1 * (len(manifest) - len(parts["test"])))
        assert len(set(manifest.column("label"))) == 51
        train, val = (set(recording_ids(parts[name])) for name in ("train", "val"))
        assert not train & val
        assert not {name for name in train | val if name.endswith((".mp4", "_shake_hands", "_run"))}
        assert "TheBoondockSaints" in train | val  # a film with clips of 18 classes


def test_the_complete_lists_and_few_videos(disk: Disk, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk.link(*(f"v_Archery_g{group:02d}_c01.mp4" for group in range(1, 26)), "holiday.mp4")
    disk.add_broken("v_Archery_g01_c02.avi")
    with caplog.at_level(logging.INFO):
        manifest = ucf101(disk, shared_data / "lists" / "ucf101")
    assert len(manifest) == 26
    assert len(manifest.split("test")) == 8  # groups 1 to 7, the first with the broken one
    (broken,) = [error for error in manifest.column("error") if error]
    listed = skipped_pairs(manifest.path)
    assert [reason for _, reason, _ in listed].count("no file") == 13_320 - 26
    assert listed[-1] == ("v_Archery_g01_c02", "broken file", broken)
    assert "no file: 13294 pairs (v_ApplyEyeMakeup_g08_c01, " in caplog.text
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


def test_a_pair_without_a_title_is_kept_and_listed(disk: Disk) -> None:
    link_all(disk)
    titles = disk.file("titles.tsv", "video_id\ttitle\nv_YoYo_g08_c01\tLook!\n")
    names = disk.file("names.csv", "YoYo,playing with a yo-yo\n")
    manifest = ucf101(disk, titles=titles, class_names=names)
    assert manifest.column("title") == ["Look!"] + [None] * 7
    assert set(manifest.column("label")) == {"playing with a yo-yo", "apply eye makeup"}
    assert [pair[1] for pair in skipped_pairs(manifest.path)] == ["no title"] * 7


def test_a_group_is_held_out_as_a_whole(disk: Disk) -> None:
    link_all(disk)
    held = ucf101(disk, val_fraction=0.5).split("val").column("pair_id")
    assert len(held) == 3
    assert len({name.rpartition("_c")[0] for name in held}) == 1
    for seed in range(4):
        held = hmdb51(disk, val_fraction=0.5, seed=seed).split("val").column("pair_id")
        assert held
        assert (HAIR[0] in held) == (HAIR[1] in held)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classInd", "ApplyEyeMakeup\n", "classInd.txt, line 1: 'ApplyEyeMakeup'"),
        ("classInd", "1 ApplyEyeMakeup\n", "trainlist01.txt, line 1: class 'YoYo'"),
        ("testlist01", "v_YoYo_g01_c01.avi\n", "testlist01.txt, line 1: 'v_YoYo_g01_c01.avi'"),
        ("testlist01", TRAIN[1], r"testlist01.txt, line 1: 'v_YoYo_g08_c02' .*trainlist01.txt, line 2"),
        ("wave_test_split1", f"\n{WAVE[0]}.avi 3\n", r"wave_test_split1\.txt, line 2: "),
        ("wave_test_split1", f"{WAVE[0]}.avi\n", r"wave_test_split1\.txt, line 1: "),
        (
            "wave_test_split1",
            f"{HAIR[0]}.avi 1\n",
            r"wave_test_split1\.txt, line 1: .*brush_hair_test_split1\.txt, line 1",
        ),
    ],
)
def test_invalid_lists(disk: Disk, name: str, text: str, message: str) -> None:
    link_all(disk)
    make, texts = (hmdb51, HMDB51_LISTS) if name in HMDB51_LISTS else (ucf101, UCF101_LISTS)
    with pytest.raises(ManifestError, match=message) as caught:
        make(disk, lists(disk, texts | {name: text}))
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


def test_missing_lists(disk: Disk) -> None:
    folder = lists(disk, UCF101_LISTS | HMDB51_LISTS)
    (folder / "testlist01.txt").unlink()
    (folder / "wave_test_split2.txt").unlink()
    for make, lists_folder, options, named in (
        (ucf101, disk.videos, {}, "classInd.txt"),
        (ucf101, folder, {}, "testlist01.txt"),
        (ucf101, folder, {"splits": (1, 2, 3)}, "m.parquet .*3 splits"),
        (hmdb51, disk.videos, {}, str(disk.videos)),
        (hmdb51, folder, {"splits": (2,)}, "wave_test_split2.txt"),
    ):
        with pytest.raises(ManifestError, match=named):
            make(disk, lists_folder, **options)


def test_other_videos_and_titles(disk: Disk) -> None:
    titles = disk.file("titles.csv", "video_id,title\nother,A\n")
    with pytest.raises(ManifestError, match=r"titles\.csv: .*\(other\) .*\(v_YoYo_g08_c01, "):
        ucf101(disk, titles=titles)
    disk.link("other.mp4")
    with pytest.raises(ManifestError, match=r"^no pair: .*/videos.*v_YoYo_g08_c01, .* and 3 more$"):
        ucf101(disk)
    disk.link("v_YoYo_g08_c01.avi", "v_YoYo_g08_c01.mp4")
    with pytest.raises(ManifestError, match=r"trainlist01\.txt, line 1: 'v_YoYo_g08_c01'"):
        ucf101(disk)
