"""The way of a corpus from its own list to the manifest: its videos are found, and titles."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.tables import (
    csv_text,
    index_by_key,
    read_table,
    summarize_names,
    titles_by_id,
)
from crosspair.corpora.video_files import VideoFiles, video_stem
from crosspair.errors import ManifestError
from crosspair.files import write_atomically

logger = logging.getLogger(__name__)


class CorpusOptions(TypedDict, total=False):
    """What every corpus leaves to its user.

    Attributes:
        title_columns: of the title file, where they have other names.
        class_names: a file of names for people, as `labels.name_classes` takes it.
        val_share: share of the train split, 0 to 1, to hold out as split ``val``.
        seed: of that choice.
        progress: told how many pairs' files are probed, and how many pairs there are.
    """

    title_columns: Mapping[str, str] | None
    class_names: Path | None
    val_share: float
    seed: int
    progress: Callable[[int, int], None]


class TitledCorpusOptions(CorpusOptions, total=False):
    """Of a corpus whose own files hold no titles: ``titles`` is a title file besides."""

    titles: Path | None


@dataclass
class PairRecord:
    """One pair as a corpus' files describe it, before its video is found.

    Attributes:
        pair_id: unique in the corpus.
        where: it stands, for messages.
        files: names that its video may have, the best first, each with what the manifest's row
            says of a video of that name.
        row: what the manifest's row says in any case.
    """

    pair_id: str
    where: str
    files: Mapping[str, Mapping[str, Any]]
    row: dict[str, Any] = field(default_factory=dict)


def official_corpus(
    folder: Path,
    lists: Sequence[tuple[ManifestOutput, Sequence[PairRecord]]],
    choices: TitledCorpusOptions,
    *,
    what: str,
    needs_title: bool = False,
    phrase: Callable[[str], str] = str,
    group: Callable[[dict[str, Any]], str] = lambda row: str(row["pair_id"]),
    when_probed: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[Manifest]:
    """Find the videos, join titles, hold out, probe, write.

    A video that cannot be read stays in the manifest with its ``error``.

    Args:
        folder: of videos, with subfolders of any kind.
        lists: the pairs of each manifest; a video of several is probed once.
        choices: of the user.
        what: the pairs are called, for messages.
        needs_title: leave out pairs without a title.
        phrase: an official label in plain words.
        group: of a row, for `splits.hold_out`.
        when_probed: what is to do with a row when its file is known.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    titles = choices.get("titles")
    if titles is not None:
        _give_titles([pair for _, listed in lists for pair in listed], titles, choices)
    videos = VideoFiles(folder)
    corpora = []
    for output, listed in lists:
        left_out = list[SkippedPair]()
        rows = match_videos(listed, videos, left_out, what=what, needs_title=needs_title)
        split_validation(rows, choices.get("val_share", 0.0), choices.get("seed", 0), group)
        for row in rows if titles is not None else ():
            if not row.get("title") and not row.get("title_clean"):
                detail = "in the manifest, with an empty title"
                left_out.append(SkippedPair(row["pair_id"], NO_TITLE, detail))
        corpora.append((output, rows, left_out))
    every_row = [row for _, rows, _ in corpora for row in rows]
    _tell_unlisted(videos, every_row)
    rename_classes(every_row, choices.get("class_names"), phrase)
    probe_rows(every_row, choices.get("progress", lambda *_: None))
    for row in every_row:
        when_probed(row)
    return [output.write(rows, left_out) for output, rows, left_out in corpora]


def match_videos(
    listed: Sequence[PairRecord],
    videos: VideoFiles,
    left_out: list[SkippedPair],
    *,
    what: str,
    needs_title: bool,
) -> list[dict[str, Any]]:
    """The manifest's rows of the pairs whose videos are there.

    Args:
        listed: pairs, whose videos are sought in ``videos``.
        left_out: gets the pairs without a video, and without a title.
        what: the pairs are called, for messages.
        needs_title: leave out pairs without one.

    Returns:
        Rows in the order of ``listed``, with ``path`` from where the command runs.

    Raises:
        ManifestError: a name is that of several videos, or no pair is left.
    """
    rows = []
    for pair in listed:
        found = _found(pair, videos)
        if found is None:
            detail = f"no video {' or '.join(pair.files)}"
            left_out.append(SkippedPair(pair.pair_id, NO_FILE, detail))
        elif needs_title and not (pair.row.get("title") or pair.row.get("title_clean")):
            left_out.append(SkippedPair(pair.pair_id, NO_TITLE, found["path"]))
        else:
            rows.append({"pair_id": pair.pair_id, **found, **pair.row})
    if not rows:
        raise ManifestError(_no_pair(listed, videos, left_out, what))
    return rows


