"""Any folder of videos with a title file becomes a manifest."""

from __future__ import annotations

import csv
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.corpora.manifest import SPLITS, Manifest, manifest_of
from crosspair.corpora.probing import probe_all
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
LINE = "\n"  # key of a row's line in the title file; no column can have this name
NAMED = 5  # how many of a kind a message names before it only counts


def folder_corpus(
    folder: Path,
    titles: Path,
    out: Path,
    *,
    label_by_folder: bool = False,
    split_lists: Mapping[str, Path] | None = None,
    val_share: float = 0.0,
    seed: int = 0,
    skip_broken: bool = False,
) -> Manifest:
    """Join a folder of videos with a title file, and write the manifest.

    Args:
        folder: searched for videos, with all its subfolders.
        titles: a csv, or a tsv by its suffix, with the columns ``video_id`` (a file's name without
            its suffix) or ``path`` (within ``folder``), ``title``, and optionally ``label``,
            ``split``, ``start`` and ``end`` (s).
        out: the manifest; in a folder, ``manifest.parquet``.
        label_by_folder: take the name of the folder that holds a video as its label.
        split_lists: split to a text file that names its videos, one a line, as UCF101's.
        val_share: share of the train split, 0 to 1, to hold out as split ``val``.
        seed: of that choice.
        skip_broken: write the manifest although videos are broken; they are marked and left out.

    Raises:
        ManifestError: the title file does not do, no title belongs to a video, or videos are
            broken and ``skip_broken`` is not set. Nothing is written then.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is no folder of videos")
    if out.suffix != ".parquet":
        out = out / "manifest.parquet"
    rows = _joined(_read_titles(titles), _videos(folder), titles, folder)
    if label_by_folder:
        for row in rows:
            row["label"] = Path(row["path"]).parent.name
    for split, file in (split_lists or {}).items():
        _assign_split(rows, split, file)
    _hold_out(rows, val_share, seed)
    _probe_all(rows, skip_broken)
    for row in rows:
        # Resolved first: a step up from a linked folder leads elsewhere.
        video = Path(row["path"])
        whole = video.parent.resolve() / video.name
        row["path"] = os.path.relpath(whole, out.parent.resolve())
    return manifest_of(rows, out).write(out)


def _read_titles(path: Path) -> list[dict[str, str]]:
    delimiter = "\t" if path.suffix.lower() in {".tsv", ".tab"} else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # A quotation mark in a tsv is part of a title; in a csv it encloses one.
            reader = (
                csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                if delimiter == "\t"
                else csv.reader(file)
            )
            names = [name.strip() for name in next(reader, [])]
            separator = "tabs" if delimiter == "\t" else "commas"
            rows = []
            for row in reader:
                if any(row[len(names) :]):
                    quoted = "" if delimiter == "\t" else " outside quotation marks"
                    raise ManifestError(
                        f"title file {path}, line {reader.line_num}: {len(row)} fields under "
                        f"{len(names)} columns; does a title hold {separator}{quoted}?"
                    )
                if any(row):
                    rows.append({**dict(zip(names, row, strict=False)), LINE: str(reader.line_num)})
    except FileNotFoundError as error:
        raise ManifestError(f"title file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"title file {path} is not UTF-8 (byte {error.start}); "
            "save it as UTF-8, for instance by iconv -f latin1 -t utf-8"
        ) from error
    except (OSError, csv.Error) as error:
        raise ManifestError(f"title file {path} cannot be read: {error}") from error
    if "title" not in names or not {"video_id", "path"} & set(names):
        raise ManifestError(
            f"title file {path} needs the columns 'title' and 'video_id' or 'path', "
            f"separated by {separator}; it has {', '.join(map(repr, names)) or 'none'}"
        )
    return rows


def _videos(folder: Path) -> dict[str, list[Path]]:
    """Videos by each name they may be called by: within the folder, and without suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            relative = path.relative_to(folder)
            for name in {relative.as_posix(), relative.with_suffix("").as_posix(), path.stem}:
                found[_composed(name)].append(path)
    return found


