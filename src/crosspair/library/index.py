"""Add videos to a library, update and remove them.

Only new and changed files are encoded. The windows of a video are added in a single version of the
table, after the old windows of a changed video have been removed. An interruption at any time
leaves a valid library that lacks some videos, which the next call adds.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crosspair.corpora.inputs import VideoSource, collect_videos, probe_missing
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.video_files import FileState, absolute_path, file_state
from crosspair.evaluation.encode import InferenceEngine, ProgressCallback, encode_windows, has_text_tower
from crosspair.evaluation.windows import Sampling, Windows
from crosspair.library import store
from crosspair.library.store import IndexedVideo, Library, LibraryError
from crosspair.models.cpd import CPD

logger = logging.getLogger(__name__)

COMMIT_WINDOWS, COMMIT_SECONDS = 4096, 30.0  # a version is written after either of them
PROBE_BATCH = 1000  # videos that are probed before the first of them is encoded
SEGMENT = "#t="  # separates path and seconds in the name of a segment
_SEGMENT_END = re.compile(rf"{SEGMENT}[\d.e+-]+(,[\d.e+-]+)?$")


@dataclass(frozen=True)
class IndexSummary:
    """The result of `index_videos`: numbers of videos, including unreadable ones, and of windows written.

    ``broken`` has the reason for each video of the library that cannot be read, entirely or in part.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    windows: int
    broken: Mapping[str, str]


def index_videos(
    folder: str | os.PathLike[str],
    engine: InferenceEngine,
    sources: Sequence[VideoSource],
    *,
    windows: Windows | None = None,
    sampling: Sampling | None = None,
    titles: Path | None = None,
    progress: ProgressCallback | None = None,
) -> IndexSummary:
    """Add new videos to a library and update changed ones, creating the library if needed.

    Videos that no longer exist in the given folders are removed. Other videos are unchanged.

    Args:
        folder: folder of the library.
        engine: model to encode with; a library accepts only embeddings of its own model.
        sources: see `crosspair.corpora.inputs.collect_videos`.
        windows: length and stride of the windows; None: those of the library.
        sampling: what represents a window; None: as in the library, "auto" for a new one.
        titles: a title file.
        progress: called with the number of encoded videos and their total.

    Raises:
        LibraryError: the library has another model, other windows or another sampling, another process writes to
            it, the folder contains something else, or the model cannot encode key frames.
        ManifestError: a source is invalid.
    """
    folder = Path(folder)
    if sampling == "keyframes" and not engine.model.video_encoder.image:
        raise LibraryError("--sampling keyframes requires an image encoder; this model encodes clips of several frames")
    store.check_library_path(folder)
    paths = [absolute_path(source) for source in sources]
    manifest = collect_videos(paths, titles)
    videos = _source_videos(manifest)
    with store.library_lock(folder):
        library = _open_or_create(folder, engine.model, windows, sampling)
        known = library.videos()
        for name, video in videos.items():
            if name in known and not video.title:  # a video keeps its title if no new one is given
                videos[name] = replace(video, title=known[name].title)
        todo = [video for name, video in videos.items() if name not in known or known[name].state != video.state]
        given_files = {video.path for video in videos.values()}
        removed = [
            name
            for name in known
            # Segments of a given file are kept, even if only the whole file is given.
            if name not in videos
            and _strip_segment(name) not in given_files
            and _is_inside(absolute_path(name), paths)  # older versions stored //videos for /videos
        ]
        library.remove([*removed, *(video.name for video in todo if video.name in known)])
        new_titles = {
            name: videos[name].title
            for name, video in known.items()
            if video.windows and name in videos and videos[name].title != video.title
        }
        if new_titles:
            library.set_titles(new_titles)
        written = 0
        for rows, failed in _encode_batches(engine, library, manifest, todo, progress):
            library.add(rows, failed)
            written += len(rows)
        library.optimize()
    changed = sum(video.name in known and known[video.name].state != store.UNWRITTEN for video in todo)
    return IndexSummary(
        added=len(todo) - changed,
        changed=changed,
        removed=len(removed),
        unchanged=len(videos) - len(todo),
        windows=written,
        broken={name: video.failure for name, video in library.videos().items() if video.failure},
    )


