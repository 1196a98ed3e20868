"""Runs side by side: their results in tables as the paper's Tables 2 to 5 are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crosspair.errors import RunError
from crosspair.evaluation.origin import Provenance
from crosspair.evaluation.results import MEDIAN_RANK, Result, read_results
from crosspair.reporting.published import PUBLISHED, Published

RESULTS = "results.json"
TITLES = {
    "2": "Frozen features: kNN and linear probe",
    "3": "Fine-tuned",
    "4": "Low-shot: a share of the labels",
    "5": "Zero-shot",
    "": "Retrieval, and what the paper has no table of",
}
_REMARKS = {
    "4": "The paper fine-tunes the whole network on a share of the labels: its numbers stand "
    "beside such runs only, not beside linear probes on frozen features.",
}


@dataclass(frozen=True)
class Run:
    """What one file of results holds."""

    name: str
    """Stands before the run's rows."""
    path: Path
    """The file."""
    results: Sequence[Result]
    origin: Provenance


@dataclass(frozen=True)
class Column:
    """What numbers beneath one another have in common."""

    protocol: str
    metric: str
    feature: str
    split: str
    classes: int | None
    """Of the test, since accuracies over more and fewer classes do not compare."""
    labels: float
    """Share of the labels that a fine-tuned network saw."""
    over: str
    """Official splits, as "mean of splits 1, 2, 3"."""

    @property
    def title(self) -> str:
        """As "kNN, top-1"."""
        return f"{self.protocol}, {self.metric}"

    @property
    def detail(self) -> str:
        """As "visual; 400 classes; test"."""
        told = [
            self.feature,
            f"{self.classes} classes" if self.classes else "",
            f"{100 * self.labels:g} % of labels" if self.labels != 1 else "",
            self.over,
            self.split,
        ]
        return "; ".join(each for each in told if each)


@dataclass(frozen=True)
class Cell:
    """A number, and what is to be known of it."""

    value: float
    """A fraction, 0 to 1, or a median rank."""
    note: str
    """The settings of its protocol; of a published number, what it was tested on."""
    interval: tuple[float, float] | None = None
    count: int = 0
    """Items tested; 0 where it is not told."""


@dataclass(frozen=True)
class Row:
    """A run's numbers of one subject, or what was published of one method on one data set."""

    name: str
    of: str
    """"trained", "random weights", "chance" or "published"."""
    detail: str
    """Small print beneath the name."""
    cells: Mapping[Column, Cell]
    run: Run | None = None
    """Where the numbers come from; ``None`` where they were published."""


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, of one's own runs."""

    number: str
    """As the paper numbers it: "2" to "5"; "" where it has none."""
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(init=False)
    """Every cell's note once, in order."""

    def __post_init__(self) -> None:
        notes = dict.fromkeys(
            row.cells[column].note
            for row in self.rows
            for column in self.columns
            if column in row.cells
        )
        object.__setattr__(self, "notes", list(notes))

    @property
    def title(self) -> str:
        """As "Zero-shot (the paper's Table 5)"."""
        paper = f" (the paper's Table {self.number})" if self.number else ""
        return TITLES[self.number] + paper

    @property
    def remark(self) -> str:
        """What a reader could take amiss, or nothing."""
        return _REMARKS.get(self.number, "")


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
    tables = []
    for number in TITLES:
        rows = [row for run in runs for row in _rows(run, number)]
        columns = ordered([column for row in rows for column in row.cells])
        if columns:
            tables.append(Table(number, columns, rows + _published_rows(number, columns)))
    return tables


def table_number(result: Result) -> str:
    """Which of the paper's tables a result belongs to: "2" to "5", or "" for none."""
    if result.protocol in {"kNN", "linear"}:
        return "2"
    if result.protocol.startswith("low-shot"):
        return "4"
    if result.protocol.endswith("views"):
        return "3" if result.settings.get("labels", 1) == 1 else "4"
    return "5" if result.protocol.startswith("zero-shot") else ""


def column_of(result: Result) -> Column:
    """The column that a result stands in."""
    settings, over = result.settings, ""
    classes, labels = settings.get("classes"), settings.get("labels", 1.0)
    if "mean of splits" in settings:
        over = f"mean of splits {_shown(settings['mean of splits'])}"
    elif "official split" in settings:
        over = f"official split {settings['official split']}"
    return Column(
        result.protocol, result.metric, result.feature, result.split,
        classes if isinstance(classes, int) else None,
        labels if isinstance(labels, int | float) else 1.0,
        over,
    )  # fmt: skip


def ordered(columns: Sequence[Column]) -> list[Column]:
    """Each once, those of one protocol together."""
    protocols = list(dict.fromkeys(column.protocol for column in columns))
    return sorted(dict.fromkeys(columns), key=lambda column: protocols.index(column.protocol))


def is_rank(column: Column) -> bool:
    """Whether the column's numbers are ranks rather than fractions."""
    return column.metric == MEDIAN_RANK


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


def _rows(run: Run, number: str) -> list[Row]:
    results = [result for result in run.results if table_number(result) == number]
    measured = {column_of(result) for result in results if result.of != "chance"}
    rows = []
    for of in ("trained", "random weights", "chance"):
        cells: dict[Column, Cell] = {}
        for result in results:
            if result.of != of:
                continue
            own, cell = column_of(result), _cell(result)
            # Chance with no feature is that of every feature.
            places = [each for each in measured if of == "chance" and _without_feature(each, own)]
            for column in places or [own]:
                if column in cells:
                    raise RunError(
                        f"{run.path}: two results of {of} for {column.title} ({column.detail}): "
                        f"{cells[column].value:g} and {cell.value:g}; a table holds one"
                    )
                cells[column] = cell
        if cells:
            rows.append(Row(run.name, of, of, cells, run))
    return rows


def _without_feature(column: Column, chance: Column) -> bool:
    return not chance.feature and replace(column, feature="") == chance


def _cell(result: Result) -> Cell:
    told = [f"{name} {_shown(value)}" for name, value in sorted(result.settings.items())]
    if result.count:
        told.insert(0, f"{result.count:,} of {result.split}")
    if "draws" in result.details:
        values = ", ".join(f"{100 * value:.1f}" for value in result.details["draws"])
        told.append(f"single values {values} %")
    return Cell(result.value, "; ".join(told), result.interval, result.count)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def _published_rows(number: str, columns: Sequence[Column]) -> list[Row]:
    rows: dict[Published, Row] = {}
    for each in PUBLISHED:
        same = [column for column in columns if each.table == number and _measures(each, column)]
        # On other data only the paper's own method: the others' numbers would tell nothing there.
        cells = {
            column: Cell(each.value, _published_note(each, column))
            for column in same
            if column.classes == each.classes or (each.is_cpd and not _has_own(column))
        }
        if cells:
            detail = (
                f"published: {each.source}; {each.data}; network: {each.network}; "
                f"pre-training: {each.pretrained}"
            )
            rows[each] = Row(each.method, "published", detail, cells)
    return list(rows.values())


def _measures(published: Published, column: Column) -> bool:
    """Whether the protocol is the same."""
    own = (column.protocol, column.metric, column.labels)
    return own == (published.protocol, "top-1", published.labels)


def _has_own(column: Column) -> bool:
    """Whether numbers were published on data of as many classes."""
    return any(_measures(each, column) and each.classes == column.classes for each in PUBLISHED)


def _published_note(published: Published, column: Column) -> str:
    other = "" if column.classes == published.classes else " (not the data of this column)"
    return f"published, {published.source}: {published.data}, {published.classes} classes{other}"
