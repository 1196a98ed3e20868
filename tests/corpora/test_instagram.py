"""Instagram-300k: captions and file names to a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.readers import instagram_corpus
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk, read, skipped_pairs


def entry(caption: Any | None, subset: str | None = "train") -> dict[str, str | None]:
    return {"subset": subset, "caption": caption}


def made(disk: Disk, captions: Any, **options: Any) -> Manifest:
    text = captions if isinstance(captions, str | bytes) else json.dumps(captions)
    file = disk.file("captions.json", text)
    return instagram_corpus(disk.videos, file, disk.root / "m.parquet", **options)


def refused(disk: Disk, message: str, captions: Any, **options: Any) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        made(disk, captions, **options)
    assert "\n" not in str(caught.value)
    assert not (disk.root / "m.parquet").exists()


def test_captions_become_titles(disk: Disk) -> None:
    disk.link("trimmed_resize_17.mp4", "deep/trimmed_resize_B-_x.mp4", "trimmed_resize_9.mp4")
    captions = {
        "17": entry("Snow 😍\n#ski "), "B-_x": entry("a dog", "validation"), "9": entry("c", None)
    }  # fmt: skip
    manifest = made(disk, captions)
    assert read(manifest, "pair_id", "title", "split", "label", "error") == [
        ("17", "Snow 😍\n#ski", "train", None, None),
        ("B-_x", "a dog", "val", None, None),
        ("9", "c", None, None, None),
    ]
    assert all(Path(clip.path).is_file() for clip in manifest.clips())


def test_half_an_emoji_at_the_end_of_a_cut_caption_is_replaced(disk: Disk) -> None:
    disk.link("trimmed_resize_a.mp4")
    manifest = made(disk, '{"a": {"subset": "train", "caption": "Snow \\ud83d\\ude0d \\ud83d"}}')
    assert manifest.column("title") == ["Snow 😍 \ufffd"]


def test_missing_videos_are_listed(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.link("trimmed_resize_a.mp4", "trimmed_resize_b.mp4", "trimmed_resize_c.mp4")
    disk.add_broken("trimmed_resize_d.mp4")
    captions = {"a": entry("A"), "b": entry(" "), "c": entry(None)}
    manifest = made(disk, captions | {"d": entry("D"), "e": entry("")})
    assert manifest.column("pair_id") == ["a", "d"]
    broken = manifest.column("error")[1]
    assert skipped_pairs(manifest.path) == [
        ("b", "no title", str(disk.videos / "trimmed_resize_b.mp4")),
        ("c", "no title", str(disk.videos / "trimmed_resize_c.mp4")),
        ("e", "no file", "no video trimmed_resize_e.mp4"),
        ("d", "broken file", broken),
    ]
    for line in ("no title: 2 pairs (b, c)", "no file: 1 pair (e)", "broken file: 1 pair (d)"):
        assert f"m.parquet: {line}" in caplog.text


@pytest.mark.parametrize(
    ("template", "name"), [("{id}.webm", "x{1}.webm"), ("{id}/video.mp4", "x{1}/video.mp4"), ("{a}{id}", "{a}x{1}.avi")]
)
def test_files_of_other_names(disk: Disk, template: str, name: str) -> None:
    disk.link(name)
    assert len(made(disk, {"x{1}": entry("A")}, template=template)) == 1


def test_validation_fraction(disk: Disk) -> None:
    names = [f"v{i}" for i in range(10)]
    disk.link(*(f"trimmed_resize_{name}.mp4" for name in names))
    manifest = made(disk, {name: entry("A") for name in names}, val_fraction=0.2, seed=3)
    assert len(manifest.split("val")) == 2


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ('{"a": 1', r"captions\.json.*line 1"),
        ([], r"captions\.json.*list"),
        ({"a": "A dog"}, r"captions\.json, 'a': .*'subset'"),
        ({"a": {"caption": "A"}}, r"captions\.json, 'a': .*'subset'"),
        ({"a": entry(["A"])}, r"captions\.json, 'a': .*\['A'\]"),
        ({"a": entry("A", "dev")}, r"captions\.json, 'a': split 'dev'"),
        ('{"a": {"subset": "", "caption": ""}, "b": {}, "a": {}}',
         r"captions\.json: .*'a'"),
        ('{"a": "é"}'.encode("latin-1"), r"captions\.json.*line 1, byte 7"),
        ({}, "^no pair: .*/videos$"),
        ({"a": entry("A")}, r"^no pair: .*trimmed_resize_a\.mp4$"),
    ],
)  # fmt: skip
def test_invalid_captions(disk: Disk, captions: Any, message: str) -> None:
    refused(disk, message, captions)


def test_no_caption_at_all(disk: Disk) -> None:
    disk.link("trimmed_resize_a.mp4")
    refused(disk, "^no pair: .*captions", {"a": entry(""), "b": entry("B")})


def test_a_template_without_id(disk: Disk) -> None:
    refused(disk, r"'video.mp4'.*\{id\}", {"a": entry("A")}, template="video.mp4")
