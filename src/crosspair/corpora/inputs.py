"""Videos named by the user: files, folders, URLs and manifests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.tables import merge_captions, read_titles
from crosspair.corpora.video_files import VideoFiles, VideoNames, absolute_path, is_utf8, summarize_names
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
        titles: a title file, see `crosspair.corpora.tables.read_titles`. It takes precedence over titles of
            manifests. Several titles of a video are joined.

    Raises:
        ManifestError: a folder holds no video, two videos have the same ``pair_id``, a manifest or the title file
            is invalid, or no title belongs to a video.
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
        title_of = _titles_by_path(titles, [row["path"] for row in rows.values()], named)
        for row in rows.values():
            if row["path"] in title_of:
                row |= {"title": title_of[row["path"]], "titles": None}
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


def _titles_by_path(file: Path, paths: Sequence[str], named: Sequence[VideoSource]) -> dict[str, str]:
    """Read the titles of videos; lines without a video are logged."""
    names = [os.fspath(source) for source in named]
    folders = [os.path.dirname(name) if name.endswith(".parquet") else name for name in names if "://" not in name]  # noqa: PTH120
    videos = VideoNames({path: path for path in paths}, folders, ends=True)
    lines = read_titles(file)
    listed = lines["path"].where(lines["path"] != "", lines["video_id"])
    found = pd.Series([videos.find(name, where) for where, name in listed.items()], lines.index, dtype=object)
    unknown = listed[found.isna()]
    if len(unknown) == len(lines):
        raise ManifestError(f"title file {file} names none of the videos; it names {summarize_names([*unknown])}")
    if len(unknown):
        message = "title file %s: %d of %d lines name none of the videos: %s"
        logger.warning(message, file, len(unknown), len(lines), summarize_names([*unknown]))
    # Of all columns, only the title is used.
    lines = lines[found.notna()].assign(label="", split="", start="", end="")
    merged = merge_captions(lines.assign(path=found[found.notna()]), found.dropna(), "join")
    return dict(zip(merged["path"], merged["title"], strict=True))
