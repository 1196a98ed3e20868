"""Build manifests from a corpus's own lists: find videos, join titles, split, label and probe."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.tables import csv_text, index_by_key, read_table, titles_by_id
from crosspair.corpora.video_files import VideoFiles, summarize_names, video_stem
from crosspair.errors import ManifestError
from crosspair.files import check_output, write_atomically

logger = logging.getLogger(__name__)

NO_FILE, NO_TITLE, BROKEN = "no file", "no title", "broken file"
"""Reasons of `SkippedPair`."""
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

Row = dict[str, Any]
"""Values of a row by column of the manifest."""


class CorpusOptions(TypedDict, total=False):
    """Options of every corpus reader."""

    title_columns: Mapping[str, str] | None  # the title file's names for its columns, see `tables.read_titles`
    class_names: Path | None  # file of display names, see `rename_classes`
    val_fraction: float  # fraction of the train split to hold out as ``val``, in [0, 1)
    seed: int  # selects the held-out rows
    progress: Callable[[int, int], None]  # called with the numbers of probed and of all pairs


class TitledCorpusOptions(CorpusOptions, total=False):
    """Options of corpora whose own lists have no titles: ``titles`` is a title file."""

    titles: Path | None


@dataclass
class PairRecord:
    """One pair as a corpus's lists describe it, before its video is found."""

    pair_id: str  # unique in the corpus
    where: str  # file and line of the entry, for messages
    files: Mapping[str, Row]  # possible names of the video, best first, and columns that apply for this name
    row: Row  # columns that apply in any case

    @property
    def titled(self) -> bool:
        """Whether it has a title."""
        return bool(self.row.get("title") or self.row.get("title_clean"))


class SkippedPair(NamedTuple):
    """A listed pair that training cannot use, and why."""

    video_id: str
    reason: str
    detail: str


def build_manifests(
    folder: Path,
    lists: Sequence[tuple[ManifestOutput, Sequence[PairRecord]]],
    options: TitledCorpusOptions,
    *,
    what: str,
    needs_title: bool = False,
    format_label: Callable[[str], str] = str,
    group: Callable[[Row], str] = lambda row: str(row["pair_id"]),
    after_probe: Callable[[Row], None] = lambda _: None,
) -> list[Manifest]:
    """Find the videos, join titles, hold out validation rows, probe, and write the manifests.

    A video that cannot be read stays in the manifest with its ``error``.

    Args:
        folder: the videos, in any subfolders.
        lists: output and pairs of each manifest; a video in several manifests is probed once.
        options: of the user.
        what, needs_title: see `match_videos`.
        format_label: display name of an official label.
        group: see `split_validation`.
        after_probe: called with each row after probing; may change it.

    Raises:
        ManifestError: an input is invalid; nothing has been written.
    """
    titles = options.get("titles")
    if titles is not None:
        _join_titles([pair for _, pairs in lists for pair in pairs], titles, options.get("title_columns"))
    videos = VideoFiles(folder)
    corpora = [(output, *match_videos(pairs, videos, what=what, needs_title=needs_title)) for output, pairs in lists]
    for _, rows, skipped in corpora:
        split_validation(rows, options.get("val_fraction", 0.0), options.get("seed", 0), group)
        if titles is not None:
            untitled = [row["pair_id"] for row in rows if not row.get("title") and not row.get("title_clean")]
            skipped += [SkippedPair(name, NO_TITLE, "in the manifest, with an empty title") for name in untitled]
    every_row = [row for _, rows, _ in corpora for row in rows]
    used = {row["path"] for row in every_row}
    unused = [path for path in videos.paths if videos.full_path(path) not in used]
    if unused:
        names = summarize_names(unused)
        logger.info("%d videos of %s are not in the corpus: %s", len(unused), folder, names)
    rename_classes(every_row, options.get("class_names"), format_label)
    probe_rows(every_row, options.get("progress", lambda *_: None))
    for row in every_row:
        after_probe(row)
    return [output.write(rows, skipped) for output, rows, skipped in corpora]