def _give_titles(pairs: Sequence[PairRecord], file: Path, choices: CorpusOptions) -> None:
    titles = titles_by_id(file, choices.get("title_columns"))
    titled = [pair for pair in pairs if video_stem(pair.pair_id) in titles]
    if not titled:
        raise ManifestError(
            f"title file {file}: none of its {len(titles)} ids ({summarize_names(list(titles))}) "
            f"is one of the corpus' ({summarize_names([pair.pair_id for pair in pairs])})"
        )
    for pair in titled:
        row = titles[video_stem(pair.pair_id)]
        pair.row["title"] = row["title"] or None
        pair.row["title_clean"] = row.values.get("title_clean")


def _tell_unlisted(videos: VideoFiles, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log how many videos of the folder belong to no row."""
    used = {row["path"] for row in rows}
    others = [path for path in videos.paths if videos.whole(path) not in used]
    if others:
        logger.info(
            "%d videos of %s are not of the corpus: %s",
            len(others),
            videos.folder,
            summarize_names(others),
        )


def _found(pair: PairRecord, videos: VideoFiles) -> dict[str, Any] | None:
    for name, says in pair.files.items():
        path = videos.named(name, pair.where)
        if path is not None:
            return {"path": videos.whole(path), **says}
    return None


def _no_pair(
    listed: Sequence[PairRecord], videos: VideoFiles, left_out: Sequence[SkippedPair], what: str
) -> str:
    untitled = sum(pair.reason == NO_TITLE for pair in left_out)
    if untitled:
        return f"no pair: none of the {untitled} {what} with a video has a title"
    names = [name for pair in listed for name in pair.files]
    looked = f"; looked for {summarize_names(names)}" if names else ""
    return (
        f"no pair: none of the {len(listed)} {what} belongs to one of the {len(videos)} videos "
        f"in {videos.folder}{looked}"
    )


NO_FILE, NO_TITLE, BROKEN = "no file", "no title", "broken file"


class SkippedPair(NamedTuple):
    """A pair that a corpus' lists promise and a training cannot use; ``detail`` is for people."""

    video_id: str
    reason: str
    detail: str


class ManifestOutput:
    """Where a manifest goes. Looked at before the work, so that its end does not fail.

    Args:
        out: a file with the suffix ``.parquet``, or a folder.
        name: of the file in the folder.

    Raises:
        ManifestError: it cannot be written, or would replace something that is no manifest.
    """

    def __init__(self, out: Path, name: str = "manifest.parquet") -> None:
        self.path = out if out.suffix == ".parquet" else out / name
        self.left_out = skipped_list_path(self.path)
        _check_folder(self.path)
        if self.path.exists() and not _is_manifest(self.path):
            raise ManifestError(
                f"output {self.path} exists and is no manifest; it is not replaced, name another"
            )
        if self.left_out.exists() and not _is_list(self.left_out):
            raise ManifestError(
                f"{self.left_out}, the list of what is left out, exists and is no such list; "
                "it is not replaced, move it away or name another output"
            )

    def write(self, rows: list[dict[str, Any]], left_out: list[SkippedPair]) -> Manifest:
        """Write the manifest, and the list where there is something to list.

        Args:
            rows: probed; their paths are those from where the command runs.
            left_out: so far; the rows with an error are added here.
        """
        relative = _relative_to(self.path.parent)
        manifest = manifest_from_rows(
            [{**row, "path": relative(row["path"])} for row in rows], self.path
        )
        for row in rows:
            if row.get("error"):
                left_out.append(SkippedPair(row["pair_id"], BROKEN, row["error"]))
        if left_out:
            _tell(self.path.name, left_out)
            write_atomically(self.left_out, csv_text(SkippedPair._fields, left_out))
        else:
            self.left_out.unlink(missing_ok=True)
        return manifest.write(self.path)


def skipped_list_path(manifest: Path) -> Path:
    """Where the list of what is left out of a manifest lies, if there is something to list.

    >>> left_out_file(Path("pairs.parquet")).name
    'pairs.left-out.csv'
    """
    return manifest.with_name(f"{manifest.stem}.left-out.csv")


def probe_rows(rows: Sequence[dict[str, Any]], progress: Callable[[int, int], None]) -> None:
    """Fill the columns of rows that probing finds; ``progress`` is told rows done, and all."""
    paths = [row["path"] for row in rows]
    found = probe_videos(paths, progress=lambda done: progress(done, len(rows)))
    for row, columns in zip(rows, found, strict=True):
        row.update(columns)


def _tell(of: str, left_out: Sequence[SkippedPair]) -> None:
    """Log one line a reason, with the first few names."""
    for reason in dict.fromkeys(pair.reason for pair in left_out):
        ids = [pair.video_id for pair in left_out if pair.reason == reason]
        count = "1 pair" if len(ids) == 1 else f"{len(ids)} pairs"
        logger.warning("%s: %s: %s (%s)", of, reason, count, summarize_names(ids))


def _relative_to(folder: Path) -> Callable[[str], str]:
    start = folder.resolve()

    # Resolved first: a step up from a linked folder leads elsewhere. Once a folder, not a file:
    # resolving asks the disk.
    @cache
    def of_folder(parent: str) -> str:
        return os.path.relpath(Path(parent).resolve(), start)

    def relative(path: str) -> str:
        parent, name = os.path.split(path)
        return os.path.normpath(os.path.join(of_folder(parent), name))  # noqa: PTH118

    return relative


def _check_folder(path: Path) -> None:
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ManifestError(
            f"output {folder} is a file, not a folder; "
            "a manifest is a folder, or a file with the suffix .parquet"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ManifestError(f"output {path} cannot be written: no right to write in {folder}")


def _is_manifest(path: Path) -> bool:
    try:
        return {"pair_id", "path"} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


def _is_list(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline().strip() == ",".join(SkippedPair._fields).encode()
    except OSError:
        return False


_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def parse_split(name: str, where: str) -> str | None:
    """The manifest's word for a split; None where ``name`` is empty.

    >>> split_named("validate", "val.csv, line 2")
    'val'

    Raises:
        ManifestError: no split is called so.
    """
    if not name:
        return None
    try:
        return _NAMES[name.lower()]
    except KeyError as error:
        raise ManifestError(
            f"{where}: split {name!r} is unknown; the names are {', '.join(_NAMES)}"
        ) from error


def split_validation(
    rows: list[dict[str, Any]],
    share: float,
    seed: int,
    group: Callable[[dict[str, Any]], str] = lambda row: str(row["pair_id"]),
) -> None:
    """Move a random part of train, whole groups of it, to split ``val``.

    Args:
        rows: of a manifest; those without a split belong to train.
        share: of the rows of train, 0 to 1; reached as nearly as the groups allow, and only by
            one group alone surpassed.
        seed: of the choice.
        group: of a row. What would be recognised, as two clips of one scene, is of one group.

    Raises:
        ManifestError: the share is none.
    """
    if not 0 <= share < 1:
        raise ManifestError(f"the share to hold out for validation is {share}; it must be 0 to 1")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get("split") in (None, "train"):
            groups[group(row)].append(row)
    wanted, held = round(share * sum(map(len, groups.values()))), 0
    members = list(groups.values())
    for index in np.random.default_rng(seed).permutation(len(members)):
        if held < wanted and (not held or held + len(members[index]) <= wanted):
            held += len(members[index])
            for row in members[index]:
                row["split"] = "val"


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def class_phrase(label: str) -> str:
    """A label in plain words, as zero-shot classification needs it.

    A label that is made of words already keeps them as they are.

    >>> class_phrase("ApplyEyeMakeup"), class_phrase("brush_hair"), class_phrase("making a BLT")
    ('apply eye makeup', 'brush hair', 'making a BLT')
    """
    words = label.split()
    if len(words) > 1:
        return " ".join(words)
    return " ".join(_CAMEL.sub(" ", label).replace("_", " ").lower().split())


def rename_classes(
    rows: Iterable[dict[str, Any]], names: Path | None, otherwise: Callable[[str], str]
) -> None:
    """Replace the official labels of a manifest's rows by names for people.

    Args:
        rows: of a manifest; those without a label stay so.
        names: a csv or tsv without a header, a class a line: official name, name for people.
        otherwise: from a label that the file lacks to its name.

    Raises:
        ManifestError: the file does not do, or names none of the labels.
    """
    labelled = [row for row in rows if row.get("label")]
    given = _read_names(names) if names else {}
    labels = {row["label"] for row in labelled}
    if names and not labels & set(given):
        raise ManifestError(
            f"class names {names}: none of its {len(given)} classes ({summarize_names(sorted(given))}) is one "
            f"of the corpus' {len(labels)} ({summarize_names(sorted(labels))}); "
            "the official name comes first, then the name for people"
        )
    for row in labelled:
        row["label"] = given.get(row["label"]) or otherwise(row["label"])


def _read_names(path: Path) -> dict[str, str]:
    rows = read_table(path, "class names").without_header(("official", "name"))
    for row in rows:
        if not row["official"] or not row["name"]:
            raise ManifestError(f"{row.where}: an official name and a name for people are needed")
    return {
        name: row["name"] for name, row in index_by_key((r["official"], r) for r in rows).items()
    }
