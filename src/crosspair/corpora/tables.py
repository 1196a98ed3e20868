"""Read tables and lists (csv, tsv, JSON, Parquet, title files) with the file and line of each row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crosspair.corpora.video_files import is_utf8, video_stem
from crosspair.errors import ManifestError, format_error

logger = logging.getLogger(__name__)

Captions = Literal["error", "first", "join"]
"""What several titles of one video are: invalid, all but the first superfluous, or to be joined."""

COLUMNS = ("video_id", "path", "title", "title_clean", "label", "split", "start", "end")
"""The columns of a title file."""

# The file of the paper's authors has no header: id, processed title, original title.
_AUTHORS_COLUMNS = ("video_id", "title_clean", "title")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")
_COLUMN_NAME = re.compile(r"[A-Za-z_-]+\d?")
_MISSING = {"NaN", "nan", "None", "null", "NULL", "<NA>"}  # written by programs for a missing text
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SENTINEL = "\x1f"  # appended as the last line; an unclosed quotation mark swallows it
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The encodings in which spreadsheets save text, by script.
_ENCODINGS = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp932", "euc_jp", "gb18030",
              "big5", "cp949", "utf_16_le", "utf_16_be"]  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """The cells of a table, before columns are assigned."""

    file: str  # kind and path, for messages
    separators: str  # one of `_SEPARATORS`; empty if the file is not text, so that cells may be of any type
    cells: pd.DataFrame  # rows that are not empty, None after a shorter one; the index is file and line

    @property
    def header(self) -> list[str]:
        """The fields of the first line."""
        return [name.strip() for name in self.cells.iloc[0].dropna()] if len(self.cells) else []

    def describe_columns(self) -> str:
        """List the columns of the header, for messages."""
        found = ", ".join(map(repr, self.header)) or "none"
        return f"its columns{f', separated by {self.separators},' if self.separators else ''} are {found}"

    def position(self, name: str) -> int | None:
        """Return the position of a column, in any case, or None; ManifestError if several have this name."""
        places = [place for place, each in enumerate(self.header) if each.casefold() == name.casefold()]
        if len(places) > 1:
            raise ManifestError(f"{self.file} has several columns {name!r}; {self.describe_columns()}. Rename them.")
        return places[0] if places else None

    def rows(self, *names: str) -> pd.DataFrame:
        """Return the given columns of all lines below the header; ManifestError if one is missing."""
        positions = {name: place for name in names if (place := self.position(name)) is not None}
        if len(positions) < len(names):
            needed = ", ".join(map(repr, names))
            raise ManifestError(f"{self.file} needs the columns {needed}; {self.describe_columns()}")
        return self.below_header(positions)

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
            quoted = "" if self.separators == "tabs" else " outside quotation marks"
            raise ManifestError(
                f"{too_long[0]}: {cells.loc[too_long[0]].count()} fields for {width} columns. "
                f"Check whether a field holds {self.separators}{quoted}."
            )
        columns = {name: cells.get(place) for name, place in positions.items()}
        rows = pd.DataFrame(columns, cells.index, dtype=object)
        if not self.separators:
            is_text = rows.map(lambda value: pd.api.types.is_scalar(value) and not isinstance(value, bytes))
            if not is_text.all(axis=None):
                where = is_text.index[~is_text.all(axis=1)][0]
                raise ManifestError(
                    f"{where}: a field is a list, an object or binary, not text; use one row for each text"
                )
            rows = rows.map(str, na_action="ignore").astype(object)
            rows = rows.where(rows.notna(), None)
        text = rows.columns.drop("title_clean", errors="ignore")
        rows[text] = rows[text].fillna("").map(str.strip)
        return rows


def read_table(path: Path, what: str) -> TextTable:
    """Read a table: Parquet, JSON (lines, or an array of objects), or text with commas, semicolons or tabs.

    The first line decides what separates the fields: tabs if it has one, else the comma or semicolon that it has
    first; with the suffix ``.csv``, whichever of the three it has first.

    Args:
        path: the file.
        what: its kind, for messages.

    Raises:
        ManifestError: it cannot be read, or a line is invalid.
    """
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".json", ".jsonl", ".ndjson"}:
        frame = _read_parquet(path, what) if suffix == ".parquet" else _read_json(path, what)
        cells = [list(frame.columns), *frame.to_numpy(object).tolist()]
        return TextTable(f"{what} {path}", "", pd.DataFrame(cells, [f"{what} {path}", *frame.index], dtype=object))
    text = re.sub(r"\Asep=.(?=\r?\n)", "", read_text(path, what))  # a line for spreadsheets
    first = text.lstrip("\r\n").partition("\n")[0]
    found = next((mark for mark in first if mark in _SEPARATORS), "," if suffix not in {".tsv", ".tab"} else "\t")
    separator = "\t" if "\t" in first and suffix != ".csv" else found
    unquoted = separator == "\t" and not _quotes_fields(text)
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if unquoted else {}
    raw = list(io.StringIO(f"{text}\n{_SENTINEL}", newline=""))
    reader = csv.reader(raw, delimiter=separator, **quoting)
    lines: dict[int, list[str]] = {}
    end = 0
    try:
        for fields in reader:
            if reader.line_num > end + 1 and _has_open_quote("".join(raw[end : reader.line_num]), separator):
                raise csv.Error(f"text follows a quotation mark that ends the field of line {end + 1}")
            end = reader.line_num
            if any(fields):
                lines[end] = fields
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
    cells = [[*fields, *[None] * (width - len(fields))] for fields in lines.values()]
    return TextTable(f"{what} {path}", _SEPARATORS[separator], pd.DataFrame(cells, index, dtype=object))


def _has_open_quote(line: str, separator: str) -> bool:
    """Return whether a field seems to end, lines below, at the mark that begins another: text follows that."""
    field = rf'(?:"((?:[^"]|"")*)"([^{separator}\r\n]*)|[^{separator}\r\n]*)(?:{separator}|\r?\n|\Z)'
    return any("\n" in (found[1] or "") and found[2] for found in re.finditer(field, line))


def _quotes_fields(text: str) -> bool:
    """Return whether a tsv has fields in quotation marks, as pandas writes them; in others, the marks are text.

    They are text if they would merge lines that have equally many fields without that.
    """
    if '"' not in text:
        return False
    tabs = [line.count("\t") for line in io.StringIO(text, newline=None) if line.strip("\n")]
    try:
        quoted = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True) if row]
    except csv.Error:
        return False
    return len({len(row) for row in quoted}) == 1 and (len(quoted) == len(tabs) or len(set(tabs)) > 1)


def _read_parquet(path: Path, what: str) -> pd.DataFrame:
    try:
        frame = pq.read_table(path).to_pandas(integer_object_nulls=True, ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{what} {path} cannot be read: {format_error(error)}") from error
    return frame.set_axis([f"{what} {path}, row {row}" for row in frame.index])


def _read_json(path: Path, what: str) -> pd.DataFrame:
    """Read JSON Lines, or an array of objects."""
    text = read_text(path, what)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        entries = _parse_json(text, f"{what} {path}")
        rows = {f"{what} {path}, entry {number}": entry for number, entry in enumerate(entries, start=1)}
    else:
        rows = {
            where: _parse_json(line, where, is_line=True) for where, line in _number_lines(text, path, what).items()
        }
    escaped = "\\u" in text
    for where, row in rows.items():
        if not isinstance(row, dict):
            raise ManifestError(f"{where} must be a JSON object, not a {type(row).__name__}")
        if escaped and not is_utf8("".join(map(str, row.values()))):
            raise ManifestError(f"{where} has a character that is not valid Unicode, such as \\ud800")
    return pd.DataFrame(list(rows.values()), list(rows), dtype=object)


def _parse_json(text: str, where: str, *, is_line: bool = False) -> Any:
    """Parse JSON; ManifestError if it is invalid or has duplicate keys, of which parsers keep only one."""

    def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ManifestError(f"{where}: key {name!r} is duplicated; remove one entry")
        return values

    try:
        return json.loads(text, object_pairs_hook=check_unique)
    except json.JSONDecodeError as error:
        line = "" if is_line else f" (line {error.lineno})"
        raise ManifestError(f"{where} is not valid JSON: {error.msg}{line}") from error


def read_lines(path: Path, what: str) -> dict[str, str]:
    """Read the stripped non-empty lines of a text file; the keys are file and line, for messages."""
    return _number_lines(read_text(path, what), path, what)


def _number_lines(text: str, path: Path, what: str) -> dict[str, str]:
    lines = enumerate(io.StringIO(text, newline=None), start=1)  # not at U+2028, as splitlines
    return {f"{what} {path}, line {number}": line.strip() for number, line in lines if line.strip()}


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, in the encoding of its byte order mark, or in the most probable one, which is logged.

    Raises:
        ManifestError: it cannot be read, or is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{what} {path} cannot be read: {error.strerror}") from error
    encoding: str | None = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(str(encoding))
    except UnicodeDecodeError as error:
        text = data.decode(errors="replace")
        if 2 * text.count("\ufffd") < sum(not character.isascii() for character in text):
            line = data.count(b"\n", 0, error.start) + 1
            raise ManifestError(
                f"{what} {path} is UTF-8 except for line {line}, byte {error.start}. Correct it."
            ) from error
    else:
        if "\0" not in text:
            return text
        if 10 * text.count("\0") < len(text):  # more in UTF-16
            line = text.count("\n", 0, text.index("\0")) + 1
            raise ManifestError(f"{what} {path} is text except for line {line}, which has a null byte. Remove it.")
    encoding = _guess_encoding(data)
    if encoding is None:
        raise ManifestError(
            f"{what} {path} is not text in a known encoding. Convert it to UTF-8; save a workbook as csv."
        )
    text = data.decode(encoding)
    sample = re.search(r".{0,20}[^\0-\x7f].{0,20}", text) or re.search(".{1,40}", text)
    message = "%s %s is not UTF-8; it is read as %s (%r). If that is wrong, convert it to UTF-8."
    logger.warning(message, what, path, encoding, sample[0] if sample else "")
    return text


def _guess_encoding(data: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8; Windows-1252 unless another one is more probable."""
    import charset_normalizer  # slow, and seldom needed

    matches = charset_normalizer.from_bytes(data, cp_isolation=_ENCODINGS)
    best = min((match.chaos for match in matches), default=0)
    names = [name for match in matches if match.chaos == best for name in match.could_be_from_charset]
    return "cp1252" if "cp1252" in names else names[0] if names else None


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ManifestError if it is invalid or has duplicate keys, of which parsers keep only one."""
    return _parse_json(read_text(path, what), f"{what} {path}")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ManifestError if it is none, see `read_json`."""
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise ManifestError(f"{what} {path} must be a JSON object, not a {type(content).__name__}")
    return content


