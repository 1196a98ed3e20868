"""MSR-VTT, MSVD and VATEX: official files to a manifest with several captions per video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.readers import msrvtt_corpus, msvd_corpus, vatex_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, read, skipped_pairs

# --- MSR-VTT --------------------------------------------------------------------------------------

SPLITS = {0: "train", 1: "train", 2: "validate", 3: "test", 4: "test"}  # by number of the video
TEST_PAIRS = "key,vid_key,video_id,sentence\nret0,msr4,video4,a man drives\n"


def msrvtt_content(numbers: Sequence[int]) -> dict[str, Any]:
    """Return the content of an official file with two captions for each video."""
    return {
        "info": {"contributor": "Microsoft MSM group", "version": "1.0", "year": "2016"},
        "videos": [
            {
                "id": number, "video_id": f"video{number}", "category": number, "split": SPLITS[number],
                "url": f"https://www.youtube.com/watch?v={number // 2}", "start time": 10.5, "end time": 21.0,
            }
            for number in numbers
        ],
        "sentences": [
            {"sen_id": 10 * number + text, "video_id": f"video{number}", "caption": f" caption {text} of {number} "}
            for text in (0, 1)
            for number in numbers
        ],
    }  # fmt: skip


@pytest.fixture
def msrvtt_files(disk: Disk) -> list[Path]:
    disk.link(*(f"TrainValVideo/video{number}.mp4" for number in (0, 1, 2)))
    disk.link(*(f"TestVideo/video{number}.mp4" for number in (3, 4)))
    files = {"train_val_videodatainfo.json": (0, 1, 2), "test_videodatainfo.json": (3, 4)}
    return [disk.file(name, json.dumps(msrvtt_content(numbers))) for name, numbers in files.items()]


def test_official_splits_of_msrvtt(disk: Disk, msrvtt_files: list[Path]) -> None:
    manifest = msrvtt_corpus(disk.videos, msrvtt_files, disk.root / "m.parquet")
    labels = ["music", "people", "gaming", "sports/actions", "news/events/politics"]
    splits = ["train", "train", "val", "test", "test"]
    assert read(manifest, "pair_id", "split", "label", "title", "titles", "start", "error") == [
        (f"video{i}", splits[i], labels[i], f"caption 0 of {i}", [f"caption 0 of {i}", f"caption 1 of {i}"], None, None)
        for i in range(5)
    ]
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("1k-A", {"video0": "train", "video1": "train", "video2": "train", "video3": "train", "video4": "test"}),
        ("1k-A-7k", {"video0": "train", "video1": "train", "video2": "train", "video4": "test"}),
    ],
)
def test_1k_a(disk: Disk, msrvtt_files: list[Path], split: Any, expected: dict[str, str]) -> None:
    pairs = disk.file("MSRVTT_JSFUSION_test.csv", TEST_PAIRS)
    manifest = msrvtt_corpus(disk.videos, msrvtt_files, disk.root / "m.parquet", split=split, test_pairs=pairs)
    assert dict(read(manifest, "pair_id", "split")) == expected
    assert read(manifest, "title", "titles", "label")[-1] == ("a man drives", None, "news/events/politics")
    assert manifest.column("titles")[0] == ["caption 0 of 0", "caption 1 of 0"]


def test_clips_of_one_recording_are_held_out_together(disk: Disk, msrvtt_files: list[Path]) -> None:
    pairs = disk.file("MSRVTT_JSFUSION_test.csv", TEST_PAIRS)
    options: dict[str, Any] = {"split": "1k-A", "test_pairs": pairs, "val_fraction": 0.5}
    for seed in range(4):
        manifest = msrvtt_corpus(disk.videos, msrvtt_files, disk.root / "m.parquet", seed=seed, **options)
        splits = dict(read(manifest, "pair_id", "split"))
        assert sorted(splits.values()) == ["test", "train", "train", "val", "val"]
        assert splits["video0"] == splits["video1"]
        assert splits["video2"] == splits["video3"]


def test_videos_without_a_file_or_caption_are_listed(disk: Disk) -> None:
    content = msrvtt_content([0, 1, 2])
    content["sentences"] = [each for each in content["sentences"] if each["video_id"] != "video1"]
    disk.link("video0.mp4", "video1.mp4")
    manifest = msrvtt_corpus(disk.videos, [disk.file("a.json", json.dumps(content))], disk.root / "m.parquet")
    assert manifest.column("pair_id") == ["video0"]
    assert [skipped[:2] for skipped in skipped_pairs(manifest.path)] == [("video1", "no title"), ("video2", "no file")]


def damaged(key: str, **entry: Any) -> dict[str, Any]:
    """Return the content of a file whose second entry of a list differs; None removes a value."""
    content = msrvtt_content([0, 1])
    content[key][1] = {name: value for name, value in {**content[key][1], **entry}.items() if value is not None}
    return content


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([], "a.json "),
        ({"videos": []}, "a.json, sentences "),
        (damaged("videos", split=None), "a.json, videos, entry 2 .*'split'"),
        (damaged("videos", split="dev"), "a.json, videos, entry 2: .*'dev'"),
        (damaged("videos", video_id=1), "a.json, videos, entry 2 .*'video_id'"),
        (damaged("videos", video_id="video0"), "a.json, videos, entry 2: 'video0' .*entry 1"),
        (damaged("sentences", caption=7), "a.json, sentences, entry 2 .*'caption'"),
    ],
)
def test_invalid_annotations_of_msrvtt(disk: Disk, content: Any, place: str) -> None:
    disk.link("video0.mp4", "video1.mp4")
    with pytest.raises(ManifestError, match=place) as caught:
        msrvtt_corpus(disk.videos, [disk.file("a.json", json.dumps(content))], disk.root / "m.parquet")
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


@pytest.mark.parametrize(("split", "pairs"), [("full", TEST_PAIRS), ("1k-A", ""), ("1k-A-7k", "video4\n")])
def test_invalid_test_pairs(disk: Disk, msrvtt_files: list[Path], split: Any, pairs: str) -> None:
    file = disk.file("pairs.csv", pairs) if pairs else None
    with pytest.raises(ManifestError, match=f"{split}|pairs.csv"):
        msrvtt_corpus(disk.videos, msrvtt_files, disk.root / "m.parquet", split=split, test_pairs=file)


# --- MSVD -----------------------------------------------------------------------------------------

HEADING = "\nMicrosoft Research Video Description Corpus\n\nall descriptions in English\n\n"
ONE, TWO, THREE = "-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46", "mv89psg6zh4_8_9"


def msvd(disk: Disk, descriptions: str) -> Manifest:
    disk.link(*(f"YouTubeClips/{name}.avi" for name in (ONE, TWO)))
    for split, name in {"train": TWO, "val": THREE, "test": ONE}.items():
        disk.file(f"lists/{split}_list.txt", f"{name}\n")
    file = disk.file("AllVideoDescriptions.txt", descriptions)
    return msvd_corpus(disk.videos, file, disk.root / "m.parquet", lists=disk.root / "lists")


def test_msvd(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{ONE} a squirrel is eating", f"{ONE} a chipmunk is eating", f"{TWO} a bird in a sink", f"{THREE} a man"]
    manifest = msvd(disk, HEADING + "\n".join(lines) + f"\nand more\n{TWO} \n")
    assert read(manifest, "pair_id", "split", "title", "titles") == [
        (TWO, "train", "a bird in a sink", None),
        (ONE, "test", "a squirrel is eating", ["a squirrel is eating", "a chipmunk is eating"]),
    ]
    assert [skipped[:2] for skipped in skipped_pairs(manifest.path)] == [(THREE, "no file")]
    assert "AllVideoDescriptions.txt, line 10: 1 " in caplog.text


def test_invalid_files_of_msvd(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"AllVideoDescriptions\.txt"):
        msvd(disk, HEADING)
    file = disk.root / "AllVideoDescriptions.txt"
    with pytest.raises(ManifestError, match=r"train_list\.txt"):
        msvd_corpus(disk.videos, disk.file(file.name, f"{ONE} a dog"), disk.root / "m.parquet", lists=disk.videos)


# --- VATEX ----------------------------------------------------------------------------------------

CLIPS = ("Ptf_2VRj-V0_000122_000132", "zbKOrFhUVjA_000001_000011")


def vatex_entry(name: str) -> dict[str, Any]:
    return {"videoID": name, "enCap": [f"A man of {name}.", "A woman."], "chCap": ["一个人跑步。", "一只狗。"]}


@pytest.mark.parametrize(("language", "caption"), [("en", "A woman."), ("ch", "一只狗。")])
def test_vatex(disk: Disk, language: Any, caption: str) -> None:
    disk.link(*(f"{name}.mp4" for name in CLIPS))
    names = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json")
    files = [disk.file(file, json.dumps([vatex_entry(clip)])) for file, clip in zip(names, CLIPS, strict=True)]
    manifest = vatex_corpus(disk.videos, files, disk.root / "m.parquet", language=language)
    assert read(manifest, "pair_id", "split") == [(CLIPS[0], "train"), (CLIPS[1], "val")]
    assert [captions[1] for captions in manifest.column("titles")] == [caption] * 2
    assert manifest.column("title") == [captions[0] for captions in manifest.column("titles")]


@pytest.mark.parametrize(
    ("name", "entry", "place"),
    [
        ("vatex.json", {}, "vatex.json"),
        ("vatex_public_test_english_v1.1.json", {"chCap": None}, "entry 1 .*'chCap'"),
        ("vatex_training_v1.0.json", {"videoID": None}, "entry 1 .*'videoID'"),
        ("vatex_training_v1.0.json", {"chCap": ["a", 2]}, f"entry 1: .*{CLIPS[0]}"),
    ],
)
def test_invalid_annotations_of_vatex(disk: Disk, name: str, entry: dict[str, Any], place: str) -> None:
    disk.link(f"{CLIPS[0]}.mp4")
    file = disk.file(name, json.dumps([vatex_entry(CLIPS[0]) | entry]))
    with pytest.raises(ManifestError, match=place):
        vatex_corpus(disk.videos, [file], disk.root / "m.parquet", language="ch")
