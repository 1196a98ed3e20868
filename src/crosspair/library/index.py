"""Index videos: only those that are new or have changed, and safe to stop at any moment.

A video's windows are added in one version of the table, with those of others; the old windows of a
changed video are dropped before. Whatever a kill leaves is a library that lacks some videos: the
next call sees that they are not there, and adds them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crosspair.corpora.inputs import VideoSource, collect_videos, probe_missing
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.video_files import absolute_path
from crosspair.evaluation.encode import (
    InferenceEngine,
    ProgressCallback,
    WindowFeatures,
    encode_windows,
    has_text_tower,
)
from crosspair.evaluation.windows import Windows
from crosspair.library.store import (
    BrokenVideo,
    FileState,
    IndexedVideo,
    Library,
    LibraryError,
    check_library_path,
    file_state,
    is_library,
    library_lock,
    read_broken,
    write_broken,
)
from crosspair.models.cpd import CPD

logger = logging.getLogger(__name__)

COMMIT_WINDOWS, COMMIT_SECONDS = 4096, 30.0  # what is encoded is written after so much of either
PROBED = 1000  # videos that are looked at before the first of them is encoded
PART = "#t="  # between the path and the seconds, where a video is a part of a file


@dataclass(frozen=True)
class IndexSummary:
    """What an index run did, in videos.

    Attributes:
        added, changed, removed, unchanged: how many there were; the unreadable ones, too.
        windows: how many were written.
        broken: why a video could not be read, all of it or a part, for all in the library.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    windows: int
    broken: Mapping[str, str]


def index_videos(
    folder: str | os.PathLike[str],
    of: InferenceEngine,
    named: Sequence[VideoSource],
    *,
    windows: Windows | None = None,
    titles: Path | None = None,
    progress: ProgressCallback | None = None,
) -> IndexSummary:
    """Bring a library up to date with some videos; others that it holds stay.

    A video that lay in one of the given folders and lies there no more is taken out.

    Args:
        folder: of the library, made where it is not there.
        of: what to encode with.
        named: see `crosspair.corpora.inputs.collect_videos`.
        windows: how to cut videos; None: as the library does.
        titles: a title file.
        progress: called with the videos done and their number.

    Raises:
        LibraryError: it is another model's or has other windows, somebody else writes to it, or
            the folder holds something else.
        ManifestError: what is named does not do.
    """
    folder = Path(folder)
    check_library_path(folder)
    wholes = [absolute_path(name) for name in named]
    manifest = collect_videos(wholes, titles)
    videos = _videos(manifest)
    with library_lock(folder):
        library = _opened(folder, of.model, windows)
        known, broken = library.videos(), read_broken(folder)
        # Of a part that was read, only the table knows whether it was written.
        seen = {name: each.state for name, each in broken.items() if not each.windows}
        seen |= {name: each.state for name, each in known.items()}
        fresh = [
            _with_title(video, known)
            for video in videos.values()
            if seen.get(video.name) != video.state
        ]
        files = {video.path for video in videos.values()}  # of which parts may be known, too
        gone = [
            name
            for name in {**known, **broken}
            if name not in videos and _path(name) not in files and _lies_in(name, wholes)
        ]
        stale = {*gone, *(video.name for video in fresh)}
        library.remove([name for name in known if name in stale])
        _give_titles(library, [videos[name] for name in known if name in videos], known)
        broken = {name: each for name, each in broken.items() if name not in stale}
        written = 0
        for rows, failed in _batches(of, library, manifest, fresh, progress):
            broken |= failed
            write_broken(folder, broken)
            library.add(rows)
            written += len(rows)
        library.optimize()
    return IndexSummary(
        added=sum(video.name not in seen for video in fresh),
        changed=sum(video.name in seen for video in fresh),
        removed=len(gone),
        unchanged=len(videos) - len(fresh),
        windows=written,
        broken={name: each.reason for name, each in broken.items()},
    )


def remove_videos(folder: str | os.PathLike[str], named: Sequence[VideoSource]) -> int:
    """Take videos out of a library: files, and all that lie in folders, there or not.

    Of a manifest those that it names, parts alone where it names parts.

    Returns:
        How many it were.

    Raises:
        LibraryError: there is no library, or somebody else writes to it.
        ManifestError: a manifest does not do.
    """
    wholes = [absolute_path(name) for name in named]
    library = Library(folder)
    manifests = [name for name in wholes if name.endswith(".parquet") and Path(name).is_file()]
    listed = {name for manifest in manifests for name in _videos(collect_videos([manifest]))}
    folder = library.folder
    with library_lock(folder):
        known, broken = library.videos(), read_broken(folder)
        gone = {
            name
            for name in {*known, *broken}
            if name in listed or _lies_in(name, wholes) or _path(name) in wholes
        }
        library.remove([name for name in known if name in gone])
        write_broken(folder, {name: each for name, each in broken.items() if name not in gone})
        library.optimize()
    return len(gone)


