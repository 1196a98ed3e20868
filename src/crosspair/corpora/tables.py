"""Tables and lists as text files: csv, tsv, one thing a line; each row knows where it stands."""

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

from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

_END = "\x1f"  # a line of its own behind a table, unless an open field swallows it
NAMED = 5  # how many of a kind a message names before it only counts


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of a table, by the names of its columns.

    Attributes:
        where: it stands, for the beginning of a message.
        values: as they stand there.
    """

    where: str
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        """A value without the spaces around it; empty where there is none."""
        return self.values.get(column, "").strip()

    def part(self, start: str, end: str) -> tuple[float | None, float | None]:
        """Where a part of a video begins and ends, in s, by two columns; None where nothing stands.

        Raises:
            ManifestError: one is not a number, or nothing lies between them.
        """
        begins, ends = self._seconds(start), self._seconds(end)
        # Written so that what is not a number does not pass.
        if not 0 <= (begins or 0) < (math.inf if ends is None else ends):
            raise ManifestError(
                f"{self.where}: {start} {self[start]!r}, {end} {self[end]!r}; "
                "a part begins at 0 s or later and ends after it begins"
            )
        return begins, ends

    def _seconds(self, column: str) -> float | None:
        text = self[column]
        try:
            return float(text) if text else None
        except ValueError as error:
            raise ManifestError(
                f"{self.where}: {column} is {text!r}, not a number of seconds"
            ) from error


@dataclass(frozen=True)
class TextTable:
    """The lines of a csv or tsv, before it is said which column is which.

    Attributes:
        file: what the table is and where, for messages.
        separators: of its fields, ``commas`` or ``tabs``.
        lines: number, from 1, and fields of each line that is not empty.
    """

    file: str
    separators: str
    lines: list[tuple[int, list[str]]]

    @property
    def header(self) -> list[str]:
        """The first line, as names of columns."""
        return [name.strip() for name in self.lines[0][1]] if self.lines else []

    @property
    def columns(self) -> str:
        """What the header says, for messages."""
        found = ", ".join(map(repr, self.header)) or "none"
        return f"separated by {self.separators}, it has {found}"

    def rows(self, *names: str) -> list[TableLine]:
        """All lines but the first, in which these columns must be named.

        Raises:
            ManifestError: one is not.
        """
        if not set(names) <= set(self.header):
            needed = ", ".join(map(repr, names))
            raise ManifestError(f"{self.file} needs the columns {needed}; {self.columns}")
        return self.below_header({name: self.header.index(name) for name in names})

    def below_header(self, columns: Mapping[str, int]) -> list[TableLine]:
        """All lines but the first, by the places of their columns."""
        return self._rows(columns, len(self.header), self.lines[1:])

    def without_header(self, columns: Sequence[str]) -> list[TableLine]:
        """All lines, by the names of their columns in order."""
        places = {name: place for place, name in enumerate(columns)}
        return self._rows(places, len(columns), self.lines)

    def _rows(
        self, columns: Mapping[str, int], width: int, lines: Iterable[tuple[int, list[str]]]
    ) -> list[TableLine]:
        rows = []
        for line, fields in lines:
            if any(fields[width:]):
                quoted = " outside quotation marks" if self.separators == "commas" else ""
                raise ManifestError(
                    f"{self.file}, line {line}: {len(fields)} fields under {width} columns; "
                    f"does a field hold {self.separators}{quoted}?"
                )
            values = {name: fields[at] for name, at in columns.items() if at < len(fields)}
            rows.append(TableLine(f"{self.file}, line {line}", values))
        return rows


def read_table(path: Path, what: str) -> TextTable:
    """Read a csv (``.csv``), a tsv (``.tsv``, ``.tab``), or either under another suffix.

    Raises:
        ManifestError: as `read_text`, or it is not such a file.
    """
    text = read_text(path, what)
    suffix = path.suffix.lower()
    tabs = suffix in {".tsv", ".tab"} or (suffix != ".csv" and "\t" in text.partition("\n")[0])
    # A quotation mark in a tsv is part of a title; in a csv it encloses one.
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(f"{text}\n{_END}", newline=""), **form)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((reader.line_num, fields) for fields in reader if any(fields))
        _, end = lines.pop()
    except csv.Error as error:
        raise ManifestError(
            f"{what} {path} cannot be read: line {reader.line_num}: {error}{_after(lines)}"
        ) from error
    if end != [_END]:
        raise ManifestError(
            f"{what} {path}: a quotation mark opens a field that nothing closes{_after(lines)}"
        )
    return TextTable(f"{what} {path}", "tabs" if tabs else "commas", lines)


def _after(lines: Sequence[tuple[int, list[str]]]) -> str:
    """Where to look for what is wrong: a field may go over many lines."""
    return f"; look after line {lines[-1][0]}" if lines else "; look from line 1 on"


def read_lines(path: Path, what: str) -> list[TableLine]:
    """The lines of a text file that are not empty, each a row with the one column ``line``."""
    lines = enumerate(read_text(path, what).splitlines(), start=1)
    return [
        TableLine(f"{what} {path}, line {number}", {"line": line})
        for number, line in lines
        if line.strip()
    ]


def read_text(path: Path, what: str) -> str:
    """The text of a file, which messages call ``what``.

    Raises:
        ManifestError: it is missing or not UTF-8.
    """
    data = b""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{what} {path} does not exist") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{what} {path} is not UTF-8 (line {line}, byte {error.start}); "
            "save it as UTF-8, for instance by iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise ManifestError(f"{what} {path} cannot be read: {error.strerror}") from error


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ManifestError: as `read_text`; it is none; or a name stands twice, of which JSON keeps one.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        given = dict(pairs)
        if len(given) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ManifestError(f"{what} {path}: {name!r} stands twice; leave one of them")
        return given

    try:
        given = json.loads(read_text(path, what), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"{what} {path} is not json: {error.msg} (line {error.lineno})"
        ) from error
    if not isinstance(given, dict):
        raise ManifestError(f"{what} {path} is no JSON object, but a {type(given).__name__}")
    return given


def index_by_key(rows: Iterable[tuple[str, TableLine]]) -> dict[str, TableLine]:
    """Rows by their keys.

    Raises:
        ManifestError: a key stands twice.
    """
    known: dict[str, TableLine] = {}
    for key, row in rows:
        first = known.setdefault(key, row)
        if first is not row:
            raise ManifestError(
                f"{row.where}: {key!r} stands twice, the first time in {first.where}; "
                "leave one of them"
            )
    return known


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A csv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def summarize_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    told = ", ".join(names[:NAMED]) + more
    return told.encode(errors="backslashreplace").decode()  # names of files may be no UTF-8


COLUMNS = ("video_id", "path", "title", "title_clean", "label", "split", "start", "end")

# The lines of the paper's authors have no header: id, processed title, title as it was on the web.
_OF_AUTHORS = ("video_id", "title_clean", "title")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")


def read_titles(path: Path, columns: Mapping[str, str] | None = None) -> list[TableLine]:
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


def titles_by_id(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, TableLine]:
    """The rows of a title file by the plain names of their videos.

    Raises:
        ManifestError: as `read_titles`; or an id stands twice.
    """
    rows = read_titles(path, columns)
    return index_by_key((video_stem(row["video_id"] or row["path"]), row) for row in rows)


def _is_of_authors(table: TextTable) -> bool:
    first = table.header
    return (
        table.separators == "tabs"
        and len(first) == len(_OF_AUTHORS)
        and "title" not in first
        and first[0] not in COLUMNS
        and _YOUTUBE_ID.fullmatch(first[0]) is not None
    )


def _with_title(row: TableLine) -> TableLine:
    if row["title"]:
        return row
    return TableLine(row.where, {**row.values, "title": row["title_clean"]})


def _places(table: TextTable, columns: Mapping[str, str]) -> dict[str, int]:
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
