"""Finding the videos of a folder by name."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.video_files import VideoFiles, video_stem
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk


def test_a_video_is_found_by_path_and_name_with_and_without_suffix(disk: Disk) -> None:
    disk.link("deep/down/v.1.final.MP4")
    videos = VideoFiles(disk.videos)
    names = ("deep/down/v.1.final.MP4", "deep/down/v.1.final", "v.1.final.MP4", " v.1.final ")
    assert {videos.find(name) for name in names} == {"deep/down/v.1.final.MP4"}
    for name in ("v.1", "v.1.final.mp4", "down/v.1.final", "final", ""):
        assert videos.find(name) is None


def test_full_paths_are_preferred(disk: Disk) -> None:
    disk.link("a.mp4", "x/a.mp4")
    assert VideoFiles(disk.videos).find("a.mp4") == "a.mp4"


@pytest.mark.parametrize("names", [("x/a.mp4", "y/a.mp4"), ("a.avi", "a.mp4"), ("a.mp4", "x/a.avi")])
def test_a_name_of_two_videos(disk: Disk, names: tuple[str, ...]) -> None:
    disk.link(*names)
    with pytest.raises(ManifestError, match=f"^list, line 3: 'a' .*{names[0]}, .*{names[1]}"):
        VideoFiles(disk.videos).find("a", "list, line 3")


def test_hidden_and_other_files_are_ignored(disk: Disk) -> None:
    disk.link("a.mp4", ".hidden.mp4", ".hidden/c.mp4", "deep/.d/e.mp4", "notes.txt", "b.webm")
    (disk.videos / "folder.mp4").mkdir()
    (disk.videos / "dangling.mp4").symlink_to("nowhere.mp4")
    assert VideoFiles(disk.videos).paths == ["a.mp4", "b.webm"]


def test_links_are_followed_but_not_in_circles(disk: Disk) -> None:
    disk.link("real/a.mp4")
    elsewhere = disk.root / "elsewhere"
    elsewhere.mkdir()
    os.link(disk.video, elsewhere / "b.mp4")
    (disk.videos / "a link to real").symlink_to(disk.videos / "real")
    (disk.videos / "real" / "up").symlink_to(disk.videos)
    (disk.videos / "there").symlink_to(elsewhere)
    assert VideoFiles(disk.videos).paths == ["real/a.mp4", "there/b.mp4"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_unicode_normal_forms(disk: Disk, on_disk: str) -> None:
    name = unicodedata.normalize(on_disk, "café.mp4")
    disk.link(name)
    for form in ("NFC", "NFD"):
        assert VideoFiles(disk.videos).find(unicodedata.normalize(form, "café")) == name


def test_no_folder(disk: Disk) -> None:
    with pytest.raises(ManifestError, match=r"a\.mp4"):
        VideoFiles(disk.root / "a.mp4")


def test_a_folder_that_cannot_be_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.link("locked/a.mp4")

    def scan(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("crosspair.corpora.video_files.os.scandir", scan)
    with pytest.raises(ManifestError, match=r"videos .*Permission denied"):
        VideoFiles(disk.videos)


@given(st.text("ab. ", min_size=1, max_size=8), st.sampled_from(["", ".avi", ".MP4"]))
def test_video_stem(name: str, suffix: str) -> None:
    name = f"v{name}x".replace(" ", "_")
    assert video_stem(f"a folder.mp4/{name}{suffix}") == name
    assert video_stem(f"{name}.txt") == f"{name}.txt"