def index_by_key(
    rows: pd.DataFrame, keys: Iterable[str], advice: str = "remove one of them"
) -> dict[str, dict[str, Any]]:
    """Return the rows by key, each with its file and line as ``where``; ManifestError if a key is duplicated."""
    of_row = pd.Series(list(keys), rows.index, dtype=object)
    again = of_row[of_row.duplicated()]
    if len(again):
        key, first = again.iloc[0], of_row.index[of_row == again.iloc[0]][0]
        raise ManifestError(f"{again.index[0]}: {key!r} is duplicated, first in {first}; {advice}")
    names = ("where", *rows.columns)
    lines = (dict(zip(names, line, strict=True)) for line in rows.astype(object).itertuples(name=None))
    return dict(zip(of_row, lines, strict=True))


def read_titles(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a title file in one of two forms.

    1. A table (see `read_table`) with columns ``title``, ``video_id`` or ``path``, and optionally the
       other `COLUMNS`, in upper or lower case.
    2. The file of the paper's authors, a tsv without a header: YouTube id, processed title,
       original title. The original becomes ``title`` (the processed title if the original is
       missing) and the processed one ``title_clean``.

    Titles, labels and splits such as ``NaN`` and ``None`` are empty; such titles are counted in the log.

    Args:
        path: the file.
        columns: the file's names for some of `COLUMNS`, for example ``{"video_id": "id"}``.

    Returns:
        Text in all `COLUMNS`, empty if missing, but None for ``title_clean``.

    Raises:
        ManifestError: the file cannot be read, lacks a column, or has a title without a video.
    """
    table = read_table(path, "title file")
    is_authors = not columns and _is_authors_file(table)
    if is_authors:
        rows = table.without_header(_AUTHORS_COLUMNS)
    else:
        rows = table.below_header(_column_positions(table, columns or {}))
    missing = [name for name in COLUMNS if name not in rows]
    rows = rows.assign(**{name: None if name == "title_clean" else "" for name in missing})
    absent = rows["title"].isin(_MISSING)
    if absent.any():
        message = "%s: the title %r counts as empty, as do %d more of NaN, None or null"
        logger.warning(message, rows.index[absent][0], rows["title"][absent].iloc[0], absent.sum() - 1)
    text = ["title", "label", "split"]
    rows[text] = rows[text].replace(list(_MISSING), "")
    rows["title_clean"] = rows["title_clean"].mask(rows["title_clean"].isin(_MISSING), None)
    if is_authors:
        rows["title"] = rows["title"].where(rows["title"] != "", rows["title_clean"].fillna("").str.strip())
    if table.separators == "semicolons":  # where a comma is the decimal mark
        rows[["start", "end"]] = rows[["start", "end"]].replace(",", ".", regex=True)
    nameless = rows.index[(rows["video_id"] == "") & (rows["path"] == "")]
    if len(nameless):
        raise ManifestError(f"{nameless[0]}: both video_id and path are empty")
    return rows


def merge_captions(rows: pd.DataFrame, keys: Iterable[str], captions: Captions) -> pd.DataFrame:
    """Merge rows of `read_titles` that have the same key, label, split, start and end.

    Args:
        rows: of a title file.
        keys: of each row's video.
        captions: ``join`` joins their titles with semicolons, ``first`` keeps the first that is not empty; both
            for ``title`` and ``title_clean``. With ``error``, the rows are returned unchanged.
    """
    if captions == "error":
        return rows
    groups: dict[tuple[str, ...], list[int]] = {}
    of_row = zip(keys, *(rows[name] for name in ("label", "split", "start", "end")), strict=True)
    for place, key in enumerate(of_row):
        groups.setdefault(key, []).append(place)
    records, merged = rows.to_dict("records"), []
    for places in groups.values():
        lines = [records[place] for place in places]
        titled = [line for line in lines if line["title"] or line["title_clean"]] or lines[:1]
        used = titled[:1] if captions == "first" else titled
        merged.append(used[0] | {name: _join(line[name] for line in used) for name in ("title", "title_clean")})
    if len(merged) < len(rows):
        logger.info("%d lines of the title file are captions of %d videos: %s", len(rows), len(merged), captions)
    return pd.DataFrame(merged, rows.index[[places[0] for places in groups.values()]], rows.columns, dtype=object)


def _join(texts: Iterable[str | None]) -> str | None:
    """Join different texts; None if all are."""
    given = [text for text in texts if text is not None]
    return "; ".join(dict.fromkeys(filter(None, given))) if given else None


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
    """Return whether a table is a tsv of three columns, the first of YouTube ids, without a header."""
    first = table.header
    return (
        table.separators == "tabs"
        and len(first) == len(_AUTHORS_COLUMNS)
        and "title" not in map(str.casefold, first)
        and first[0].casefold() not in COLUMNS
        and _YOUTUBE_ID.fullmatch(first[0]) is not None
        and not all(map(_COLUMN_NAME.fullmatch, first))
        and table.cells[0].str.strip().str.fullmatch(_YOUTUBE_ID).mean() > 0.5
    )


def _column_positions(table: TextTable, renamed: Mapping[str, str]) -> dict[str, int]:
    """Return the position of each column of a title file, after renaming."""
    names = {**{name: name for name in COLUMNS}, **renamed}
    positions = {column: place for column, name in names.items() if (place := table.position(name)) is not None}
    for column, name in renamed.items():
        if column not in COLUMNS:
            raise ManifestError(f"title column {column!r} is unknown; it must be one of {', '.join(COLUMNS)}")
        if column not in positions:
            raise ManifestError(f"{table.file} has no column {name!r} to use as {column!r}; {table.describe_columns()}")
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
