"""UCF101 and HMDB51: classes with three official splits, one manifest a split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.build import (
    ManifestOutput,
    PairRecord,
    TitledCorpusOptions,
    class_phrase,
    official_corpus,
)
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import TableLine, index_by_key, read_lines
from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SPLITS = (1, 2, 3)


def ucf101_corpus(
    folder: Path,
    lists: Path,
    out: Path,
    *,
    splits: Sequence[int] = (1,),
    **choices: Unpack[TitledCorpusOptions],
) -> list[Manifest]:
    """Write the manifest of each split of UCF101: 13,320 videos in 101 classes.

    The clips of one group (``g08`` of ``v_Archery_g08_c01``) are parts of one recording; a group is
    held out for validation as a whole, so that none of it is recognised.

    Args:
        folder: of videos, as ``.avi`` or re-encoded, in folders of classes or flat.
        lists: the folder of ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.
        out: a manifest, if one split is asked for; in a folder, ``split1.parquet`` and so on.
        splits: of `SPLITS`.
        **choices: see `official.TitleChoices`; a pair without a title stays, with an empty one.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    _check_lists(lists, "UCF101")
    classes = _classes(lists / "classInd.txt")

    def pairs(split: int) -> Iterator[tuple[TableLine, PairRecord]]:
        for name in ("train", "test"):
            for row in read_lines(lists / f"{name}list{split:02d}.txt", "list of videos"):
                found = _UCF101_VIDEO.fullmatch(row["line"])
                if not found:
                    raise ManifestError(f"{row.where}: {row['line']!r} is not CLASS/VIDEO")
                # The number behind is not compared: lists cut to some classes may renumber them.
                if (label := found["label"]) not in classes:
                    raise ManifestError(f"{row.where}: class {label!r} is not in classInd.txt")
                yield row, _listed(row, found["file"], label, name)

    return _corpus(folder, out, splits, pairs, _UCF101_GROUP, choices)


def hmdb51_corpus(
    folder: Path,
    lists: Path,
    out: Path,
    *,
    splits: Sequence[int] = (1,),
    **choices: Unpack[TitledCorpusOptions],
) -> list[Manifest]:
    """Write the manifest of each split of HMDB51: 6,766 videos in 51 classes.

    The videos that a split does not use (0) are not in its manifest. Videos of one class cut from
    one source (``April_09_brush_hair`` of ``April_09_brush_hair_u_nm_np1_ba_goo_0``) are held out
    for validation as a whole, so that none is recognised.

    Args:
        folder, out, splits, **choices: as for `ucf101_corpus`.
        lists: the folder of ``CLASS_test_splitN.txt``.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    _check_lists(lists, "HMDB51")
    files = lists.glob("*_test_split[123].txt")
    classes = {file.name.rpartition("_test_split")[0] for file in files}
    if not classes:
        raise ManifestError(f"{lists} holds no list of HMDB51, as brush_hair_test_split1.txt")

    def pairs(split: int) -> Iterator[tuple[TableLine, PairRecord]]:
        for label in sorted(classes):
            for row in read_lines(lists / f"{label}_test_split{split}.txt", "list of videos"):
                found = _HMDB51_VIDEO.fullmatch(row["line"])
                if not found:
                    raise ManifestError(
                        f"{row.where}: {row['line']!r} is not a video and 0, 1 or 2"
                    )
                yield row, _listed(row, found["file"], label, _HMDB51_USES[found["use"]])

    return _corpus(folder, out, splits, pairs, _HMDB51_SOURCE, choices)


_UCF101_CLASS = re.compile(r"\d+\s+(\S+)")
_UCF101_VIDEO = re.compile(r"(?P<label>[^/]+)/(?P<file>.+?)(\s+\d+)?")
_UCF101_GROUP = re.compile(r"(.+)_c\d+")
_HMDB51_VIDEO = re.compile(r"(?P<file>.+?)\s+(?P<use>[012])")
_HMDB51_USES = {"0": None, "1": "train", "2": "test"}
# Behind the source and the class come five properties of the shot and a running number.
_HMDB51_SOURCE = re.compile(r"(.+)_[a-z]+_(cm|nm)_np\d+_[a-z]{2}_(bad|med|goo)_\d+")


def _check_lists(lists: Path, corpus: str) -> None:
    if not lists.is_dir():
        raise ManifestError(f"{lists} is no folder of {corpus}'s lists")


def _classes(file: Path) -> set[str]:
    classes = set()
    for row in read_lines(file, "list of classes"):
        found = _UCF101_CLASS.fullmatch(row["line"])
        if not found:
            raise ManifestError(f"{row.where}: {row['line']!r} is not a number and a class")
        classes.add(found[1])
    return classes


def _listed(row: TableLine, file: str, label: str, split: str | None) -> PairRecord:
    name = video_stem(file)
    return PairRecord(name, row.where, {name: {}}, {"label": label, "split": split})


def _corpus(
    folder: Path,
    out: Path,
    splits: Sequence[int],
    pairs: Callable[[int], Iterable[tuple[TableLine, PairRecord]]],
    group: re.Pattern[str],
    choices: TitledCorpusOptions,
) -> list[Manifest]:
    if out.suffix == ".parquet" and len(splits) > 1:
        raise ManifestError(
            f"output {out}: {len(splits)} splits are as many manifests; name a folder for them"
        )

    def members(split: int) -> list[PairRecord]:
        of_split = list(pairs(split))
        index_by_key((listed.pair_id, row) for row, listed in of_split)
        used = [listed for _, listed in of_split if listed.row["split"]]
        if len(used) < len(of_split):
            logger.info("split %d does not use %d videos", split, len(of_split) - len(used))
        return used

    def group_of(row: dict[str, Any]) -> str:
        found = group.fullmatch(row["pair_id"])
        return found[1] if found else str(row["pair_id"])

    lists = [(ManifestOutput(out, f"split{split}.parquet"), members(split)) for split in splits]
    return official_corpus(
        folder, lists, choices, what="listed videos", phrase=class_phrase, group=group_of
    )
