"""Read text tables and lists (csv, tsv, JSON, title files) with the file and line of each row."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

COLUMNS = ("video_id", "path", "title", "title_clean", "label", "split", "start", "end")
"""The columns of a title file."""

# The file of the paper's authors has no header: id, processed title, original title.
_AUTHORS_COLUMNS = ("video_id", "title_clean", "title")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")
_SENTINEL = "\x1f"  # appended as the last line; an unclosed quotation mark swallows it
_MAX_NAMES = 5  # names that a message lists before it only counts


@dataclass(frozen=True)
class TextTable:
    """The cells of a csv or tsv file, before columns are assigned."""

    file: str  # kind and path, for messages
    separators: str  # ``commas`` or ``tabs``
    cells: pd.DataFrame  # text of lines that are not empty, None after a shorter line; the index is file and line

    @property
    def header(self) -> list[str]:
        """The fields of the first line."""
        return [name.strip() for name in self.cells.iloc[0].dropna()] if len(self.cells) else []

    def describe_columns(self) -> str:
        """List the columns of the header, for messages."""
        found = ", ".join(map(repr, self.header)) or "none"
        return f"its columns, separated by {self.separators}, are {found}"

    def rows(self, *names: str) -> pd.DataFrame:
        """Return the given columns of all lines below the header; ManifestError if one is missing."""
        if not set(names) <= set(self.header):
            needed = ", ".join(map(repr, names))
            raise ManifestError(f"{self.file} needs the columns {needed}; {self.describe_columns()}")
        return self.below_header({name: self.header.index(name) for name in names})

    def below_header(self, positions: Mapping[str, int]) -> pd.DataFrame:
        """Return all lines below the header, with columns given by their positions."""
        return self._select(self.cells[1:], positions, len(self.header))

    def without_header(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return all lines of a table without a header, with columns named in order."""
        return self._select(self.cells, {name: place for place, name in enumerate(columns)}, len(columns))

    def _select(self, cells: pd.DataFrame, positions: Mapping[str, int], width: int) -> pd.DataFrame:
        """Name and strip columns, all but ``title_clean``; ManifestError for a line with too many fields."""
        too_long = cells.index[cells.iloc[:, width:].fillna("").ne("").any(axis=1)]
        if len(too_long):
            quoted = " outside quotation marks" if self.separators == "commas" else ""
            raise ManifestError(
                f"{too_long[0]}: {cells.loc[too_long[0]].count()} fields for {width} columns. "
                f"Check whether a field holds {self.separators}{quoted}."
            )
        columns = {name: cells.get(place) for name, place in positions.items()}
        rows = pd.DataFrame(columns, cells.index, dtype=object)
        text = rows.columns.drop("title_clean", errors="ignore")
        rows[text] = rows[text].fillna("").map(str.strip)
        return rows


def read_table(path: Path, what: str) -> TextTable:
    """Read a csv (``.csv``) or tsv (``.tsv``, ``.tab``); with other suffixes, a tab in line 1 means tsv.

    ``what`` is the kind of the file, for messages. A `ManifestError` says in which line it is invalid.
    """
    text = read_text(path, what)
    suffix = path.suffix.lower()
    tabs = suffix in {".tsv", ".tab"} or (suffix != ".csv" and "\t" in text.partition("\n")[0])
    # In a tsv a quotation mark is part of a title; in a csv it encloses a field.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(f"{text}\n{_SENTINEL}", newline=""), **dialect)
    lines: dict[int, list[str]] = {}
    try:
        lines.update((reader.line_num, fields) for fields in reader if any(fields))
        _, last = lines.popitem()
        problem = "" if last == [_SENTINEL] else "a quotation mark is not closed"
    except csv.Error as error:
        problem = f"line {reader.line_num}: {error}"
    if problem:
        # The cause may be many lines above, as a quoted field can span lines.
        start = f"after line {max(lines)}" if lines else "from line 1 on"
        raise ManifestError(f"{what} {path} cannot be read: {problem}. Check the file {start}.")
    index = [f"{what} {path}, line {number}" for number in lines]
    width = max(map(len, lines.values()), default=0)
    cells = pd.DataFrame([[*fields, *[None] * (width - len(fields))] for fields in lines.values()], index, dtype=object)
    return TextTable(f"{what} {path}", "tabs" if tabs else "commas", cells)


def read_lines(path: Path, what: str) -> dict[str, str]:
    """Read the stripped non-empty lines of a text file; the keys are file and line, for messages."""
    lines = enumerate(read_text(path, what).splitlines(), start=1)
    return {f"{what} {path}, line {number}": line.strip() for number, line in lines if line.strip()}


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark; ManifestError if that fails."""
    data = b""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{what} {path} is not UTF-8 (line {line}, byte {error.start}). "
            "Convert it, for example with iconv -f latin1 -t utf-8."
        ) from error
    except OSError as error:
        raise ManifestError(f"{what} {path} cannot be read: {error.strerror}") from error


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ManifestError if it is none or has duplicate keys, of which parsers keep only one."""

    def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ManifestError(f"{what} {path}: key {name!r} is duplicated; remove one entry")
        return values

    try:
        content = json.loads(read_text(path, what), object_pairs_hook=check_unique)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{what} {path} is not valid JSON: {error.msg} (line {error.lineno})") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{what} {path} must be a JSON object, not a {type(content).__name__}")
    return content


