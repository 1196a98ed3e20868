"""Corpora with an official list: the way that they all go, from the list to the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from crosspair.corpora.join import Listed, join, tell_unlisted
from crosspair.corpora.labels import name_classes
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.output import NO_TITLE, LeftOut, Output, probe_rows
from crosspair.corpora.splits import hold_out
from crosspair.corpora.table import some
from crosspair.corpora.titlefile import titles_by_id
from crosspair.corpora.videofiles import VideoFiles, plain_name
from crosspair.errors import ManifestError


class Choices(TypedDict, total=False):
    """What every corpus leaves to its user.

    Attributes:
        title_columns: of the title file, where they have other names.
        class_names: a file of names for people, as `labels.name_classes` takes it.
        val_share: share of the train split, 0 to 1, to hold out as split ``val``.
        seed: of that choice.
        progress: told how many files are probed, and how many there are.
    """

    title_columns: Mapping[str, str] | None
    class_names: Path | None
    val_share: float
    seed: int
    progress: Callable[[int, int], None]


class TitleChoices(Choices, total=False):
    """Of a corpus whose own files hold no titles: ``titles`` is a title file besides."""

    titles: Path | None


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
        left_out = LeftOut()
        rows = join(listed, videos, left_out, what=what, needs_title=needs_title)
        hold_out(rows, choices.get("val_share", 0.0), choices.get("seed", 0), group)
        for row in rows if titles is not None else ():
            if not row.get("title") and not row.get("title_clean"):
                left_out.add(row["pair_id"], NO_TITLE, "in the manifest, with an empty title")
        corpora.append((output, rows, left_out))
    every_row = [row for _, rows, _ in corpora for row in rows]
    tell_unlisted(videos, every_row)
    name_classes(every_row, choices.get("class_names"), phrase)
    probe_rows(every_row, choices.get("progress", lambda *_: None))
    for row in every_row:
        when_probed(row)
    return [output.write(rows, left_out) for output, rows, left_out in corpora]


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