def remove_videos(folder: str | os.PathLike[str], sources: Sequence[VideoSource]) -> int:
    """Remove videos from a library and return their number.

    Args:
        folder: folder of the library.
        sources: files, with all their segments; folders; manifests, of which only the listed
            segments are removed. Files and folders need not exist any more.

    Raises:
        LibraryError: the library does not exist, or another process writes to it.
        ManifestError: a manifest is invalid.
    """
    paths = [absolute_path(source) for source in sources]
    library = Library(folder)
    manifests = [path for path in paths if path.endswith(".parquet") and Path(path).is_file()]
    listed = {name for path in manifests for name in _source_videos(collect_videos([path]))}
    with store.library_lock(library.folder):
        removed = [
            name
            for name in library.videos()
            if name in listed or _is_inside(name, paths) or {name, _strip_segment(name)} & {*paths}
        ]
        library.remove(removed)
        library.optimize()
    return len(removed)


@dataclass(frozen=True)
class _SourceVideo:
    name: str  # in the library: the path, with `SEGMENT` and times for a segment of a file
    row: int  # in the manifest
    path: str
    state: FileState
    title: str | None


def _source_videos(manifest: Manifest) -> dict[str, _SourceVideo]:
    """Return the videos of a manifest by their name in the library; of rows with equal names only the first."""
    videos: dict[str, _SourceVideo] = {}
    for row, (clip, title) in enumerate(zip(manifest.clips(), manifest.column("title"), strict=True)):
        name = clip.path
        if clip.start is not None or clip.end is not None:
            end = "" if clip.end is None else f",{clip.end:g}"
            name = f"{clip.path}{SEGMENT}{clip.start or 0:g}{end}"
        videos.setdefault(name, _SourceVideo(name, row, clip.path, file_state(clip.path), title))
    return videos


def _strip_segment(name: str) -> str:
    return _SEGMENT_END.sub("", name)


def _is_inside(name: str, folders: Sequence[str]) -> bool:
    """Return whether a video lies below one of the folders, at any depth."""
    return any(name.startswith(folder.rstrip("/") + "/") for folder in folders)


def _open_or_create(folder: Path, model: CPD, windows: Windows | None, sampling: Sampling | None) -> Library:
    """Open a library or create a missing one; raise LibraryError if its model, given windows or sampling differ."""
    if not store.is_library(folder):
        if not has_text_tower(model):
            logger.warning("the model has no trained text tower; search is by video only")
        return Library.create(folder, model, windows or Windows(), sampling or "auto")
    library = Library(folder)
    if library.info.model != model.hash:
        raise LibraryError(
            f"library {folder} has embeddings of model {library.info.model}, not {model.hash}; "
            "omit --model to use its own model, or create another library"
        )
    if windows not in (None, library.windows):
        raise LibraryError(
            f"library {folder} has {library.windows}, not {windows}; omit --window and --stride, "
            "or create another library"
        )
    if sampling not in (None, library.info.sampling):
        raise LibraryError(
            f"library {folder} has sampling {library.info.sampling}, not {sampling}; omit --sampling, "
            "or create another library"
        )
    return library


def _encode_batches(
    engine: InferenceEngine,
    library: Library,
    manifest: Manifest,
    videos: Sequence[_SourceVideo],
    progress: ProgressCallback | None,
) -> Iterator[tuple[list[dict[str, Any]], dict[str, IndexedVideo]]]:
    """Encode videos; yield table rows to write together, and the videos, by name, with a part that cannot be read."""
    if videos:
        logger.info("%d videos are new or have changed", len(videos))
    rows: list[dict[str, Any]] = []
    failed: dict[str, IndexedVideo] = {}
    last_commit = time.monotonic()
    for first in range(0, len(videos), PROBE_BATCH):
        batch = videos[first : first + PROBE_BATCH]
        probed = probe_missing(manifest.take([video.row for video in batch]), shown=not first)
        encoded = encode_windows(engine, probed, library.windows, sampling=library.info.sampling, thumbnails=True)
        for done, features in enumerate(encoded, start=first + 1):
            video = batch[features.row]
            if progress:
                progress(done, len(videos))
            common = {
                "video": video.name, "path": video.path, "title": video.title,
                "size": video.state[0], "modified": video.state[1],
            }  # fmt: skip
            for (start, end), vector, thumbnail in zip(
                features.spans, features.embedding.numpy(), features.thumbnails, strict=True
            ):
                rows.append({"vector": vector, "start": start, "end": end, "thumbnail": thumbnail, **common})
            if features.failure:
                logger.warning("%s", features.failure)
                failed[video.name] = IndexedVideo(video.state, None, len(features.spans), features.failure)
            if len(rows) >= COMMIT_WINDOWS or time.monotonic() - last_commit >= COMMIT_SECONDS:
                yield rows, failed
                rows, failed = [], {}
                last_commit = time.monotonic()
    yield rows, failed
