"""Corpora with an official list: the way that they all go, from the list to the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from crosspair.corpora.join import Listed, join, tell_unlisted
from crosspair.corpora.labels import name_classes
from crosspair.corpora.leftout import NO_TITLE, LeftOut
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.output import Output, probe_rows
from crosspair.corpora.splits import hold_out
from crosspair.corpora.table import Row, some
from crosspair.corpora.titlefile import titles_by_id
from crosspair.corpora.videofiles import VideoFiles, plain_name
from crosspair.errors import ManifestError


class Choices(TypedDict, total=False):
    """What every corpus leaves to its user.

    Attributes:
        class_names: a file of names for people, as `labels.name_classes` takes it.
        val_share: share of the train split, 0 to 1, to hold out as split ``val``.
        seed: of that choice.
        progress: told how many files are probed, and how many there are.
    """

    class_names: Path | None
    val_share: float
    seed: int
    progress: Callable[[int, int], None]


class TitleChoices(Choices, total=False):
    """What a corpus whose own files hold no titles leaves to its user besides.

    Attributes:
        titles: a title file, as `titlefile.read_titles` takes it.
        title_columns: its columns, where they have other names.
    """

    titles: Path | None
    title_columns: Mapping[str, str] | None


def official_corpus(
    folder: Path,
    lists: Sequence[tuple[Output, Sequence[Listed]]],
    *,
    what: str,
    needs_title: bool = False,
    phrase: Callable[[str], str] = str,
    group: Callable[[dict[str, Any]], str] = lambda row: str(row["pair_id"]),
    when_probed: Callable[[dict[str, Any]], None] = lambda _: None,
    titles: Path | None = None,
    title_columns: Mapping[str, str] | None = None,
    class_names: Path | None = None,
    val_share: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> list[Manifest]:
    """Find the videos, join titles, hold out, probe, write.

    A video that cannot be read stays in the manifest with its ``error``.

    Args:
        folder: of videos, with subfolders of any kind.
        lists: the pairs of each manifest; a video of several is probed once.
        what: the pairs are called, for messages.
        needs_title: leave out pairs without a title.
        phrase: an official label in plain words.
        group: of a row, for `splits.hold_out`.
        when_probed: what is to do with a row when its file is known.
        titles, title_columns, class_names, val_share, seed, progress: see `TitleChoices`.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    if titles is not None:
        every_pair = chain.from_iterable(listed for _, listed in lists)
        _give_titles(every_pair, titles_by_id(titles, title_columns), titles)
    videos = VideoFiles(folder)
    corpora = []
    for output, listed in lists:
        left_out = LeftOut()
        rows = join(listed, videos, left_out, what=what, needs_title=needs_title)
        hold_out(rows, val_share, seed, group)
        if titles is not None:
            _list_untitled(rows, left_out)
        corpora.append((output, rows, left_out))
    every_row = [row for _, rows, _ in corpora for row in rows]
    tell_unlisted(videos, every_row)
    name_classes(every_row, class_names, phrase)
    probe_rows(every_row, progress)
    for row in every_row:
        when_probed(row)
    return [output.write(rows, left_out) for output, rows, left_out in corpora]


def _give_titles(pairs: Iterable[Listed], titles: Mapping[str, Row], file: Path) -> None:
    ids = []
    given = 0
    for pair in pairs:
        ids.append(pair.pair_id)
        row = titles.get(plain_name(pair.pair_id))
        if row is not None:
            given += 1
            pair.row["title"] = row["title"] or None
            pair.row["title_clean"] = row.values.get("title_clean")
    if not given:
        raise ManifestError(
            f"title file {file}: none of its {len(titles)} ids ({some(list(titles))}) "
            f"is one of the corpus' ({some(ids)})"
        )


def _list_untitled(rows: Iterable[Mapping[str, Any]], left_out: LeftOut) -> None:
    for row in rows:
        if not row.get("title") and not row.get("title_clean"):
            left_out.add(row["pair_id"], NO_TITLE, "in the manifest, with an empty title")
