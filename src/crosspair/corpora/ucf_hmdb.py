"""Read UCF101 and HMDB51: labelled videos with three official splits, one manifest per split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.build import ManifestOutput, PairRecord, TitledCorpusOptions, build_manifests, class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import TableLine, index_by_key, read_lines
from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SPLITS = (1, 2, 3)

_UCF101_CLASS = re.compile(r"\d+\s+(\S+)")
_UCF101_VIDEO = re.compile(r"(?P<label>[^/]+)/(?P<file>.+?)(\s+\d+)?")
_UCF101_GROUP = re.compile(r"(.+)_c\d+")
_HMDB51_VIDEO = re.compile(r"(?P<file>.+?)\s+(?P<use>[012])")
_HMDB51_SPLITS = {"0": None, "1": "train", "2": "test"}
# Source and class are followed by five properties of the shot and a running number.
_HMDB51_SOURCE = re.compile(r"(.+)_[a-z]+_(cm|nm)_np\d+_[a-z]{2}_(bad|med|goo)_\d+")


def ucf101_corpus(
    folder: Path, lists: Path, out: Path, *, splits: Sequence[int] = (1,), **options: Unpack[TitledCorpusOptions]
) -> list[Manifest]:
    """Write the manifest of each split of UCF101: 13,320 videos in 101 classes.

    The clips of one group (``g08`` of ``v_Archery_g08_c01``) are cut from one recording and are
    held out for validation together.

    Args:
        folder: the videos, ``.avi`` or re-encoded, in class folders or in one folder.
        lists: the folder of ``classInd.txt``, ``trainlist0N.txt`` and ``testlist0N.txt``.
        out: a manifest file if there is one split, or a folder for ``split1.parquet`` etc.
        splits: some of `SPLITS`.
        **options: see `crosspair.corpora.build.TitledCorpusOptions`; pairs without a title
            are kept.

    Raises:
        ManifestError: an input is invalid; nothing has been written.
    """
    classes = _read_classes(lists / "classInd.txt")

    def pairs(split: int) -> Iterator[tuple[TableLine, PairRecord]]:
        for name in ("train", "test"):
            for line in read_lines(lists / f"{name}list{split:02d}.txt", "list of videos"):
                match = _UCF101_VIDEO.fullmatch(line["line"])
                if not match:
                    raise ManifestError(f"{line.where}: {line['line']!r} is not CLASS/VIDEO")
                # The class number is not checked: lists reduced to some classes may renumber them.
                if (label := match["label"]) not in classes:
                    raise ManifestError(f"{line.where}: class {label!r} is not in classInd.txt")
                yield line, _listed_pair(line, match["file"], label, name)

    return _build_splits(folder, out, splits, pairs, _UCF101_GROUP, options)


def hmdb51_corpus(
    folder: Path, lists: Path, out: Path, *, splits: Sequence[int] = (1,), **options: Unpack[TitledCorpusOptions]
) -> list[Manifest]:
    """Write the manifest of each split of HMDB51: 6,766 videos in 51 classes.

    Videos that a split does not use (0 in its lists) are not in its manifest. Videos of one class
    and source (``April_09_brush_hair`` of ``April_09_brush_hair_u_nm_np1_ba_goo_0``) are held out
    for validation together.

    Args:
        folder, out, splits, **options: as for `ucf101_corpus`.
        lists: the folder of ``CLASS_test_splitN.txt``.

    Raises:
        ManifestError: an input is invalid; nothing has been written.
    """
    files = lists.glob("*_test_split[123].txt")
    classes = {file.name.rpartition("_test_split")[0] for file in files}
    if not classes:
        raise ManifestError(f"{lists} holds no HMDB51 list, such as brush_hair_test_split1.txt")

    def pairs(split: int) -> Iterator[tuple[TableLine, PairRecord]]:
        for label in sorted(classes):
            for line in read_lines(lists / f"{label}_test_split{split}.txt", "list of videos"):
                match = _HMDB51_VIDEO.fullmatch(line["line"])
                if not match:
                    raise ManifestError(f"{line.where}: {line['line']!r} is not a video followed by 0, 1 or 2")
                yield line, _listed_pair(line, match["file"], label, _HMDB51_SPLITS[match["use"]])

    return _build_splits(folder, out, splits, pairs, _HMDB51_SOURCE, options)


def _read_classes(file: Path) -> set[str]:
    classes = set()
    for line in read_lines(file, "list of classes"):
        match = _UCF101_CLASS.fullmatch(line["line"])
        if not match:
            raise ManifestError(f"{line.where}: {line['line']!r} is not a number and a class")
        classes.add(match[1])
    return classes


def _listed_pair(line: TableLine, file: str, label: str, split: str | None) -> PairRecord:
    """Return the pair of a listed video; its id is the file name without suffix."""
    name = video_stem(file)
    return PairRecord(name, line.where, {name: {}}, {"label": label, "split": split})


def _build_splits(
    folder: Path,
    out: Path,
    splits: Sequence[int],
    pairs: Callable[[int], Iterable[tuple[TableLine, PairRecord]]],
    group_pattern: re.Pattern[str],
    options: TitledCorpusOptions,
) -> list[Manifest]:
    """Write a manifest per split; ids with equal group 1 of ``group_pattern`` are held out together."""
    if out.suffix == ".parquet" and len(splits) > 1:
        raise ManifestError(f"output {out} is one file for {len(splits)} splits. Pass a folder instead.")

    def used_pairs(split: int) -> list[PairRecord]:
        listed = list(pairs(split))
        index_by_key((pair.pair_id, line) for line, pair in listed)
        used = [pair for _, pair in listed if pair.row["split"]]
        if len(used) < len(listed):
            logger.info("split %d does not use %d videos", split, len(listed) - len(used))
        return used

    def group(row: dict[str, Any]) -> str:
        match = group_pattern.fullmatch(row["pair_id"])
        return match[1] if match else str(row["pair_id"])

    lists = [(ManifestOutput(out, f"split{split}.parquet"), used_pairs(split)) for split in splits]
    return build_manifests(folder, lists, options, what="listed videos", format_label=class_phrase, group=group)
