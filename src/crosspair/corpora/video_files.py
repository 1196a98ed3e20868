"""The videos in a folder, found by their names."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from crosspair.errors import ManifestError

SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip


class VideoFiles:
    """All videos of a folder and its subfolders, linked ones too; hidden ones are passed over.

    Args:
        folder: walked once; no file is opened.

    Raises:
        ManifestError: it is no folder, or a part of it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ManifestError(f"{folder} is no folder of videos")
        self.folder = folder
        self.paths = sorted(_relative_paths(folder))  # within the folder
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_name[video_stem(path)].append(path)

    def __len__(self) -> int:
        return len(self.paths)

    def named(self, name: str, where: str = "") -> str | None:
        """The path in the folder of the video of a name; None where there is none.

        Args:
            name: its path in the folder, or its file's name; both with or without suffix.
            where: the name stands, for messages.

        Raises:
            ManifestError: several videos are called so.
        """
        found = self._called(to_nfc(name))
        if len(found) > 1:
            raise ManifestError(
                f"{where}: {name!r} is the name of {len(found)} videos "
                f"({self.whole(found[0])}, {self.whole(found[1])}); "
                "write its folder before it, or leave one of them"
            )
        return found[0] if found else None

    def whole(self, path: str) -> str:
        """The path of a video from where the command runs."""
        return os.path.join(self.folder, path)  # noqa: PTH118 - pathlib is slow on many names

    def _called(self, name: str) -> list[str]:
        last = name.rpartition("/")[2]
        found = [path for of in {last, video_stem(last)} for path in self._by_name.get(of, [])]
        exact = [path for path in found if to_nfc(path) == name]
        return exact or sorted(path for path in found if name in _names(path))


def video_stem(path: str) -> str:
    """A video's name without its folders and its suffix, if that is a video's.

    >>> plain_name("Biking/v_1.5_c01.avi"), plain_name("v_1.5")
    ('v_1.5_c01', 'v_1.5')
    """
    return strip_video_suffix(to_nfc(path).rpartition("/")[2])


def absolute_path(name: str | os.PathLike[str]) -> str:
    """A path from the root, without ``..``, so that a file has one name; a URL as it is.

    >>> absolute("/videos/../films/"), absolute("https://a.org/b/../c")
    ('/films', 'https://a.org/b/../c')
    """
    name = os.fspath(name)
    return name if "://" in name else os.path.abspath(name)  # noqa: PTH100 (links stay links)


def file_size(path: str | os.PathLike[str]) -> int | None:
    """A file's size in bytes; None where there is no file to ask, as for a URL."""
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return None


def strip_video_suffix(path: str) -> str:
    """A video's path or name without its suffix, if that is a video's."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - pathlib is slow on many names
    return stem if suffix.lower() in SUFFIXES else path


def to_nfc(name: str) -> str:
    """One form of a name: file systems and editors disagree on how to write é."""
    return unicodedata.normalize("NFC", name.strip())


def _names(path: str) -> set[str]:
    path = to_nfc(path)
    return {strip_video_suffix(path), path.rpartition("/")[2], video_stem(path)}


def _relative_paths(folder: Path) -> Iterator[str]:
    # Folders that links lead to come last: a video that lies in the folder itself keeps that path.
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        within = folders.pop() if folders else links.pop()
        whole = folder / within
        try:
            status = whole.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(whole) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{within}/{entry.name}" if within else entry.name
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(path)
                    elif _is_video(entry):
                        yield path
        except OSError as error:
            raise ManifestError(f"folder {whole} cannot be read: {error.strerror}") from error


def _is_video(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    return suffix in SUFFIXES and entry.is_file()
