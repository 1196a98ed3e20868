"""Read UCF101 and HMDB51: labelled videos with three official splits, one manifest per split."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import pandas as pd

from crosspair.corpora.build import ManifestOutput, PairRecord, Row, TitledCorpusOptions, build_manifests, class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import index_by_key, read_lines
from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

SPLITS = (1, 2, 3)

_UCF101_CLASS = r"\d+\s+(?P<label>\S+)"
_UCF101_VIDEO = r"(?P<label>[^/]+)/(?P<file>.+?)(?:\s+\d+)?"
_UCF101_GROUP = re.compile(r"(.+_g\d+)_c\d+")
_HMDB51_VIDEO = r"(?P<file>.+?)\s+(?P<split>[012])"
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
        **options: see `crosspair.corpora.build.TitledCorpusOptions`; pairs without a title are kept.
    """
    classes = set(_read_list(lists / "classInd.txt", _UCF101_CLASS, "a number and a class")["label"])

    def listed_videos(split: int) -> pd.DataFrame:
        parts = [
            _read_list(lists / f"{name}list{split:02d}.txt", _UCF101_VIDEO, "CLASS/VIDEO").assign(split=name)
            for name in ("train", "test")
        ]
        videos = pd.concat(parts)
        # The class number is not checked: lists reduced to some classes may renumber them.
        unknown = videos["label"][~videos["label"].isin(classes)]
        if len(unknown):
            raise ManifestError(f"{unknown.index[0]}: class {unknown.iloc[0]!r} is not in classInd.txt")
        return videos

    return _build_splits(folder, out, splits, listed_videos, options)


def hmdb51_corpus(
    folder: Path, lists: Path, out: Path, *, splits: Sequence[int] = (1,), **options: Unpack[TitledCorpusOptions]
) -> list[Manifest]:
    """Write the manifest of each split of HMDB51: 6,766 videos in 51 classes.

    Videos that a split does not use (0 in its lists) are not in its manifest. Videos of one source
    (``April_09`` of ``April_09_brush_hair_u_nm_np1_ba_goo_0``), such as a film, are held out for
    validation together, though the official splits separate sources by class only.

    Args:
        lists: the folder of ``CLASS_test_splitN.txt``.
        folder, out, splits, **options: as for `ucf101_corpus`.
    """
    classes = sorted({file.name.rpartition("_test_split")[0] for file in lists.glob("*_test_split[123].txt")})
    if not classes:
        raise ManifestError(f"{lists} holds no HMDB51 list, such as brush_hair_test_split1.txt")

    def listed_videos(split: int) -> pd.DataFrame:
        form = "a video followed by 0, 1 or 2"
        files = {label: lists / f"{label}_test_split{split}.txt" for label in classes}
        parts = [_read_list(file, _HMDB51_VIDEO, form).assign(label=label) for label, file in files.items()]
        videos = pd.concat(parts)
        return videos.assign(split=videos["split"].map(_HMDB51_SPLITS))

    return _build_splits(folder, out, splits, listed_videos, options)


def recording_ids(manifest: Manifest) -> list[str]:
    """Return the recording that each clip of a manifest is cut from, if it is known.

    It is the group of a clip of UCF101 and the source of a clip of HMDB51, which are known from ``pair_id`` and
    ``label``, and the file of any other clip.
    """
    columns = (manifest.column(name) for name in ("pair_id", "label", "path"))
    return [_recording_id(pair_id, label) or path for pair_id, label, path in zip(*columns, strict=True)]


def _recording_id(pair_id: str, label: str | None) -> str | None:
    """Return the group or source of a clip, or None if its name has none; ``label`` as in the lists or as a phrase.

    >>> _recording_id("v_YoYo_g01_c02", "yo yo"), _recording_id("April_09_brush_hair_u_nm_np1_ba_goo_0", "brush hair")
    ('v_YoYo_g01', 'April_09')
    """
    if group := _UCF101_GROUP.fullmatch(pair_id):
        return group[1]
    if source := _HMDB51_SOURCE.fullmatch(pair_id):
        return source[1].removesuffix("_" + (label or "").replace(" ", "_"))
    return None


def _read_list(file: Path, pattern: str, form: str) -> pd.DataFrame:
    """Return the named groups of a pattern, which every line must match, as columns."""
    lines = pd.Series(read_lines(file, "list"), dtype=object)
    found = lines.str.extract(f"^(?:{pattern})$")
    wrong = lines[found.isna().any(axis=1)]
    if len(wrong):
        raise ManifestError(f"{wrong.index[0]}: {wrong.iloc[0]!r} is not {form}")
    return found


def _build_splits(
    folder: Path,
    out: Path,
    splits: Sequence[int],
    listed_videos: Callable[[int], pd.DataFrame],
    options: TitledCorpusOptions,
) -> list[Manifest]:
    """Write a manifest per split; clips of one recording are held out together."""
    if out.suffix == ".parquet" and len(splits) > 1:
        raise ManifestError(f"output {out} is one file for {len(splits)} splits. Pass a folder instead.")

    def used_pairs(split: int) -> list[PairRecord]:
        videos = listed_videos(split)
        rows = index_by_key(videos, videos["file"].map(video_stem))
        used = {name: row for name, row in rows.items() if isinstance(row["split"], str)}
        if len(used) < len(rows):
            logger.info("split %d does not use %d videos", split, len(rows) - len(used))
        return [
            PairRecord(name, row["where"], {name: {}}, {"label": row["label"], "split": row["split"]})
            for name, row in used.items()
        ]

    def group(row: Row) -> str:
        return _recording_id(row["pair_id"], row["label"]) or str(row["pair_id"])

    lists = [(ManifestOutput(out, f"split{split}.parquet"), used_pairs(split)) for split in splits]
    return build_manifests(folder, lists, options, what="listed videos", format_label=class_phrase, group=group)
