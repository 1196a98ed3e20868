"""Summary of several runs: their results in tables that follow the paper's Tables 2 to 5."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, Subject, read_results
from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.provenance import Provenance
from crosspair.reporting.run_report import render_page
from crosspair.reporting.tables import (
    COLUMN_FIELDS,
    SPLIT_SETTINGS,
    TABLE_TITLES,
    Column,
    duplicate_error,
    format_csv,
    format_interval,
    format_setting,
    format_splits,
    format_value,
    sort_columns,
)

RESULTS = "results.json"
_CSV_FIELDS = (
    "table", "run", "of", "over", *COLUMN_FIELDS, "value", "low", "high", "count", "note",
    "results",
)  # fmt: skip
_LOW_SHOT_REMARK = (
    "The paper fine-tunes the whole network on a fraction of the labels. Its numbers are listed "
    "for fine-tuned runs only, since linear probes on frozen features are not comparable."
)


@dataclass(frozen=True)
class Run:
    """A results file and the name of its rows."""

    name: str
    path: Path
    results: Sequence[Result]
    origin: Provenance


@dataclass(frozen=True)
class ReportCell:
    """A value of a summary table.

    Attributes:
        value: a fraction, 0 to 1, or a median rank.
        note: settings of the protocol, or test data of a published value.
        interval: 95 % confidence interval.
        count: number of test items; 0 if unknown.
    """

    value: float
    note: str
    interval: tuple[float, float] | None = None
    count: int = 0


@dataclass(frozen=True)
class ReportRow:
    """The values of one subject of a run, or the published values of a method on one data set.

    Attributes:
        name: of the run or the method.
        subject: "trained", "random weights", "chance" or "published".
        over: official splits, e.g. "mean of splits 1, 2, 3"; empty if there are none.
        detail: text in small print below the name.
        run: source of the values; None if published.
    """

    name: str
    subject: str
    over: str
    detail: str
    cells: Mapping[Column, ReportCell]
    run: Run | None = None


@dataclass(frozen=True)
class ReportTable:
    """A table of runs; ``number`` is a key of `crosspair.reporting.tables.TABLE_TITLES`."""

    number: str
    columns: Sequence[Column]
    rows: Sequence[ReportRow]

    @cached_property
    def notes(self) -> list[str]:
        """The distinct notes of all cells, in order."""
        cells = [row.cells.get(column) for row in self.rows for column in self.columns]
        return list(dict.fromkeys(cell.note for cell in cells if cell))

    @property
    def title(self) -> str:
        """E.g. "Zero-shot (the paper's Table 5)"."""
        paper = f" (the paper's Table {self.number})" if self.number else ""
        return TABLE_TITLES[self.number] + paper

    @property
    def remark(self) -> str:
        """A remark about the published values; empty if there is none."""
        return _LOW_SHOT_REMARK if self.number == "4" else ""


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read the runs given on the command line.

    Args:
        arguments: run folders that contain ``results.json``, or results files, optionally as
            ``NAME=PATH``. The default name is that of the folder, or that of the file if it is not
            named ``results.json``.

    Raises:
        RunError: a run does not exist, is empty or is not a results file, or two have the same
            name.
    """
    runs: dict[str, Run] = {}
    for argument in arguments:
        run = _read_run(argument)
        if run.name in runs:
            raise RunError(
                f"two runs are named {run.name!r}: {runs[run.name].path} and {run.path}. "
                "Name them with NAME=PATH."
            )
        runs[run.name] = run
    return list(runs.values())


def summarize(runs: Sequence[Run]) -> list[ReportTable]:
    """Build the tables for which the runs have values, with published values for comparison.

    Raises:
        RunError: a file has two values for the same cell.
    """
    measured = [row for run in runs for row in _run_rows(run)]
    tables = []
    for number in TABLE_TITLES:
        columns = sort_columns(c for _, row in measured for c in row.cells if c.table == number)
        rows = [row for table, row in measured if table == number]
        if columns:
            tables.append(ReportTable(number, columns, rows + _published_rows(columns)))
    return tables