def _composed(name: str) -> str:
    """One form of a name: file systems and editors disagree on how to write é."""
    return unicodedata.normalize("NFC", name.strip())


def _joined(
    titles: list[dict[str, str]], videos: Mapping[str, list[Path]], file: Path, folder: Path
) -> list[dict[str, Any]]:
    rows, lost = [], []
    for given in titles:
        line = given[LINE]
        name = _composed(given.get("path", "")) or _composed(given.get("video_id", ""))
        candidates = videos.get(name, [])
        if len(candidates) > 1:
            raise ManifestError(
                f"{file}, line {line}: {name!r} is the name of {len(candidates)} videos "
                f"({candidates[0]}, {candidates[1]}); tell them apart by a column 'path'"
            )
        if not candidates:
            lost.append(name)
            continue
        row: dict[str, Any] = {
            "pair_id": given.get("video_id", "").strip() or name,
            "path": str(candidates[0]),
            "title": given.get("title", "").strip() or None,
            "label": given.get("label", "").strip() or None,
            "split": given.get("split", "").strip() or None,
        }
        for key in ("start", "end"):
            row[key] = _seconds(given.get(key), f"{file}, line {line}: {key}")
        rows.append(row)
    used = {row["path"] for row in rows}
    if not rows:
        found = len({path for of_name in videos.values() for path in of_name})
        raise ManifestError(
            f"no pair: none of the {len(titles)} titles of {file} belongs to one of the "
            f"{found} videos in {folder}{_examples(lost, 'titles are for')}"
        )
    if lost:
        logger.warning("%d titles have no video: %s", len(lost), _some(lost))
    untitled = sorted({p.name for of in videos.values() for p in of if str(p) not in used})
    if untitled:
        logger.warning("%d videos have no title: %s", len(untitled), _some(untitled))
    return rows


def _assign_split(rows: list[dict[str, Any]], split: str, file: Path) -> None:
    if split not in SPLITS:
        raise ManifestError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"split list {file} cannot be read: {error}") from error
    # UCF101's train lists have the class's number behind the name.
    given = [_composed(re.sub(r"\s+\d+\s*$", "", line)) for line in lines if line.strip()]
    names = {name for line in given for name in (Path(line).name, Path(line).stem)}
    members = [row for row in rows if _composed(Path(row["path"]).stem) in names]
    if not members:
        raise ManifestError(
            f"split list {file} names none of the {len(rows)} videos"
            f"{_examples(sorted(names), 'it names')}"
        )
    for row in members:
        row["split"] = split


def _hold_out(rows: list[dict[str, Any]], share: float, seed: int) -> None:
    if not 0 <= share < 1:
        raise ManifestError(f"the share to hold out for validation is {share}; it must be 0 to 1")
    train = [row for row in rows if row["split"] in (None, "train")]
    chosen = np.random.default_rng(seed).permutation(len(train))[: round(share * len(train))]
    for index in chosen:
        train[index]["split"] = "val"


def _probe_all(rows: list[dict[str, Any]], skip_broken: bool) -> None:
    broken = []
    for row, found in zip(rows, probe_all([row["path"] for row in rows]), strict=True):
        row.update(found)
        if "error" in found:
            broken.append(found["error"])
            logger.warning("broken: %s", found["error"])
    if broken and not skip_broken:
        raise ManifestError(
            f"{len(broken)} of {len(rows)} videos cannot be read (the first: {broken[0]}); "
            "mend or remove them, or mark and leave them out by --skip-broken"
        )


def _seconds(text: str | None, where: str) -> float | None:
    if not text or not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ManifestError(f"{where} is {text!r}, not a number of seconds") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _examples(names: list[str], what: str) -> str:
    return f"; {what} {_some(names)}" if names else ""
