"""Any folder of videos with a title file becomes a manifest."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.labels import name_classes
from crosspair.corpora.manifest import SPLITS, Manifest
from crosspair.corpora.official import Choices, Listed, join
from crosspair.corpora.output import NO_TITLE, LeftOut, Output, probe_rows
from crosspair.corpora.splits import hold_out, split_named
from crosspair.corpora.table import Row, by_key, read_lines, some
from crosspair.corpora.titlefile import read_titles
from crosspair.corpora.videofiles import VideoFiles, composed, plain_name, without_suffix
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)


def folder_corpus(
    folder: Path,
    titles: Path,
    out: Path,
    *,
    label_by_folder: bool = False,
    split_lists: Mapping[str, Path] | None = None,
    skip_broken: bool = False,
    **choices: Unpack[Choices],
) -> Manifest:
    """Join a folder of videos with a title file, and write the manifest.

    Args:
        folder: searched for videos, with all its subfolders.
        titles: a file as `titlefile.read_titles` takes it. ``video_id`` is a file's name without
            its suffix, ``path`` that within ``folder``; ``start`` and ``end`` in s.
        out: the manifest; in a folder, ``manifest.parquet``.
        label_by_folder: take the name of the folder that holds a video as its label.
        split_lists: split to a text file that names its videos, one a line, as UCF101's.
        skip_broken: write the manifest although videos are broken; they are marked and left out.
        **choices: see `official.Choices`.

    Raises:
        ManifestError: an input does not do, no title belongs to a video, or videos are broken and
            ``skip_broken`` is not set. Nothing is written then.
    """
    output = Output(out)
    listed = _listed(read_titles(titles, choices.get("title_columns")))
    videos, left_out = VideoFiles(folder), list[LeftOut]()
    rows = join(listed, videos, left_out, what=f"titles of {titles}", needs_title=True)
    _refuse_doubles(rows, titles)
    _list_unnamed(videos, rows, left_out)
    if label_by_folder:
        for row in rows:
            row["label"] = Path(row["path"]).parent.name
    name_classes(rows, choices.get("class_names"), str)
    for split, file in (split_lists or {}).items():
        _assign_split(rows, videos, split, file)
    hold_out(
        rows, choices.get("val_share", 0.0), choices.get("seed", 0), lambda row: str(row["path"])
    )
    probe_rows(rows, choices.get("progress", lambda *_: None))
    if not skip_broken:
        _refuse_broken(rows)
    return output.write(rows, left_out)


def _listed(titles: list[Row]) -> list[Listed]:
    named = by_key((row["video_id"] or composed(row["path"]), row) for row in titles)
    return [_pair(name, row) for name, row in named.items()]


def _pair(name: str, row: Row) -> Listed:
    start, end = row.part("start", "end")
    says = {
        "title": row["title"] or None,
        "title_clean": row.values.get("title_clean"),
        "label": row["label"] or None,
        "split": split_named(row["split"], row.where),
        "start": start,
        "end": end,
    }
    return Listed(name, row.where, {row["path"] or name: {}}, says)


def _refuse_doubles(rows: list[dict[str, Any]], titles: Path) -> None:
    """A video has names with and without suffix and folder; training would take it for two."""
    first: dict[tuple[Any, ...], str] = {}
    for row in rows:
        named = first.setdefault((row["path"], row["start"] or 0.0, row["end"]), row["pair_id"])
        if named != row["pair_id"]:
            raise ManifestError(
                f"title file {titles}: {named!r} and {row['pair_id']!r} are the same part of "
                f"{row['path']}; leave one of them"
            )


def _list_unnamed(videos: VideoFiles, rows: list[dict[str, Any]], left_out: list[LeftOut]) -> None:
    known = {row["path"] for row in rows} | {pair.detail for pair in left_out}
    for path in videos.paths:
        if videos.whole(path) not in known:
            left_out.append(LeftOut(plain_name(path), NO_TITLE, videos.whole(path)))


def _assign_split(rows: list[dict[str, Any]], videos: VideoFiles, split: str, file: Path) -> None:
    if split not in SPLITS:
        raise ManifestError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    of_video: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        of_video.setdefault(row["path"], []).append(row)
    lines = read_lines(file, "split list")
    strange = []
    for line in lines:
        name = _without_number(line["line"])
        members = of_video.get(_video_named(name, videos, line.where), [])
        for row in members:
            row["split"] = split
        if not members:
            strange.append(name)
    if len(strange) == len(lines):
        named = f"; it names {some(strange)}" if strange else ""
        raise ManifestError(f"split list {file} names none of the {len(rows)} videos{named}")
    if strange:
        logger.warning(
            "split list %s: %d of %d lines name no video with a title (%s)",
            file, len(strange), len(lines), some(strange),
        )  # fmt: skip


def _without_number(line: str) -> str:
    """UCF101's train lists have the class's number behind the file."""
    cut = re.sub(r"\s+\d+$", "", line)
    return line if without_suffix(cut) == cut else cut


def _video_named(line: str, videos: VideoFiles, where: str) -> str | None:
    """The video of a list's line, which may have another suffix and other folders on disk."""
    for name in (line, without_suffix(line), plain_name(line)):
        path = videos.named(name, where)
        if path is not None:
            return videos.whole(path)
    return None


def _refuse_broken(rows: list[dict[str, Any]]) -> None:
    broken = [row["error"] for row in rows if row.get("error")]
    for error in broken:
        logger.warning("broken: %s", error)
    if broken:
        raise ManifestError(
            f"{len(broken)} of {len(rows)} videos cannot be read (the first: {broken[0]}); "
            "mend or remove them, or mark and leave them out by --skip-broken"
        )