def write_summary(folder: Path, runs: Sequence[Run]) -> list[ReportTable]:
    """Write ``report.md``, ``report.csv`` and ``report.html``.

    The CSV file has one unrounded value per line; accuracies are fractions.

    Args:
        folder: output folder; links to results files are relative to it.
        runs: in the order of the rows.

    Raises:
        RunError: a run has two values for the same cell, or a file cannot be written.
    """
    tables, explanation = summarize(runs), _explain(runs)
    # A colon in a folder name would be parsed as a URL scheme.
    links = {run.name: quote(os.fsencode(_relative_path(folder, run)), safe="/") for run in runs}
    origins = {run.name: _origin_fields(run.origin) for run in runs}
    page = render_page(
        "summary.html", tables=tables, explanation=explanation, links=links, origins=origins
    )
    write_atomically(folder / "report.md", _markdown(tables, explanation, links, origins))
    write_atomically(folder / "report.csv", _csv(folder, tables))
    write_atomically(folder / "report.html", page)
    return tables


def _read_run(argument: str) -> Run:
    name, sign, rest = argument.partition("=")
    if not sign or not name or Path(argument).exists():
        name, rest = "", argument
    path = Path(rest)
    if path.is_dir():
        folder, path = path, path / RESULTS
        if not path.is_file():
            raise RunError(
                f'{folder} contains no {RESULTS}. Run "crosspair evaluate all --out {path}", or '
                "give the path of its results file."
            )
    results, origin = read_results(path)
    if not results:
        raise RunError(f"{path} contains no results. Evaluate the run again.")
    file = path.resolve()
    default = file.parent.name if file.name == RESULTS else file.stem
    return Run(name or default, path, results, origin)


def _run_rows(run: Run) -> list[tuple[str, ReportRow]]:
    """Return the number of the table and the row of each subject and official split."""
    measured = {Column.from_result(result) for result in run.results if result.of != "chance"}
    splits = dict.fromkeys(format_splits(result) for result in run.results)
    keys = itertools.product(TABLE_TITLES, get_args(Subject), splits)
    rows: dict[tuple[str, str, str], dict[Column, ReportCell]] = {key: {} for key in keys}
    for result in run.results:
        column, cell = Column.from_result(result), _report_cell(result)
        cells = rows[column.table, result.of, format_splits(result)]
        for target in [each for each in measured if each.contains(result)] or [column]:
            if target in cells:
                error = duplicate_error(result, cells[target].value, cell.value)
                raise RunError(f"{run.path}: {error}")
            cells[target] = cell
    return [
        (
            number,
            ReportRow(
                run.name, subject, over, "; ".join(filter(None, (subject, over))), cells, run
            ),
        )
        for (number, subject, over), cells in rows.items()
        if cells
    ]


def _report_cell(result: Result) -> ReportCell:
    notes = [f"{result.count:,} of {result.split}"] if result.count else []
    notes += [
        f"{name} {format_setting(value)}"
        for name, value in sorted(result.settings.items())
        if name not in SPLIT_SETTINGS
    ]
    if "draws" in result.details:
        values = (format_value(each, result.smaller_is_better) for each in result.details["draws"])
        notes.append(f"single values {', '.join(values)}")
    return ReportCell(result.value, "; ".join(notes), result.interval, result.count)


def _explain(runs: Sequence[Run]) -> list[str]:
    sentences = [
        "Ranges next to or below a value are 95 % bootstrap intervals over the test videos. The "
        "superscript refers to the note with the settings of the protocol.",
        "Rows marked as published were not measured here. Their values are from the given source "
        "and data set.",
    ]
    if len({run.origin.manifest for run in runs}) > 1:
        sentences.append(
            "The runs were tested on different manifests (see Runs). Values of a column are "
            "comparable only for the same manifest."
        )
    return sentences