def index_by_key(rows: pd.DataFrame, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the rows by key, each with its file and line as ``where``; ManifestError if a key is duplicated."""
    of_row = pd.Series(list(keys), rows.index, dtype=object)
    again = of_row[of_row.duplicated()]
    if len(again):
        key, first = again.iloc[0], of_row.index[of_row == again.iloc[0]][0]
        raise ManifestError(f"{again.index[0]}: {key!r} is duplicated, first in {first}; remove one of them")
    names = ("where", *rows.columns)
    lines = (dict(zip(names, line, strict=True)) for line in rows.astype(object).itertuples(name=None))
    return dict(zip(of_row, lines, strict=True))


def read_titles(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a title file in one of two forms.

    1. A csv or tsv with a header that has ``title``, ``video_id`` or ``path``, and optionally the
       other `COLUMNS`.
    2. The file of the paper's authors, a tsv without a header: YouTube id, processed title,
       original title. The original becomes ``title`` (the processed title if the original is
       missing) and the processed one ``title_clean``.

    Args:
        path: the file.
        columns: the file's names for some of `COLUMNS`, for example ``{"video_id": "id"}``.

    Returns:
        Text in all `COLUMNS`, empty if missing, but None for ``title_clean``.

    Raises:
        ManifestError: the file cannot be read, lacks a column, or has a title without a video.
    """
    table = read_table(path, "title file")
    if not columns and _is_authors_file(table):
        rows = table.without_header(_AUTHORS_COLUMNS)
        rows["title"] = rows["title"].where(rows["title"] != "", rows["title_clean"].fillna("").str.strip())
    else:
        rows = table.below_header(_column_positions(table, columns or {}))
    missing = [name for name in COLUMNS if name not in rows]
    rows = rows.assign(**{name: None if name == "title_clean" else "" for name in missing})
    nameless = rows.index[(rows["video_id"] == "") & (rows["path"] == "")]
    if len(nameless):
        raise ManifestError(f"{nameless[0]}: both video_id and path are empty")
    return rows


def titles_by_id(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Read the rows of a title file by the stems of the videos' names; ManifestError if an id is duplicated."""
    rows = read_titles(path, columns)
    return index_by_key(rows, rows["video_id"].where(rows["video_id"] != "", rows["path"]).map(video_stem))


def parse_interval(row: Mapping[str, str], start: str, end: str) -> tuple[float | None, float | None]:
    """Read an interval in s from two columns of a row of `index_by_key`, None for an empty field, and validate it."""

    def seconds(column: str) -> float | None:
        try:
            return float(row[column]) if row[column] else None
        except ValueError as error:
            raise ManifestError(
                f"{row['where']}: {column} is {row[column]!r}; it must be a number of seconds"
            ) from error

    begin, stop = seconds(start), seconds(end)
    # Negated, so that NaN is rejected too.
    if not 0 <= (begin or 0) < (math.inf if stop is None else stop):
        raise ManifestError(
            f"{row['where']}: {start} {row[start]!r}, {end} {row[end]!r}; "
            f"{start} must be 0 s or more and less than {end}"
        )
    return begin, stop


def _is_authors_file(table: TextTable) -> bool:
    """Return whether a table is a tsv of three columns whose first line starts with a YouTube id."""
    first = table.header
    return (
        table.separators == "tabs"
        and len(first) == len(_AUTHORS_COLUMNS)
        and "title" not in first
        and first[0] not in COLUMNS
        and _YOUTUBE_ID.fullmatch(first[0]) is not None
    )


def _column_positions(table: TextTable, renamed: Mapping[str, str]) -> dict[str, int]:
    """Return the position of each column of a title file, after renaming."""
    positions = {name: position for position, name in enumerate(table.header) if name in COLUMNS}
    for column, name in renamed.items():
        if column not in COLUMNS:
            raise ManifestError(f"title column {column!r} is unknown; it must be one of {', '.join(COLUMNS)}")
        if name not in table.header:
            raise ManifestError(f"{table.file} has no column {name!r} to use as {column!r}; {table.describe_columns()}")
        positions[column] = table.header.index(name)
    if "title" not in positions or not {"video_id", "path"} & set(positions):
        raise ManifestError(
            f"{table.file} needs the columns 'title' and 'video_id' or 'path'; {table.describe_columns()}"
        )
    return positions


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format rows as csv with a header."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def summarize_names(names: Sequence[str]) -> str:
    """Format the first few names and the number of further ones.

    >>> summarize_names(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    text = ", ".join(names[:_MAX_NAMES]) + more
    return text.encode(errors="backslashreplace").decode()  # file names may be invalid UTF-8
