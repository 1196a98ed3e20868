"""The videos that somebody names: files, folders, URLs, manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.tables import TableLine, index_by_key, read_titles
from crosspair.corpora.video_files import (
    VideoFiles,
    absolute_path,
    strip_video_suffix,
    to_nfc,
    video_stem,
)
from crosspair.errors import ManifestError
from crosspair.progress import delayed_progress

VideoSource = str | os.PathLike[str]


def collect_videos(named: Sequence[VideoSource], titles: Path | None = None) -> Manifest:
    """One manifest of all videos that are named; one that is named twice counts once.

    Args:
        named: files and URLs, which need not be readable; folders, searched with their subfolders;
            manifests (``.parquet``), whose rows keep their ``pair_id``. The others are called
            after their path.
        titles: a title file, as `crosspair.corpora.tables.read_titles` takes it, where a
            ``path`` may be the end of a whole one; a manifest's own titles stay where it has none.

    Raises:
        ManifestError: a folder holds no video, or a manifest or the title file does not do.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in named:
        for row in _rows(os.fspath(name)):
            if rows.setdefault(row["pair_id"], row)["path"] != row["path"]:
                raise ManifestError(
                    f"{name}: {row['pair_id']!r} is the name of another video, too "
                    f"({rows[row['pair_id']]['path']}); name them one after the other"
                )
    if titles is not None:
        by_name = index_by_key((_title_key(row), row) for row in read_titles(titles))
        for row in rows.values():
            found = (by_name[key] for key in _video_keys(row["path"]) if key in by_name)
            title = next(found, None)
            row["title"] = title["title"] if title else row.get("title")
    return manifest_from_rows(rows.values(), ".")


def probe_missing(manifest: Manifest, *, shown: bool = True) -> Manifest:
    """With what probing finds filled in where it is not known yet.

    Files are looked at in other processes, which they may crash.
    """
    rows = manifest.table.to_pylist()
    waiting = [
        (row, clip.path)
        for row, clip in zip(rows, manifest.clips(), strict=True)
        if None in (row["duration"], row["width"], row["height"]) and not row["error"]
    ]
    with delayed_progress("probing", "videos", shown) as progress:
        found = probe_videos(
            [path for _, path in waiting], progress=lambda done: progress(done, len(waiting))
        )
    for (row, _), columns in zip(waiting, found, strict=True):
        row.update(columns)
    return manifest_from_rows(rows, manifest.path)


def _title_key(row: TableLine) -> str:
    return video_stem(row["video_id"]) if row["video_id"] else _plain_path(row["path"])


def _video_keys(path: str) -> Iterator[str]:
    """What a title file may call a video: its path, the ends of that (``/a/b``, ``/b``), the
    longest first, and its plain name."""
    rest = _plain_path(path)
    while rest:
        yield rest
        rest = rest[rest.find("/", 1) :] if "/" in rest[1:] else ""
    yield video_stem(path)


def _plain_path(path: str) -> str:
    path = os.path.normpath(strip_video_suffix(to_nfc(path)))
    while path.startswith("../"):
        path = path.removeprefix("../")
    return f"/{path.lstrip('/')}"


def _rows(name: str) -> Iterator[dict[str, Any]]:
    path = Path(name)
    if path.suffix == ".parquet":
        manifest = Manifest.read(path)
        wholes = [absolute_path(clip.path) for clip in manifest.clips()]
        for row, whole in zip(manifest.table.to_pylist(), wholes, strict=True):
            yield {**row, "path": whole}
    elif "://" not in name and path.is_dir():
        files = VideoFiles(path)
        if not len(files):
            raise ManifestError(f"folder {name} holds no video")
        for within in files.paths:
            yield _row(files.whole(within))
    else:
        yield _row(name)


def _row(path: str) -> dict[str, Any]:
    return {"pair_id": path, "path": path}