def _markdown(
    tables: Sequence[ReportTable],
    explanation: Sequence[str],
    links: Mapping[str, str],
    origins: Mapping[str, Mapping[str, str]],
) -> str:
    blocks = ["# Results", " ".join(explanation)]
    for table in tables:
        head = ["run", *(f"{column.title}<br>{column.detail}" for column in table.columns)]
        rows = [
            [
                f"{escape_markdown(row.name)}<br>{row.detail}",
                *(_markdown_cell(table, row, column, links) for column in table.columns),
            ]
            for row in table.rows
        ]
        notes = (
            f"{number}. {escape_markdown(note)}" for number, note in enumerate(table.notes, start=1)
        )
        blocks += [f"## {table.title}", markdown_rows(head, rows), "\n".join(notes)]
        blocks += [table.remark] if table.remark else []
    head = ["run", *next(iter(origins.values()))]
    rows = [
        [f"[{escape_markdown(name)}]({links[name]})", *map(escape_markdown, origin.values())]
        for name, origin in origins.items()
    ]
    blocks += ["## Runs", markdown_rows(head, rows, names=len(head))]
    return "\n\n".join(blocks) + "\n"


def _markdown_cell(
    table: ReportTable, row: ReportRow, column: Column, links: Mapping[str, str]
) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return "–"
    value = column.format(cell.value)
    text = f"[{value}]({links[row.run.name]})" if row.run else f"*{value}*"
    text += f" ({format_interval(cell.interval)})" if cell.interval else ""
    return f"{text} <sup>{table.notes.index(cell.note) + 1}</sup>"


def _csv(folder: Path, tables: Sequence[ReportTable]) -> str:
    return format_csv(_CSV_FIELDS, (
        [
            table.number, row.name, row.subject, row.over, *column.fields, cell.value,
            *(cell.interval or ("", "")), cell.count or "", cell.note,
            _relative_path(folder, row.run) if row.run else "",
        ]
        for table in tables for row in table.rows for column, cell in row.cells.items()
    ))  # fmt: skip


def _origin_fields(origin: Provenance) -> dict[str, str]:
    return {
        "weights": origin.model,
        "manifest": origin.data,
        "recipe": origin.recipe or "unknown",
        "seed": str(origin.seed),
        "commit": origin.commit or "unknown",
        "device": origin.machine.device,
        "created": origin.created,
    }


def _relative_path(folder: Path, run: Run) -> str:
    return Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix()


@dataclass(frozen=True)
class Published:
    """A published accuracy, i.e. a line of published.csv.

    Attributes:
        value: top-1 accuracy, 0 to 1.
        protocol: as in `crosspair.evaluation.Result`.
        labels: fraction of the labels used.
        data: test data.
        classes: number of test classes.
        method, network: as named in the source, or "not reported".
        pretrained: pre-training data, and the supervision if it differs from CPD's.
        source: e.g. "paper, Table 3".
    """

    value: float
    protocol: str
    labels: float
    data: str
    classes: int
    method: str
    network: str
    pretrained: str
    source: str


def _read_published() -> tuple[Published, ...]:
    file = resources.files(__package__) / "published.csv"
    _, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return tuple(
        Published(
            round(float(percent) / 100, 3), protocol, float(labels), data, int(classes), *texts
        )
        for percent, protocol, labels, data, classes, *texts in lines
    )


PUBLISHED = _read_published()


def _published_rows(columns: Sequence[Column]) -> list[ReportRow]:
    """Build rows of the published values on the data of a column, or else of the paper's method."""
    rows: dict[Published, dict[Column, ReportCell]] = {each: {} for each in PUBLISHED}
    for column in columns:
        key = (column.protocol, column.metric, column.labels)
        candidates = [each for each in PUBLISHED if key == (each.protocol, "top-1", each.labels)]
        same_data = [each for each in candidates if each.classes == column.classes]
        for each in same_data or [each for each in candidates if each.method.startswith("CPD")]:
            note = f"published, {each.source}: {each.data}, {each.classes} classes"
            note += "" if same_data else " (not the data of this column)"
            rows[each][column] = ReportCell(each.value, note)
    return [
        ReportRow(
            each.method, "published", "",
            f"published: {each.source}; {each.data}; network: {each.network}; "
            f"pre-training: {each.pretrained}",
            cells,
        )
        for each, cells in rows.items() if cells
    ]  # fmt: skip
