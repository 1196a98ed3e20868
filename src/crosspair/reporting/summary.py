"""Runs side by side: their results in tables as the paper's Tables 2 to 5 are."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, read_results
from crosspair.files import write_atomically
from crosspair.provenance import Provenance
from crosspair.reporting.run_report import render_page
from crosspair.reporting.tables import (
    FIELDS,
    SPLITS,
    TITLES,
    Column,
    column_of,
    format_csv,
    format_value,
    listed,
    ordered,
    split_columns,
    stands_in,
)

RESULTS = "results.json"
_LOW_SHOT = (
    "The paper fine-tunes the whole network on a share of the labels: its numbers stand beside "
    "such runs only, not beside linear probes on frozen features."
)


@dataclass(frozen=True)
class Run:
    """What one file of results holds; its name stands before its rows."""

    name: str
    path: Path
    results: Sequence[Result]
    origin: Provenance


@dataclass(frozen=True)
class ReportCell:
    """A number, and what is to be known of it.

    Attributes:
        value: a fraction, 0 to 1, or a median rank.
        note: the settings of its protocol; of a published number, what it was tested on.
        count: items tested; 0 where it is not told.
    """

    value: float
    note: str
    interval: tuple[float, float] | None = None
    count: int = 0


@dataclass(frozen=True)
class ReportRow:
    """A run's numbers of one subject, or what was published of one method on one data set.

    Attributes:
        name: of the run or the method.
        of: "trained", "random weights", "chance" or "published".
        over: official splits, as "mean of splits 1, 2, 3"; empty where there is but one.
        detail: small print beneath the name.
        run: where the numbers come from; None where they were published.
    """

    name: str
    of: str
    over: str
    detail: str
    cells: Mapping[Column, ReportCell]
    run: Run | None = None


@dataclass(frozen=True)
class ReportTable:
    """One of the paper's tables, of one's own runs; its number is a key of `TITLES`."""

    number: str
    columns: Sequence[Column]
    rows: Sequence[ReportRow]

    @cached_property
    def notes(self) -> list[str]:
        """Every cell's note once, in order."""
        cells = [row.cells.get(column) for row in self.rows for column in self.columns]
        return list(dict.fromkeys(cell.note for cell in cells if cell))

    @property
    def title(self) -> str:
        """As "Zero-shot (the paper's Table 5)"."""
        paper = f" (the paper's Table {self.number})" if self.number else ""
        return TITLES[self.number] + paper

    @property
    def remark(self) -> str:
        """What a reader could take amiss, or nothing."""
        return _LOW_SHOT if self.number == "4" else ""


def read_runs(given: Sequence[str]) -> list[Run]:
    """Read runs as the command line names them.

    Args:
        given: run folders that hold ``results.json``, or files of results, each alone or as
            ``NAME=PATH``. Without a name a run is called as its folder, or as its file where that
            is not called ``results.json``.

    Raises:
        RunError: one is not there, holds no results or is no file of results, or two have a name.
    """
    runs: dict[str, Run] = {}
    for each in given:
        run = _read_run(each)
        if run.name in runs:
            raise RunError(
                f"two runs are named {run.name!r}: {runs[run.name].path} and {run.path}; "
                "give names of your own, as NAME=PATH"
            )
        runs[run.name] = run
    return list(runs.values())


def summarise(runs: Sequence[Run]) -> list[ReportTable]:
    """The tables that the runs have numbers for, with what was published beside them.

    Raises:
        RunError: a file holds two numbers for one place.
    """
    own = [row for run in runs for row in _rows(run)]
    tables = []
    for number in TITLES:
        columns = ordered(c for _, row in own for c in row.cells if c.table == number)
        rows = [row for of, row in own if of == number]
        if columns:
            tables.append(ReportTable(number, columns, rows + _published_rows(columns)))
    return tables


def _read_run(given: str) -> Run:
    name, sign, rest = given.partition("=")
    if not sign or not name or Path(given).exists():
        name, rest = "", given
    path = Path(rest)
    if path.is_dir():
        folder, path = path, path / RESULTS
        if not path.is_file():
            raise RunError(
                f"{folder} holds no {RESULTS}: test the run by crosspair evaluate all --out "
                f"{path}, or give the file that its results are in"
            )
    results, origin = read_results(path)
    if not results:
        raise RunError(f"{path} holds no result; evaluate the run again")
    own = path.resolve()
    return Run(
        name or (own.parent.name if own.name == RESULTS else own.stem), path, results, origin
    )


def _rows(run: Run) -> list[tuple[str, ReportRow]]:
    """A row for each subject and official split of each table, with the table's number."""
    measured = {column_of(result) for result in run.results if result.of != "chance"}
    found: dict[tuple[str, str, str], dict[Column, ReportCell]] = {
        (number, of, over): {}
        for number in TITLES
        for of in ("trained", "random weights", "chance")
        for over in dict.fromkeys(split_columns(result) for result in run.results)
    }
    for result in run.results:
        own, cell = column_of(result), _cell(result)
        cells = found[own.table, result.of, split_columns(result)]
        for column in [each for each in measured if stands_in(result, each)] or [own]:
            if column in cells:
                raise RunError(
                    f"{run.path}: two results of {result.of} for {column.title} "
                    f"({column.detail}): {cells[column].value:g} and {cell.value:g}; a table "
                    "holds one"
                )
            cells[column] = cell
    return [
        (number, ReportRow(run.name, of, over, f"{of}; {over}" if over else of, cells, run))
        for (number, of, over), cells in found.items()
        if cells
    ]


