"""HMDB51: three official splits of 6,766 videos in 51 classes."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

_LIST = re.compile(r"(?P<label>.+)_test_split(?P<split>[123])\.txt")
_LINE = re.compile(r"(?P<file>.+?)\s+(?P<use>[012])")
_USES = {"0": None, "1": "train", "2": "test"}
# Behind the source and the class come five properties of the shot and a running number.
_OF_SOURCE = re.compile(r"(?P<source>.+)_[a-z]+_(cm|nm)_np\d+_[a-z]{2}_(bad|med|goo)_\d+")


def hmdb51_corpus(
    folder: Path,
    lists: Path,
    out: Path,
    *,
    splits: Sequence[int] = (1,),
    **choices: Unpack[TitleChoices],
) -> list[Manifest]:
    """Write the manifest of each split; the videos that it does not use (0) are not in it.

    Videos of one class cut from one source (``April_09_brush_hair`` of
    ``April_09_brush_hair_u_nm_np1_ba_goo_0``) are held out for validation as a whole, so that none
    is recognised.

    Args:
        folder: of videos, as ``.avi`` or re-encoded, in folders of classes or flat.
        lists: the folder of ``CLASS_test_splitN.txt``.
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


def _classes(lists: Path) -> list[str]:
    if not lists.is_dir():
        raise ManifestError(f"{lists} is no folder of HMDB51's lists")
    found = [_LIST.fullmatch(file.name) for file in lists.iterdir()]
    classes = sorted({match["label"] for match in found if match})
    if not classes:
        raise ManifestError(f"{lists} holds no list of HMDB51, as brush_hair_test_split1.txt")
    return classes


def _members(lists: Path, split: int, classes: Sequence[str]) -> list[Listed]:
    members: list[tuple[Row, Listed]] = []
    for label in classes:
        for row in read_lines(lists / f"{label}_test_split{split}.txt", "list of videos"):
            members.append((row, _listed(row, label)))
    by_key((listed.pair_id, row) for row, listed in members)
    used = [listed for _, listed in members if listed.row["split"]]
    if len(used) < len(members):
        logger.info("split %d does not use %d videos", split, len(members) - len(used))
    return used


def _listed(row: Row, label: str) -> Listed:
    found = _LINE.fullmatch(row["line"])
    if not found:
        raise ManifestError(f"{row.where}: {row['line']!r} is not a video and 0, 1 or 2")
    name = plain_name(found["file"])
    return Listed(name, row.where, {name: {}}, {"label": label, "split": _USES[found["use"]]})


def _group(row: Mapping[str, Any]) -> str:
    found = _OF_SOURCE.fullmatch(row["pair_id"])
    return found["source"] if found else str(row["pair_id"])
