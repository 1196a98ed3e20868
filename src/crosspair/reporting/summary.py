"""Runs side by side: their results in tables as the paper's Tables 2 to 5 are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from crosspair.errors import RunError
from crosspair.evaluation.origin import Provenance
from crosspair.evaluation.results import Result, read_results
from crosspair.reporting.columns import (
    SPLITS,
    TITLES,
    Column,
    column_of,
    listed,
    ordered,
    over_splits,
    stands_in,
)
from crosspair.reporting.published import PUBLISHED, Published
from crosspair.reporting.tabular import shown

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
class Cell:
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
class Row:
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
    cells: Mapping[Column, Cell]
    run: Run | None = None


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, of one's own runs; its number is a key of `TITLES`."""

    number: str
    columns: Sequence[Column]
    rows: Sequence[Row]

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


def summarise(runs: Sequence[Run]) -> list[Table]:
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
            tables.append(Table(number, columns, rows + _published_rows(columns)))
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


def _rows(run: Run) -> list[tuple[str, Row]]:
    """A row for each subject and official split of each table, with the table's number."""
    measured = {column_of(result) for result in run.results if result.of != "chance"}
    found: dict[tuple[str, str, str], dict[Column, Cell]] = {
        (number, of, over): {}
        for number in TITLES
        for of in ("trained", "random weights", "chance")
        for over in dict.fromkeys(over_splits(result) for result in run.results)
    }
    for result in run.results:
        own, cell = column_of(result), _cell(result)
        cells = found[own.table, result.of, over_splits(result)]
        for column in [each for each in measured if stands_in(result, each)] or [own]:
            if column in cells:
                raise RunError(
                    f"{run.path}: two results of {result.of} for {column.title} "
                    f"({column.detail}): {cells[column].value:g} and {cell.value:g}; a table "
                    "holds one"
                )
            cells[column] = cell
    return [
        (number, Row(run.name, of, over, f"{of}; {over}" if over else of, cells, run))
        for (number, of, over), cells in found.items()
        if cells
    ]


def _cell(result: Result) -> Cell:
    settings = sorted((k, v) for k, v in result.settings.items() if k not in SPLITS)
    told = [f"{name} {listed(value)}" for name, value in settings]
    if result.count:
        told.insert(0, f"{result.count:,} of {result.split}")
    if "draws" in result.details:
        values = (shown(value, result.smaller_is_better) for value in result.details["draws"])
        told.append(f"single values {', '.join(values)}")
    return Cell(result.value, "; ".join(told), result.interval, result.count)


def _published_rows(columns: Sequence[Column]) -> list[Row]:
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
            rows.append(Row(each.method, "published", "", detail, cells))
    return rows


def _beside(column: Column) -> list[Published]:
    """The published numbers that are to stand in a column of one's own.

    On other data only the paper's own method is: the others' numbers would tell nothing there.
    """
    own = (column.protocol, column.metric, column.labels)
    of_protocol = [each for each in PUBLISHED if own == (each.protocol, "top-1", each.labels)]
    same_data = [each for each in of_protocol if each.classes == column.classes]
    return same_data or [each for each in of_protocol if each.method.startswith("CPD")]


def _published_cell(published: Published, column: Column) -> Cell:
    other = "" if column.classes == published.classes else " (not the data of this column)"
    told = f"published, {published.source}: {published.data}, {published.classes} classes{other}"
    return Cell(published.value, told)
