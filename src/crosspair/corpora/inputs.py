"""Videos named by the user: files, folders, URLs and manifests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.tables import index_by_key, read_titles
from crosspair.corpora.video_files import (
    VideoFiles,
    absolute_path,
    is_utf8,
    normalize_name,
    strip_video_suffix,
    video_stem,
)
from crosspair.errors import ManifestError
from crosspair.progress import delayed_progress

logger = logging.getLogger(__name__)

VideoSource = str | os.PathLike[str]


def collect_videos(named: Sequence[VideoSource], titles: Path | None = None) -> Manifest:
    """Collect all named videos in one manifest; rows with equal ``pair_id`` and path are listed once.

    Args:
        named: files and URLs (not opened), folders (searched recursively), and manifests
            (``.parquet``). Rows of manifests keep their ``pair_id``; that of other videos is the
            path.
        titles: a title file, see `crosspair.corpora.tables.read_titles`; its ``path`` may be the
            end of a full path. It takes precedence over titles of manifests.

    Raises:
        ManifestError: a folder holds no video, two videos have the same ``pair_id``, or a manifest
            or the title file is invalid.
    """
    rows: dict[str, dict[str, Any]] = {}
    for source in named:
        if not is_utf8(os.fspath(source)) and len(named) > 1:  # one of many names that a shell has expanded
            logger.warning("%s is skipped, since its name is not valid UTF-8", source)
            continue
        for row in _source_rows(os.fspath(source)):
            if rows.setdefault(row["pair_id"], row)["path"] != row["path"]:
                raise ManifestError(
                    f"{source}: pair_id {row['pair_id']!r} is also the name of "
                    f"{rows[row['pair_id']]['path']}. Process the two sources separately."
                )
    if titles is not None:
        lines = read_titles(titles)
        keys = lines["video_id"].map(video_stem).where(lines["video_id"] != "", lines["path"].map(_path_key))
        by_key = index_by_key(lines, keys)
        for row in rows.values():
            line = next((by_key[key] for key in _video_keys(absolute_path(row["path"])) if key in by_key), row)
            row["title"] = line.get("title")
    return manifest_from_rows(rows.values(), ".")


def probe_missing(manifest: Manifest, *, shown: bool = True) -> Manifest:
    """Return the manifest with the probed columns filled for rows that lack them.

    Files are opened in worker processes, so that a crash in a decoder fails only its file.

    Args:
        manifest: of videos, probed or not.
        shown: show progress.
    """
    rows = manifest.table.to_pylist()
    waiting = [
        (row, clip.path)
        for row, clip in zip(rows, manifest.clips(), strict=True)
        if None in (row["duration"], row["width"], row["height"]) and not row["error"]
    ]
    with delayed_progress("probing", "videos", shown) as progress:
        found = probe_videos([path for _, path in waiting], progress=lambda done: progress(done, len(waiting)))
    for (row, _), columns in zip(waiting, found, strict=True):
        row.update(columns)
    return manifest_from_rows(rows, manifest.path)


def _source_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a manifest, or new rows for all videos of a folder or for one file or URL."""
    path = Path(name or absolute_path(name))  # an empty name is no folder
    if path.suffix == ".parquet":
        manifest = Manifest.read(path)
        for row, clip in zip(manifest.table.to_pylist(), manifest.clips(), strict=True):
            yield {**row, "path": absolute_path(clip.path)}
    elif "://" not in name and path.is_dir():
        files = VideoFiles(path)
        if not files.paths:
            raise ManifestError(f"folder {name} holds no video")
        for video in map(files.full_path, files.paths):
            yield {"pair_id": video, "path": video}
    else:
        yield {"pair_id": name, "path": name}


def _video_keys(path: str) -> Iterator[str]:
    """Yield the keys of a video for titles: path without suffix, ends of it (``/b``), longest first, stem."""
    key = _path_key(path)
    while key:
        yield key
        key = key[key.find("/", 1) :] if "/" in key[1:] else ""
    yield video_stem(path)


def _path_key(path: str) -> str:
    """Normalise a path: remove a video suffix and leading ``..``, and add a leading slash."""
    path = strip_video_suffix(normalize_name(path))
    while path.startswith("../"):
        path = path.removeprefix("../")
    return f"/{path.lstrip('/')}"
