"""An ablation's folder, read: its plan, and what each cell came to."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, Subject, read_results
from crosspair.reporting.run_report import History, read_history
from crosspair.reporting.tables import (
    TITLES,
    Column,
    column_of,
    format_signed,
    ordered,
    pluralize,
    stands_in,
)

ABLATION = "ablation.json"
DONE = "done"


@dataclass(frozen=True)
class CellResult:
    """One row of the plan with one seed.

    Attributes:
        row: axis to the name of its value.
        path: the cell's folder.
        status: "done", "failed" or "missing".
        error: of a failed cell, its log's last line.
        seconds: "pretrain", "evaluate" and "finetune", those that were done.
        clips: seen in pre-training.
    """

    row: Mapping[str, str]
    seed: int
    path: Path
    status: str
    error: str
    seconds: Mapping[str, float]
    clips: int
    results: Sequence[Result]
    history: History

    @property
    def name(self) -> str:
        """Its row's name, as "words / frozen"."""
        return " / ".join(self.row.values())

    @property
    def speed(self) -> float | None:
        """Clips a second in pre-training, as a whole."""
        taken = self.seconds.get("pretrain")
        return self.clips / taken if taken and self.status == DONE else None


@dataclass(frozen=True)
class Ablation:
    """What there is of an ablation.

    Attributes:
        table: the paper's table that it answers, as "1a"; empty where there is none.
        first: name of the row that the others are compared with.
        published: what the paper says: name of the row, source, protocol, metric; value,
            difference or note.
        cells: in the plan's order.
    """

    folder: Path
    title: str
    table: str
    first: str
    published: Sequence[Mapping[str, Any]]
    axes: Sequence[str]
    cells: Sequence[CellResult]

    @property
    def rows(self) -> dict[str, list[CellResult]]:
        """Cells by the names of rows, the first row first, then in the plan's order."""
        rows: dict[str, list[CellResult]] = {self.first: []}
        for cell in self.cells:
            rows.setdefault(cell.name, []).append(cell)
        return rows

    @property
    def seeds(self) -> int:
        """How many seeds a row is to have."""
        return len({cell.seed for cell in self.cells})

    def count(self, status: str) -> int:
        """Of cells of a status."""
        return sum(cell.status == status for cell in self.cells)


def read_ablation(folder: Path) -> Ablation:
    """Read the folder that ``crosspair ablate`` writes.

    A cell that is called done but has no results that can be read counts as failed.

    Raises:
        RunError: there is no ``ablation.json``, or it is damaged.
    """
    path = folder / ABLATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = content["plan"]
        ablation = Ablation(
            folder,
            plan["title"],
            plan.get("table", ""),
            _name(plan["first"], plan["axes"]),
            [{**each, "name": _name(each["row"], plan["axes"])} for each in plan["published"]],
            list(plan["axes"]),
            [_cell(folder, each) for each in content["cells"]],
        )
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the same crosspair ablate "
            "again to write it anew"
        ) from error
    if ablation.first not in {cell.name for cell in ablation.cells}:
        raise RunError(f"{path}: no cell is of the first row, {ablation.first!r}")
    return ablation


def _name(row: Mapping[str, str], axes: Sequence[str]) -> str:
    return " / ".join(row[axis] for axis in axes)


def _cell(folder: Path, told: Mapping[str, Any]) -> CellResult:
    path, status, error = folder / told["folder"], told["status"], told["error"] or ""
    results: Sequence[Result] = ()
    if status == DONE:
        try:
            results, _ = read_results(path / "results.json")
        except RunError as fault:
            status, error = "failed", str(fault)
    history = read_history(path) if (path / "metrics.jsonl").is_file() else History()
    return CellResult(
        told["row"], told["seed"], path, status, error, told["seconds"], told["clips"],
        results, history,
    )  # fmt: skip


_ROUNDING = 1e-9  # of differences that are the same