def match_videos(
    pairs: Sequence[PairRecord], videos: VideoFiles, *, what: str, needs_title: bool
) -> tuple[list[Row], list[SkippedPair]]:
    """Find the video of each pair.

    Args:
        pairs, videos: listed pairs, and the files to search.
        what: what the pairs are called, for messages.
        needs_title: skip pairs without a title.

    Returns:
        Manifest rows with ``path`` joined to the folder of ``videos``, and the skipped pairs.

    Raises:
        ManifestError: a name matches several videos, or no pair remains.
    """
    rows, skipped = list[Row](), list[SkippedPair]()
    for pair in pairs:
        found = ((videos.find(name, pair.where), columns) for name, columns in pair.files.items())
        path, columns = next((match for match in found if match[0] is not None), (None, {}))
        if path is None:
            skipped.append(SkippedPair(pair.pair_id, NO_FILE, f"no video {' or '.join(pair.files)}"))
        elif needs_title and not pair.titled:
            skipped.append(SkippedPair(pair.pair_id, NO_TITLE, videos.full_path(path)))
        else:
            rows.append({"pair_id": pair.pair_id, "path": videos.full_path(path), **columns, **pair.row})
    if rows:
        return rows, skipped
    if untitled := sum(pair.reason == NO_TITLE for pair in skipped):
        raise ManifestError(f"no pair: all {untitled} {what} with a video lack a title")
    names = [name for pair in pairs for name in pair.files]
    searched = f"; searched for {summarize_names(names)}" if names else ""
    raise ManifestError(
        f"no pair: {len(pairs)} {what} match no video of the {len(videos.paths)} in {videos.folder}{searched}"
    )


def _join_titles(pairs: Sequence[PairRecord], file: Path, columns: Mapping[str, str] | None) -> None:
    """Set ``title`` and ``title_clean`` of pairs, in place, from a title file; ManifestError if no id matches."""
    titles = titles_by_id(file, columns)
    titled = [pair for pair in pairs if video_stem(pair.pair_id) in titles]
    if not titled:
        raise ManifestError(
            f"title file {file}: its {len(titles)} ids ({summarize_names(list(titles))}) match "
            f"no id of the corpus ({summarize_names([pair.pair_id for pair in pairs])})"
        )
    for pair in titled:
        line = titles[video_stem(pair.pair_id)]
        pair.row |= {"title": line["title"] or None, "title_clean": line["title_clean"]}


def probe_rows(rows: Sequence[Row], progress: Callable[[int, int], None]) -> None:
    """Probe the rows' videos and set the probed columns or ``error``, in place; progress: rows done, all rows."""
    found = probe_videos([row["path"] for row in rows], progress=lambda done: progress(done, len(rows)))
    for row, columns in zip(rows, found, strict=True):
        row.update(columns)


class ManifestOutput:
    """The output of a manifest, a ``.parquet`` file or a folder for ``name``, checked before the work starts.

    Raises:
        ManifestError: it cannot be written, or would replace a file that is not a manifest.
    """

    def __init__(self, out: Path, name: str = "manifest.parquet") -> None:
        self.path = out if out.suffix == ".parquet" else out / name
        self.skipped_list = skipped_list_path(self.path)
        check_output(self.path, "a manifest", error_type=ManifestError)
        check_output(self.skipped_list, "a list of skipped pairs", error_type=ManifestError)

    def write(self, rows: list[Row], skipped: Sequence[SkippedPair]) -> Manifest:
        """Write the manifest and the list of skipped pairs and rows with an error; delete an old list if it is empty.

        Relative paths of ``rows`` start at the working directory.
        """
        # Resolved before taking the relative path, because ".." from a linked folder leads elsewhere;
        # once per folder and not per file, because resolving accesses the disk.
        folders = {parent: Path(parent).resolve() for parent in {os.path.dirname(row["path"]) for row in rows}}  # noqa: PTH120
        start = self.path.parent.resolve()
        relative = {parent: os.path.relpath(folder, start) for parent, folder in folders.items()}

        def place(path: str) -> str:
            parent, name = os.path.split(path)
            return os.path.normpath(os.path.join(relative[parent], name))  # noqa: PTH118

        manifest = manifest_from_rows([{**row, "path": place(row["path"])} for row in rows], self.path)
        skipped = [*skipped, *(SkippedPair(row["pair_id"], BROKEN, row["error"]) for row in rows if row.get("error"))]
        for reason in dict.fromkeys(pair.reason for pair in skipped):
            ids = [pair.video_id for pair in skipped if pair.reason == reason]
            count = "1 pair" if len(ids) == 1 else f"{len(ids)} pairs"
            logger.warning("%s: %s: %s (%s)", self.path.name, reason, count, summarize_names(ids))
        if skipped:
            write_atomically(self.skipped_list, csv_text(SkippedPair._fields, skipped))
        else:
            self.skipped_list.unlink(missing_ok=True)
        return manifest.write(self.path)


