"""UCF101: three official splits of 13,320 videos in 101 classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.join import Listed
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.official import TitleChoices
from crosspair.corpora.table import Row, by_key, read_lines
from crosspair.corpora.threesplits import three_splits_corpus
from crosspair.corpora.videofiles import plain_name
from crosspair.errors import ManifestError

_CLASS = re.compile(r"(\d+)\s+(\S+)")
_VIDEO = re.compile(r"(?P<label>[^/]+)/(?P<file>.+?)(\s+\d+)?")
_OF_GROUP = re.compile(r"(.+)_c\d+")


def ucf101_corpus(
    folder: Path,
    lists: Path,
    out: Path,
    *,
    splits: Sequence[int] = (1,),
    **choices: Unpack[TitleChoices],
) -> list[Manifest]:
    """Write the manifest of each split.

    The clips of one group (``g08`` of ``v_Archery_g08_c01``) are parts of one recording; a group is
    held out for validation as a whole, so that none of it is recognised.

    Args:
        folder: of videos, as ``.avi`` or re-encoded, in folders of classes or flat.
        lists: the folder of ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.
        out: a manifest, if one split is asked for; in a folder, ``split1.parquet`` and so on.
        splits: of 1, 2 and 3.
        **choices: see `official.TitleChoices`.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    classes = _classes(lists)
    return three_splits_corpus(
        folder, out, splits, lambda split: _members(lists, split, classes), _group, **choices
    )


def _classes(lists: Path) -> set[str]:
    if not lists.is_dir():
        raise ManifestError(f"{lists} is no folder of UCF101's lists")
    classes = set()
    for row in read_lines(lists / "classInd.txt", "list of classes"):
        found = _CLASS.fullmatch(row["line"])
        if not found:
            raise ManifestError(f"{row.where}: {row['line']!r} is not a number and a class")
        classes.add(found[2])
    return classes


def _members(lists: Path, split: int, classes: set[str]) -> list[Listed]:
    members: list[tuple[Row, Listed]] = []
    for name in ("train", "test"):
        for row in read_lines(lists / f"{name}list{split:02d}.txt", "list of videos"):
            members.append((row, _listed(row, name, classes)))
    by_key((listed.pair_id, row) for row, listed in members)
    return [listed for _, listed in members]


def _listed(row: Row, split: str, classes: set[str]) -> Listed:
    found = _VIDEO.fullmatch(row["line"])
    if not found:
        raise ManifestError(f"{row.where}: {row['line']!r} is not CLASS/VIDEO")
    label, name = found["label"], plain_name(found["file"])
    # The number behind a name is not compared: a list cut to some classes keeps or renumbers it.
    if label not in classes:
        raise ManifestError(f"{row.where}: class {label!r} is not in classInd.txt")
    return Listed(name, row.where, {name: {}}, {"label": label, "split": split})


def _group(row: Mapping[str, Any]) -> str:
    found = _OF_GROUP.fullmatch(row["pair_id"])
    return found[1] if found else str(row["pair_id"])