@dataclass(frozen=True)
class Mean:
    """A mean over so many seeds; the standard deviation of one seed (n − 1), None of a single."""

    value: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference of two rows over the seeds that both have.

    Attributes:
        error: its standard error; None of a single seed.
        interval: where it lies with 95 % by Student's t-distribution; None of a single seed, and
            where every seed happens to have the same difference, which tells nothing of its spread.
        count: seeds.
    """

    value: float
    error: float | None
    interval: tuple[float, float] | None
    count: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero: more than chance between seeds explains."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def mean_over(values: Mapping[int, float]) -> Mean:
    """The mean of the values of some seeds, at least one.

    >>> mean_over({0: 1.0, 1: 3.0}).deviation == math.sqrt(2)
    True
    """
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Mean(statistics.fmean(numbers), deviation, len(numbers))


def paired_difference(row: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """How much more ``row`` has than ``other``, seed by seed; None where they share no seed."""
    shared = sorted(row.keys() & other.keys())
    if not shared:
        return None
    mean = mean_over({seed: row[seed] - other[seed] for seed in shared})
    if mean.deviation is None:
        return Difference(mean.value, None, None, 1)
    error = mean.deviation / math.sqrt(mean.count)
    if error < _ROUNDING:
        return Difference(mean.value, 0.0, None, mean.count)
    reach = error * t_quantile(mean.count - 1)
    return Difference(mean.value, error, (mean.value - reach, mean.value + reach), mean.count)


def t_quantile(freedom: int) -> float:
    """What Student's t of so many degrees of freedom (at least 1) stays within with 95 %.

    >>> round(t_quantile(2), 3)
    4.303
    """
    low, high = 0.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability of -t to t, by the finite sums for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


@dataclass(frozen=True)
class TableEntry:
    """What a row has in a column: values by seed, and their difference to those of the first row.

    The first row itself has no difference, nor has what shares no seed with it.
    """

    values: Mapping[int, float]
    difference: Difference | None = None

    @property
    def mean(self) -> Mean:
        """Over the seeds."""
        return mean_over(self.values)


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        detail: how many seeds it has, and which failed.
        published: what the paper says of it, with its source.
        lacking: what stands where there is no number: "failed", "missing", or nothing was measured.
        is_partial: whether a cell is not done.
    """

    name: str
    of: Subject
    detail: str
    entries: Mapping[Column, TableEntry]
    published: str = ""
    lacking: str = "–"
    is_partial: bool = False


