"""Find videos in a folder by their names, and normalise video names and paths."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({
    ".3g2", ".3gp", ".3gpp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2p", ".m2t", ".m2ts",
    ".m2v", ".m4v", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm",
    ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
FileState = tuple[int, int]
"""Size of a file in bytes, and its modification time in ns since 1970; (0, 0) for a URL."""
MISSING_FILE: FileState = (-1, -1)
_MAX_NAMES = 5  # names that a message lists before it only counts


class VideoNames:
    """Find videos by the names that lists give them.

    Args:
        videos: what `find` returns, by the video's URL or path, absolute or relative to the working directory.
        folders: to which names may be relative.
        ends: whether a name may be the end of a path.
    """

    def __init__(
        self, videos: Mapping[str, str], folders: Iterable[str | os.PathLike[str]], *, ends: bool = False
    ) -> None:
        self._videos, self._ends = videos, ends
        self._folders = [_comparable(absolute_path(folder)) for folder in folders]
        self._real = {_comparable(os.path.realpath(folder)): folder for folder in self._folders}
        self._by_stem: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for path in videos:
            full = _comparable(absolute_path(path))
            self._by_stem[video_stem(full)].append((full, path))

    def find(self, name: str, where: str = "") -> str | None:
        """Return the video with a name, or None if there is no such video.

        Args:
            name: path relative to a folder, file name, path that is absolute or relative to the working directory, or
                end of a path; all with or without suffix. The first of these that fits a video counts.
            where: where the name was read, for error messages.

        Raises:
            ManifestError: several videos have this name.
        """
        wanted = _comparable(name)
        last = wanted.rpartition("/")[2]
        videos = [video for stem in {last, video_stem(last)} for video in self._by_stem.get(stem, [])]
        if not videos or not wanted:
            return None
        inside = {posixpath.normpath(posixpath.join(folder, wanted)) for folder in self._folders}
        full = _comparable(absolute_path(name.strip()))
        links = [(real, folder) for real, folder in self._real.items() if full.startswith(f"{real}/")]
        outside = {full, *(folder + full.removeprefix(real) for real, folder in links)}
        end = "/" + re.sub(r"^(?:\.\./)+|^/", "", wanted)
        cut = slice(-len(end), None)
        rules: list[Callable[[str], bool]] = [
            lambda path: path in inside,
            lambda path: strip_video_suffix(path) in inside or wanted in (path.rpartition("/")[2], video_stem(path)),
            lambda path: path in outside,
            lambda path: strip_video_suffix(path) in outside,
            lambda path: self._ends and end in (path[cut], strip_video_suffix(path)[cut]),
        ]
        found = next(filter(None, (sorted(each for full, each in videos if rule(full)) for rule in rules)), [])
        if len(found) > 1:
            raise ManifestError(
                f"{where}: {name!r} matches {len(found)} videos ({found[0]}, {found[1]}). "
                "Add the folder to the name, or remove duplicates."
            )
        return self._videos[found[0]] if found else None


class VideoFiles(VideoNames):
    """All videos of a folder and its subfolders, including linked folders but not hidden files.

    Files that are no videos by their suffix are counted in the log.

    Raises:
        ManifestError: ``folder`` does not exist, or a subfolder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ManifestError(f"{folder} is not a folder of videos")
        self.folder = folder
        files = sorted(_walk_files(folder))
        self.paths = [path for path in files if strip_video_suffix(path) != path]  # relative to the folder
        if others := sorted(set(files).difference(self.paths)):
            message = "%s: files that are not videos by their suffix: %d (%s)"
            logger.info(message, folder, len(others), summarize_names(others))
        super().__init__({self.full_path(path): path for path in self.paths}, [folder])

    def full_path(self, path: str) -> str:
        """Return a video's path joined to the folder."""
        return os.path.join(self.folder, path)  # noqa: PTH118 - pathlib is slow on many names


def video_stem(path: str) -> str:
    """Return a video's file name without folders and without a video suffix.

    >>> video_stem("Biking/v_1.5_c01.avi"), video_stem("v_1.5")
    ('v_1.5_c01', 'v_1.5')
    """
    return strip_video_suffix(normalize_name(path).rpartition("/")[2])


def strip_video_suffix(path: str) -> str:
    """Return a path or name without its suffix if that is one of `SUFFIXES`."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - pathlib is slow on many names
    return stem if suffix.lower() in SUFFIXES else path


def normalize_name(name: str) -> str:
    """Strip a name or path, and write it in NFC and with slashes, without ``.`` and ``..``.

    Operating systems and editors encode é differently, and programs list files as ``./a.mp4`` or ``sub\\a.mp4``.

    >>> normalize_name(" ./sub//a.mp4 "), normalize_name("sub\\\\a.mp4")
    ('sub/a.mp4', 'sub/a.mp4')
    """
    name = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return re.sub("^//", "/", posixpath.normpath(name)) if name else ""


def _comparable(name: str) -> str:
    """Normalise a name or path, and strip the names of its folders."""
    return re.sub(r"\s*/\s*", "/", normalize_name(name))


def absolute_path(name: str | os.PathLike[str]) -> str:
    """Return an absolute path without ``..`` and ``//``; symbolic links are kept, URLs are unchanged.

    >>> absolute_path("//videos/../films/"), absolute_path("https://a.org/b/../c")
    ('/films', 'https://a.org/b/../c')
    """
    name = os.fspath(name)
    if not name:
        raise ManifestError("the path of a video or folder is empty")
    # abspath keeps links, but also two leading slashes.
    return name if "://" in name else f"/{os.path.abspath(name).lstrip('/')}"  # noqa: PTH100


def is_utf8(name: str) -> bool:
    """Return whether a name is valid text, which manifests and libraries can store."""
    return name.encode(errors="ignore") == name.encode(errors="surrogatepass")


def file_state(path: str) -> FileState:
    """Return the state of a file, `MISSING_FILE` if it does not exist, (0, 0) for any URL."""
    if "://" in path:
        return 0, 0
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return MISSING_FILE
    return status.st_size, status.st_mtime_ns


def file_size(path: str | os.PathLike[str]) -> int | None:
    """Return a file's size in bytes, or None if there is no such local file."""
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return None


def _walk_files(folder: Path) -> Iterator[str]:
    """Yield the relative paths of non-hidden files in all subfolders, also linked ones, each folder once."""
    # Linked folders come last, so that a file inside the folder is listed under its own path.
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    invalid: list[str] = []
    while folders or links:
        relative = folders.pop() if folders else links.pop()
        full = folder / relative
        try:
            status = full.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(full) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not is_utf8(entry.name):
                        invalid.append(entry.name)
                        continue
                    path = f"{relative}/{entry.name}" if relative else entry.name
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(path)
                    elif entry.is_file():
                        yield path
        except OSError as error:
            raise ManifestError(f"folder {full} cannot be read: {error.strerror}") from error
    if invalid:
        name, names = summarize_names([str(folder)]), summarize_names(invalid)
        logger.warning("%s: %d names that are not valid UTF-8 are skipped: %s", name, len(invalid), names)


def summarize_names(names: Sequence[str]) -> str:
    """Format the first few names and the number of further ones.

    >>> summarize_names(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    text = ", ".join(names[:_MAX_NAMES]) + more
    return text.encode(errors="backslashreplace").decode()  # file names may be invalid UTF-8
