"""Find videos in a folder by their names, and normalise video names and paths."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({
    ".3g2", ".3gp", ".3gpp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2p", ".m2t", ".m2ts",
    ".m2v", ".m4v", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm",
    ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
_MAX_NAMES = 5  # names that a message lists before it only counts


class VideoFiles:
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
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_stem[video_stem(path)].append(path)

    def find(self, name: str, where: str = "") -> str | None:
        """Return the path of a video relative to the folder, or None if there is no such video.

        Args:
            name: path relative to the folder, absolute, or relative to the working directory, or file name; all
                with or without suffix.
            where: where the name was read, for error messages.

        Raises:
            ManifestError: several videos have this name.
        """
        wanted = normalize_name(name)
        found = self._matches(wanted)
        if not found and "/" in wanted:  # absolute, or from the working directory
            full = absolute_path(wanted)
            for root in {absolute_path(self.folder), os.path.realpath(self.folder)}:
                inside = full.removeprefix(f"{normalize_name(root)}/")
                found = found or (self._matches(inside) if inside != full else [])
        if len(found) > 1:
            raise ManifestError(
                f"{where}: {name!r} matches {len(found)} videos ({self.full_path(found[0])}, "
                f"{self.full_path(found[1])}). Add the folder to the name, or remove duplicates."
            )
        return found[0] if found else None

    def _matches(self, wanted: str) -> list[str]:
        """Return the video with a normalised path, or those with this name without suffix, folders, or both."""
        last = wanted.rpartition("/")[2]
        found = [path for stem in {last, video_stem(last)} for path in self._by_stem.get(stem, [])]
        names = {path: normalize_name(path) for path in found}
        return [path for path, full in names.items() if full == wanted] or sorted(
            path
            for path, full in names.items()
            if wanted in (strip_video_suffix(full), full.rpartition("/")[2], video_stem(full))
        )

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