@dataclass(frozen=True)
class AblationTable:
    """The columns that one of the paper's tables would have."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]

    @property
    def is_published(self) -> bool:
        """Whether the paper says something of a row."""
        return any(row.published for row in self.rows)


def ablation_tables(ablation: Ablation) -> list[AblationTable]:
    """The tables that there are numbers for; the last rows are random weights and chance.

    What was published stands in the table of its protocol, or in the first where there is none.
    """
    columns = ordered(
        column_of(result)
        for cell in ablation.cells
        for result in cell.results
        if result.of == "trained"
    )
    numbers = [number for number in TITLES if any(c.table == number for c in columns)]
    tables = []
    for number in numbers:
        own = [column for column in columns if column.table == number]
        published = _published(ablation, number, numbers)
        rows = [
            _row(ablation, cells, name, own, published.get(name, ""))
            for name, cells in ablation.rows.items()
        ]
        tables.append(AblationTable(TITLES[number], own, [*rows, *_references(ablation, own)]))
    return tables


def headlines(tables: Sequence[AblationTable]) -> list[tuple[AblationTable, Column]]:
    """The columns to be told in words and drawn, one a protocol, with their tables.

    Accuracies, of the visual feature where there is one; and R@10 from text to video.
    """
    columns = [(table, column) for table in tables for column in table.columns]
    visual = {column.protocol for _, column in columns if column.feature == "visual"}
    return [
        (table, column)
        for table, column in columns
        if (
            column.metric == "top-1" and (column.feature == "visual") == (column.protocol in visual)
        )
        or (column.protocol, column.metric) == ("retrieval text→video", "R@10")
    ]


def shown_mean(entry: TableEntry, column: Column) -> str:
    """As "63.2 ± 1.1 %", or "4 ± 0.5" where numbers are ranks; without ± of a single seed."""
    mean = entry.mean
    if mean.deviation is None:
        return column.shown(mean.value)
    if column.is_rank:
        return f"{mean.value:.4g} ± {mean.deviation:.2g}"
    return f"{100 * mean.value:.1f} ± {100 * mean.deviation:.1f} %"


def shown_difference(difference: Difference | None, column: Column) -> str:
    """As "+2.1 ± 0.4 (0.3 to 3.9)": difference, its standard error, and its 95 % interval."""
    if difference is None:
        return ""
    scale = 1 if column.is_rank else 100
    told = format_signed(scale * difference.value)
    if difference.error is None:
        return told
    told += f" ± {scale * difference.error:.1f}"
    if difference.interval is None:
        return told
    low, high = (format_signed(scale * end) for end in difference.interval)
    return f"{told} ({low} to {high})"


def _row(
    ablation: Ablation,
    cells: Sequence[CellResult],
    name: str,
    columns: Sequence[Column],
    published: str,
) -> TableRow:
    first = ablation.rows[ablation.first]
    entries = {}
    for column in columns:
        values = _values(cells, column, "trained")
        against = _values(first, column, "trained")
        if values:
            difference = None if name == ablation.first else paired_difference(values, against)
            entries[column] = TableEntry(values, difference)
    lost = [cell.status for cell in cells if cell.status != DONE]
    lacking = lost[0] if len(lost) == len(cells) else "–"
    return TableRow(name, "trained", _detail(cells), entries, published, lacking, bool(lost))


def _detail(cells: Sequence[CellResult]) -> str:
    """As "2 of 3 seeds; seed 1 failed"."""
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell.status, []).append(str(cell.seed))
    done = len(seeds.pop(DONE, ()))
    lost = [f"seed {', '.join(own)} {status}" for status, own in seeds.items()]
    whole = pluralize(len(cells), "seed")
    return "; ".join([f"{done} of {whole}" if lost else whole, *lost])


def _references(ablation: Ablation, columns: Sequence[Column]) -> list[TableRow]:
    """Random weights over seeds, of the first row that has them; and chance."""
    rows = []
    for of in ("random weights", "chance"):
        entries = {}
        for column in columns:
            found = [_values(cells, column, of) for cells in ablation.rows.values()]
            values = next(filter(None, found), {})
            if of == "chance":  # of no seed
                values = dict(list(values.items())[:1])
            if values:
                entries[column] = TableEntry(values)
        if entries:
            most = max(len(entry.values) for entry in entries.values())
            detail = f"{pluralize(most, 'seed')}; no pre-training" if of != "chance" else "guessing"
            rows.append(TableRow(of, of, detail, entries))
    return rows


def _values(cells: Sequence[CellResult], column: Column, of: Subject) -> dict[int, float]:
    """By seed."""
    return {
        cell.seed: result.value
        for cell in cells
        for result in cell.results
        if result.of == of and stands_in(result, column)
    }


def _published(ablation: Ablation, number: str, there: Sequence[str]) -> dict[str, str]:
    """What the paper says of rows, in one of the tables that there are."""
    told: dict[str, list[str]] = {}
    for each in ablation.published:
        finetuned = "3" in there and str(each.get("protocol", "")).endswith("views")
        if number == ("3" if finetuned else there[0]):
            told.setdefault(each["name"], []).append(_said(each))
    return {name: "; ".join(parts) for name, parts in told.items()}


def _said(published: Mapping[str, Any]) -> str:
    told = []
    if published.get("value") is not None:
        told.append(f"{100 * published['value']:.1f} %")
    if published.get("difference") is not None:
        against = " / ".join((published.get("against") or {}).values())
        points = format_signed(100 * published["difference"])
        told.append(f"{points} points to {against or 'the first row'}")
    if published.get("note"):
        told.append(published["note"])
    measure = f"{published.get('protocol', '')}, {published.get('metric', '')}".strip(", ")
    return f"{', '.join(told)} ({'; '.join(x for x in (published.get('source'), measure) if x)})"
