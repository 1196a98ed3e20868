"""The way of a corpus from its own list to the manifest: its videos are found, and titles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from crosspair.corpora.labels import name_classes
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.output import NO_FILE, NO_TITLE, LeftOut, Output, probe_rows
from crosspair.corpora.splits import hold_out
from crosspair.corpora.table import some
from crosspair.corpora.titlefile import titles_by_id
from crosspair.corpora.videofiles import VideoFiles, plain_name
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)


class Choices(TypedDict, total=False):
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


class TitleChoices(Choices, total=False):
    """Of a corpus whose own files hold no titles: ``titles`` is a title file besides."""

    titles: Path | None


@dataclass
class Listed:
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
    lists: Sequence[tuple[Output, Sequence[Listed]]],
    choices: TitleChoices,
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
        left_out = list[LeftOut]()
        rows = join(listed, videos, left_out, what=what, needs_title=needs_title)
        hold_out(rows, choices.get("val_share", 0.0), choices.get("seed", 0), group)
        for row in rows if titles is not None else ():
            if not row.get("title") and not row.get("title_clean"):
                detail = "in the manifest, with an empty title"
                left_out.append(LeftOut(row["pair_id"], NO_TITLE, detail))
        corpora.append((output, rows, left_out))
    every_row = [row for _, rows, _ in corpora for row in rows]
    _tell_unlisted(videos, every_row)
    name_classes(every_row, choices.get("class_names"), phrase)
    probe_rows(every_row, choices.get("progress", lambda *_: None))
    for row in every_row:
        when_probed(row)
    return [output.write(rows, left_out) for output, rows, left_out in corpora]


def join(
    listed: Sequence[Listed],
    videos: VideoFiles,
    left_out: list[LeftOut],
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
            left_out.append(LeftOut(pair.pair_id, NO_FILE, detail))
        elif needs_title and not (pair.row.get("title") or pair.row.get("title_clean")):
            left_out.append(LeftOut(pair.pair_id, NO_TITLE, found["path"]))
        else:
            rows.append({"pair_id": pair.pair_id, **found, **pair.row})
    if not rows:
        raise ManifestError(_no_pair(listed, videos, left_out, what))
    return rows


def _give_titles(pairs: Sequence[Listed], file: Path, choices: Choices) -> None:
    titles = titles_by_id(file, choices.get("title_columns"))
    titled = [pair for pair in pairs if plain_name(pair.pair_id) in titles]
    if not titled:
        raise ManifestError(
            f"title file {file}: none of its {len(titles)} ids ({some(list(titles))}) "
            f"is one of the corpus' ({some([pair.pair_id for pair in pairs])})"
        )
    for pair in titled:
        row = titles[plain_name(pair.pair_id)]
        pair.row["title"] = row["title"] or None
        pair.row["title_clean"] = row.values.get("title_clean")


def _tell_unlisted(videos: VideoFiles, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log how many videos of the folder belong to no row."""
    used = {row["path"] for row in rows}
    others = [path for path in videos.paths if videos.whole(path) not in used]
    if others:
        logger.info(
            "%d videos of %s are not of the corpus: %s", len(others), videos.folder, some(others)
        )


def _found(pair: Listed, videos: VideoFiles) -> dict[str, Any] | None:
    for name, says in pair.files.items():
        path = videos.named(name, pair.where)
        if path is not None:
            return {"path": videos.whole(path), **says}
    return None


def _no_pair(
    listed: Sequence[Listed], videos: VideoFiles, left_out: Sequence[LeftOut], what: str
) -> str:
    untitled = sum(pair.reason == NO_TITLE for pair in left_out)
    if untitled:
        return f"no pair: none of the {untitled} {what} with a video has a title"
    names = [name for pair in listed for name in pair.files]
    looked = f"; looked for {some(names)}" if names else ""
    return (
        f"no pair: none of the {len(listed)} {what} belongs to one of the {len(videos)} videos "
        f"in {videos.folder}{looked}"
    )