def skipped_list_path(manifest: Path) -> Path:
    """Return the path of the list of skipped pairs next to a manifest."""
    return manifest.with_name(f"{manifest.stem}.left-out.csv")


def parse_split(name: str, where: str) -> str | None:
    """Return the manifest's name of a split, in any case, or None for an empty string.

    >>> parse_split("validate", "val.csv, line 2")
    'val'
    """
    if name and name.lower() not in _SPLIT_NAMES:
        raise ManifestError(f"{where}: split {name!r} is unknown; it must be one of {', '.join(_SPLIT_NAMES)}")
    return _SPLIT_NAMES[name.lower()] if name else None


def split_validation(
    rows: list[Row], fraction: float, seed: int, group: Callable[[Row], str] = lambda row: str(row["pair_id"])
) -> None:
    """Move random groups of the train split to split ``val``, in place.

    Args:
        rows: of a manifest; those without a split belong to train.
        fraction: of the train rows, in [0, 1). Groups are added while they fit; only a first group
            that is larger than the fraction exceeds it.
        seed: selects the groups.
        group: key of a row; rows that would be recognised from each other, such as two clips of
            one recording, must have the same key.
    """
    if not 0 <= fraction < 1:
        raise ManifestError(f"the validation fraction is {fraction}; it must be in [0, 1)")
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("split") in (None, "train"):
            groups[group(row)].append(row)
    wanted, held = round(fraction * sum(map(len, groups.values()))), 0
    members = list(groups.values())
    for index in np.random.default_rng(seed).permutation(len(members)):
        if held < wanted and (not held or held + len(members[index]) <= wanted):
            held += len(members[index])
            for row in members[index]:
                row["split"] = "val"


def class_phrase(label: str) -> str:
    """Turn a label into words, as zero-shot prompts need it; labels of several words are kept.

    >>> class_phrase("ApplyEyeMakeup"), class_phrase("brush_hair"), class_phrase("making a BLT")
    ('apply eye makeup', 'brush hair', 'making a BLT')
    """
    words = label.split()
    if len(words) > 1:
        return " ".join(words)
    return " ".join(CAMEL_CASE.sub(" ", label).replace("_", " ").lower().split())


def rename_classes(rows: Iterable[Row], file: Path | None, format_label: Callable[[str], str]) -> None:
    """Replace the official labels of rows by display names, in place.

    Args:
        rows: of a manifest; those without a label are unchanged.
        file: a csv or tsv without a header, one class per line: official name, display name.
        format_label: display name of a label that the file lacks.
    """
    labelled = [row for row in rows if row.get("label")]
    names: dict[str, str] = {}
    if file:
        lines = read_table(file, "class names").without_header(("official", "name"))
        if (incomplete := lines.index[(lines == "").any(axis=1)]).size:
            raise ManifestError(f"{incomplete[0]}: needs an official name and a display name")
        names = {official: line["name"] for official, line in index_by_key(lines, lines["official"]).items()}
    labels = {row["label"] for row in labelled}
    if file and not labels & set(names):
        raise ManifestError(
            f"class names {file}: its {len(names)} classes ({summarize_names(sorted(names))}) "
            f"match no label of the corpus ({summarize_names(sorted(labels))}). "
            "The first column is the official name, the second the display name."
        )
    for row in labelled:
        row["label"] = names.get(row["label"]) or format_label(row["label"])