def _cell(result: Result) -> ReportCell:
    settings = sorted((k, v) for k, v in result.settings.items() if k not in SPLITS)
    told = [f"{name} {listed(value)}" for name, value in settings]
    if result.count:
        told.insert(0, f"{result.count:,} of {result.split}")
    if "draws" in result.details:
        values = (
            format_value(value, result.smaller_is_better) for value in result.details["draws"]
        )
        told.append(f"single values {', '.join(values)}")
    return ReportCell(result.value, "; ".join(told), result.interval, result.count)


def _published_rows(columns: Sequence[Column]) -> list[ReportRow]:
    beside = {column: _beside(column) for column in columns}
    rows = []
    for each in PUBLISHED:
        detail = (
            f"published: {each.source}; {each.data}; network: {each.network}; "
            f"pre-training: {each.pretrained}"
        )
        cells = {
            column: _published_cell(each, column) for column in columns if each in beside[column]
        }
        if cells:
            rows.append(ReportRow(each.method, "published", "", detail, cells))
    return rows


def _beside(column: Column) -> list[Published]:
    """The published numbers that are to stand in a column of one's own.

    On other data only the paper's own method is: the others' numbers would tell nothing there.
    """
    own = (column.protocol, column.metric, column.labels)
    of_protocol = [each for each in PUBLISHED if own == (each.protocol, "top-1", each.labels)]
    same_data = [each for each in of_protocol if each.classes == column.classes]
    return same_data or [each for each in of_protocol if each.method.startswith("CPD")]


def _published_cell(published: Published, column: Column) -> ReportCell:
    other = "" if column.classes == published.classes else " (not the data of this column)"
    told = f"published, {published.source}: {published.data}, {published.classes} classes{other}"
    return ReportCell(published.value, told)


_FIELDS = (
    "table", "run", "of", "over", *FIELDS, "value", "low", "high", "count", "note", "results",
)  # fmt: skip


def write_summary(folder: Path, runs: Sequence[Run]) -> list[ReportTable]:
    """Write ``report.md``, ``report.csv`` and ``report.html``, each in one step.

    The csv has a line for each number, as it is rather than rounded: accuracies from 0 to 1.

    Args:
        folder: to write to; links to files of results are relative to it.
        runs: in the order to show them.

    Returns:
        The tables.

    Raises:
        RunError: a run holds two numbers for one place, or a file cannot be written.
    """
    tables = summarise(runs)
    told: dict[str, Any] = {
        "tables": tables,
        "explanation": _explanation(runs),
        # A colon in a folder's name would read as a scheme.
        "links": {run.name: quote(os.fsencode(_relative(folder, run)), safe="/") for run in runs},
        "origins": {run.name: _origin(run.origin) for run in runs},
    }
    write_atomically(folder / "report.md", render_page("summary.md", **told))
    write_atomically(folder / "report.csv", _csv(folder, tables))
    write_atomically(folder / "report.html", render_page("summary.html", **told))
    return tables


def _explanation(runs: Sequence[Run]) -> list[str]:
    """What to know before numbers are compared, a sentence each."""
    told = [
        "Beside a number, in parentheses or beneath it, is its 95 % interval: where it lies when "
        "the tested videos are drawn again. The small number tells of the note with its settings.",
        "Rows marked as published are not measured here: they are from the paper or from the "
        "source named, on the data set named.",
    ]
    if len({run.origin.manifest for run in runs}) > 1:
        told.append(
            "The runs were tested on different manifests (see Runs): numbers of one column "
            "compare only where the manifest is the same."
        )
    return told


def _csv(folder: Path, tables: Sequence[ReportTable]) -> str:
    return format_csv(_FIELDS, (
        [
            table.number, row.name, row.of, row.over, *column.fields, cell.value,
            *(cell.interval or ("", "")), cell.count or "", cell.note,
            _relative(folder, row.run) if row.run else "",
        ]
        for table in tables for row in table.rows for column, cell in row.cells.items()
    ))  # fmt: skip


def _origin(origin: Provenance) -> dict[str, str]:
    return {
        "weights": origin.model,
        "manifest": origin.data,
        "recipe": origin.recipe or "not known",
        "seed": str(origin.seed),
        "commit": origin.commit or "not in a checkout",
        "device": origin.machine.device,
        "created": origin.created,
    }


def _relative(folder: Path, run: Run) -> str:
    return Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix()


@dataclass(frozen=True)
class Published:
    """One accuracy, and all that its source tells of how it came to be: a line of published.csv.

    Attributes:
        value: top-1 accuracy, 0 to 1.
        protocol: as in `crosspair.evaluation.Result`.
        labels: share of the labels that were seen.
        data: what it was tested on.
        classes: of the test.
        method, network: as the source calls them, or "not told".
        pretrained: what it was pre-trained on, and by what supervision where that is not CPD's.
        source: as "paper, Table 3".
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


def _read() -> tuple[Published, ...]:
    file = resources.files(__package__) / "published.csv"
    _, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return tuple(
        Published(
            round(float(percent) / 100, 3), protocol, float(labels), data, int(classes), *told
        )
        for percent, protocol, labels, data, classes, *told in lines
    )


PUBLISHED = _read()
