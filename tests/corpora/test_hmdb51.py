"""HMDB51: official lists to manifests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import skipped_list_path
from crosspair.corpora.ucf_hmdb import hmdb51_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, Probed, read, skipped_pairs

HAIR = [
    "#1_tip!!!_(& more)_brush_hair_u_nm_np1_ba_goo_0",
    "#1_tip!!!_(& more)_brush_hair_u_nm_np1_ba_goo_1",
    "a film;)_brush_hair_h_cm_np2_le_med_3",
]
WAVE = ["me~+you[]_wave_f_nm_np1_fr_bad_7", "@home_wave_f_nm_np1_fr_bad_0"]


def lists(disk: Disk, **other: str) -> Path:
    for split in (1, 2, 3):
        uses = {1: (1, 1, 2), 2: (1, 2, 0), 3: (2, 1, 1)}[split]
        hair = "".join(f"{name}.avi {use} \n" for name, use in zip(HAIR, uses, strict=True))
        wave = "".join(f"{name}.avi {use} \n" for name, use in zip(WAVE, uses[1:], strict=True))
        disk.file(f"lists/brush_hair_test_split{split}.txt", hair)
        disk.file(f"lists/wave_test_split{split}.txt", wave)
    for name, text in other.items():
        disk.file(f"lists/{name}.txt", text)
    disk.file("lists/readme.txt", "of the lists")
    return disk.root / "lists"


def made(disk: Disk, folder: Path | None = None, **options: Any) -> Manifest:
    """The manifest by the lists in ``folder``, or by good ones."""
    out = disk.root / "m.parquet"
    (manifest,) = hmdb51_corpus(disk.videos, folder or lists(disk), out, **options)
    return manifest


@pytest.mark.parametrize("form", ["brush_hair/{}.avi", "{}.mp4"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (1, ["train", "train", "test", "train", "test"]),
        (2, ["train", "test", None, "test", None]),
        (3, ["test", "train", "train", "train", "train"]),
    ],
)
def test_one_split(disk: Disk, form: str, split: int, expected: list[str | None]) -> None:
    disk.link(*(form.format(name) for name in HAIR + WAVE))
    manifest = made(disk, splits=(split,))
    named = zip(HAIR + WAVE, ["brush hair"] * 3 + ["wave"] * 2, expected, strict=True)
    used = [row for row in named if row[2]]
    assert read(manifest, "pair_id", "label", "split") == used
    assert manifest.column("error") == [None] * len(used)
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


def test_the_complete_lists(disk: Disk, shared_data: Path, probed: Probed) -> None:
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
        sources = {
            name: {pair_id.rpartition("_np")[0][:-5] for pair_id in part.column("pair_id")}
            for name, part in parts.items()
        }
        assert not sources["train"] & sources["val"]


def test_the_complete_lists_and_few_videos(disk: Disk, shared_data: Path) -> None:
    official = shared_data / "lists" / "hmdb51"
    lines = (official / "wave_test_split1.txt").read_text().splitlines()
    used = [line.split()[0] for line in lines if line.split()[1] != "0"]
    disk.link(*(f"wave/{name}" for name in used[:20]))
    disk.add_broken(*(f"wave/{name}" for name in used[20:23]))
    manifest = made(disk, official)
    assert [bool(error) for error in manifest.column("error")] == [False] * 20 + [True] * 3
    reasons = [reason for _, reason, _ in skipped_pairs(manifest.path)]
    assert {reason: reasons.count(reason) for reason in reasons} == {
        "no file": 3570 + 1530 - 23, "broken file": 3
    }  # fmt: skip


def test_clips_of_one_source_are_held_out_together(disk: Disk) -> None:
    disk.link(*(f"{name}.avi" for name in HAIR + WAVE))
    for seed in range(4):
        held = made(disk, val_fraction=0.5, seed=seed).split("val").column("pair_id")
        assert held
        assert (HAIR[0] in held) == (HAIR[1] in held)


def test_unused_videos_are_counted(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link(*(f"{name}.avi" for name in HAIR + WAVE))
    with caplog.at_level(logging.INFO):
        manifest = made(disk, splits=(2,))
    assert "split 2" in caplog.text
    assert not skipped_list_path(manifest.path).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{WAVE[0]}.avi 3\n", r"wave_test_split1\.txt, line 1: "),
        (f"{WAVE[0]}.avi\n", r"wave_test_split1\.txt, line 1: "),
        (f"{HAIR[0]}.avi 1\n", r"wave_test_split1\.txt, line 1: .*_goo_0'.*"
         r"brush_hair_test_split1\.txt, line 1"),
    ],
)  # fmt: skip
def test_invalid_lists(disk: Disk, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        made(disk, lists(disk, wave_test_split1=text))
    assert not (disk.root / "m.parquet").exists()


def test_folders_without_lists(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=str(disk.root / "none")):
        made(disk, disk.root / "none")
    with pytest.raises(ManifestError, match=str(disk.videos)):
        made(disk, disk.videos)
    (lists(disk) / "wave_test_split2.txt").unlink()
    with pytest.raises(ManifestError, match=r"wave_test_split2\.txt"):
        made(disk, disk.root / "lists", splits=(2,))