@dataclass(frozen=True)
class _Video:
    """A video that is to be in the library.

    Attributes:
        name: in the library.
        row: of the manifest.
        path: of its file.
        state: of its file, see `crosspair.library.store.IndexedVideo`.
        title: or None.
    """

    name: str
    row: int
    path: str
    state: FileState
    title: str | None


def _videos(manifest: Manifest) -> dict[str, _Video]:
    """By their names; what is named twice counts once."""
    videos: dict[str, _Video] = {}
    rows = zip(manifest.clips(), manifest.column("title"), strict=True)
    for row, (clip, title) in enumerate(rows):
        part = f"{PART}{clip.start or 0:g}"
        part += "" if clip.end is None else f",{clip.end:g}"
        name = clip.path if clip.start is None and clip.end is None else clip.path + part
        videos.setdefault(name, _Video(name, row, clip.path, file_state(clip.path), title))
    return videos


def _path(name: str) -> str:
    return name.partition(PART)[0]


def _lies_in(name: str, folders: Sequence[str]) -> bool:
    return any(name.startswith(folder.rstrip("/") + "/") for folder in folders)


def _opened(folder: Path, model: CPD, windows: Windows | None) -> Library:
    if not is_library(folder):
        if not has_text_tower(model):
            logger.warning("this model reads no text; the library can be searched by videos alone")
        return Library.create(folder, model, windows or Windows())
    library = Library(folder)
    if library.about.model != model.hash:
        raise LibraryError(
            f"library {folder} is of another model ({library.about.model}, not {model.hash}); "
            "leave --model out to go on with its own, or make another library"
        )
    if windows not in (None, library.windows):
        raise LibraryError(
            f"library {folder} has {library.windows}, not {windows}; "
            "leave them as they are, or make another library"
        )
    return library


def _give_titles(
    library: Library, videos: Sequence[_Video], known: Mapping[str, IndexedVideo]
) -> None:
    """Change the titles of videos that are there, where one is given that differs."""
    titles = {
        video.name: video.title
        for video in videos
        if video.title and video.title != known[video.name].title
    }
    if titles:
        library.rename(titles)


def _with_title(video: _Video, known: Mapping[str, IndexedVideo]) -> _Video:
    """With the title that it had where none is given: its windows are written anew."""
    if video.title or video.name not in known:
        return video
    return replace(video, title=known[video.name].title)


def _batches(
    of: InferenceEngine,
    library: Library,
    manifest: Manifest,
    videos: Sequence[_Video],
    progress: ProgressCallback | None,
) -> Iterator[tuple[list[dict[str, Any]], dict[str, BrokenVideo]]]:
    """Rows of the table to write together, and what could not be read."""
    if videos:
        logger.info("%d videos are new or have changed", len(videos))
    rows: list[dict[str, Any]] = []
    failed: dict[str, BrokenVideo] = {}
    begun = time.monotonic()
    for done, (video, encoded) in enumerate(_encoded(of, library, manifest, videos), start=1):
        if progress:
            progress(done, len(videos))
        rows += _rows(video, encoded)
        if encoded.failure:
            logger.warning("%s", encoded.failure)
            failed[video.name] = BrokenVideo(video.state, encoded.failure, len(encoded.spans))
        if len(rows) >= COMMIT_WINDOWS or time.monotonic() - begun >= COMMIT_SECONDS:
            yield rows, failed
            rows, failed = [], {}
            begun = time.monotonic()
    yield rows, failed


def _encoded(
    of: InferenceEngine, library: Library, manifest: Manifest, videos: Sequence[_Video]
) -> Iterator[tuple[_Video, WindowFeatures]]:
    """What came of each video; of a large folder, what is done counts before all are probed."""
    for first in range(0, len(videos), PROBED):
        part = videos[first : first + PROBED]
        taken = probe_missing(manifest.take([video.row for video in part]), shown=not first)
        for encoded in encode_windows(of, taken, library.windows, thumbnails=True):
            yield part[encoded.row], encoded


def _rows(video: _Video, encoded: WindowFeatures) -> Iterator[dict[str, Any]]:
    each = zip(encoded.spans, encoded.embedding.numpy(), encoded.thumbnails, strict=True)
    for (start, end), vector, thumbnail in each:
        yield {
            "vector": vector,
            "video": video.name,
            "path": video.path,
            "start": start,
            "end": end,
            "title": video.title,
            "thumbnail": thumbnail,
            "size": video.state[0],
            "modified": video.state[1],
        }
