"""The title file: which title belongs to which video."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from crosspair.corpora.table import Row, Table, by_key, read_table
from crosspair.corpora.videofiles import plain_name
from crosspair.errors import ManifestError

COLUMNS = ("video_id", "path", "title", "title_clean", "label", "split", "start", "end")

# The lines of the paper's authors have no header: id, processed title, title as it was on the web.
_OF_AUTHORS = ("video_id", "title_clean", "title")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")


def read_titles(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read a title file in one of two forms.

    Args:
        path: a csv or tsv with a header that has ``title``, and ``video_id`` or ``path``, and any
            other of `COLUMNS`; or the file of the paper's authors, without a header: YouTube id,
            processed title and original title, separated by tabs. There the original becomes
            ``title`` and the processed one ``title_clean``; an original that is missing is
            replaced by the processed one.
        columns: of `COLUMNS`, to the name that the header has for it.

    Raises:
        ManifestError: it is missing, not UTF-8, or lacks a column, or a title belongs to no video.
    """
    table = read_table(path, "title file")
    if not columns and _is_of_authors(table):
        rows = [_with_title(row) for row in table.without_header(_OF_AUTHORS)]
    else:
        rows = table.below_header(_places(table, columns or {}))
    for row in rows:
        if not (row["video_id"] or row["path"]):
            raise ManifestError(f"{row.where}: the title belongs to no video_id and no path")
    return rows


def titles_by_id(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, Row]:
    """The rows of a title file by the plain names of their videos.

    Raises:
        ManifestError: as `read_titles`; or an id stands twice.
    """
    rows = read_titles(path, columns)
    return by_key((plain_name(row["video_id"] or row["path"]), row) for row in rows)


def _is_of_authors(table: Table) -> bool:
    first = table.header
    return (
        table.separators == "tabs"
        and len(first) == len(_OF_AUTHORS)
        and "title" not in first
        and first[0] not in COLUMNS
        and _YOUTUBE_ID.fullmatch(first[0]) is not None
    )


def _with_title(row: Row) -> Row:
    if row["title"]:
        return row
    return Row(row.where, {**row.values, "title": row["title_clean"]})


def _places(table: Table, columns: Mapping[str, str]) -> dict[str, int]:
    """Where the columns stand, some of which may have other names."""
    places = {name: place for place, name in enumerate(table.header) if name in COLUMNS}
    for column, name in columns.items():
        if column not in COLUMNS:
            raise ManifestError(
                f"{column!r} is no column of titles; the columns are {', '.join(COLUMNS)}"
            )
        if name not in table.header:
            raise ManifestError(
                f"{table.file} has no column {name!r} to take as {column!r}; {table.columns}"
            )
        places[column] = table.header.index(name)
    if "title" not in places or not {"video_id", "path"} & set(places):
        raise ManifestError(
            f"{table.file} needs the columns 'title' and 'video_id' or 'path'; {table.columns}"
        )
    return places
