"""Results of an ablation's folder: cells, means over seeds, and differences to the baseline."""

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
    TABLE_TITLES,
    Column,
    format_signed,
    pluralize,
    sort_columns,
)

ABLATION = "ablation.json"
DONE = "done"
_ROUNDING = 1e-9  # standard errors below this are rounding errors of equal differences


@dataclass(frozen=True)
class CellResult:
    """A row of the plan with one seed.

    Attributes:
        row: name of the value by axis.
        seed: of the cell.
        path: folder of the cell.
        status: "done", "failed" or "missing".
        error: last line of the log of a failed cell.
        seconds: duration of the completed steps among "pretrain", "evaluate" and "finetune".
        clips: number of clips seen in pre-training.
        results: empty unless done.
        history: of pre-training; empty if not started.
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
        """Name of the row, e.g. "words / frozen"."""
        return " / ".join(self.row.values())

    @property
    def speed(self) -> float | None:
        """Clips per second of the whole pre-training."""
        seconds = self.seconds.get("pretrain")
        return self.clips / seconds if seconds and self.status == DONE else None


@dataclass(frozen=True)
class Ablation:
    """An ablation's plan and cells.

    Attributes:
        folder: of the ablation.
        title: of the plan.
        table: number of the paper's table, e.g. "1a"; empty if there is none.
        baseline: name of the row that the others are compared with.
        published: the paper's values: name of the row, source, protocol, metric; value, difference
            or note.
        axes: names, in the plan's order.
        cells: in the plan's order.
    """

    folder: Path
    title: str
    table: str
    baseline: str
    published: Sequence[Mapping[str, Any]]
    axes: Sequence[str]
    cells: Sequence[CellResult]

    @property
    def rows(self) -> dict[str, list[CellResult]]:
        """Cells by the name of the row, the baseline first, then in the plan's order."""
        rows: dict[str, list[CellResult]] = {self.baseline: []}
        for cell in self.cells:
            rows.setdefault(cell.name, []).append(cell)
        return rows

    @property
    def seeds(self) -> int:
        """Number of seeds per row."""
        return len({cell.seed for cell in self.cells})

    def count(self, status: str) -> int:
        """Count the cells of a status."""
        return sum(cell.status == status for cell in self.cells)


def read_ablation(folder: Path) -> Ablation:
    """Read a folder written by ``crosspair ablate``.

    A cell with the status "done" whose results cannot be read counts as failed.

    Raises:
        RunError: ``ablation.json`` does not exist or is damaged.
    """
    path = folder / ABLATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = content["plan"]
        axes = list(plan["axes"])
        ablation = Ablation(
            folder,
            plan["title"],
            plan.get("table", ""),
            _row_name(plan["first"], axes),
            [{**each, "name": _row_name(each["row"], axes)} for each in plan["published"]],
            axes,
            [_read_cell(folder, each) for each in content["cells"]],
        )
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f'{path} is damaged ({type(error).__name__}: {error}). Run the same "crosspair ablate" '
            "command again to rewrite it."
        ) from error
    if not ablation.rows[ablation.baseline]:
        raise RunError(f"{path}: the baseline {ablation.baseline!r} has no cell")
    return ablation


def _row_name(row: Mapping[str, str], axes: Sequence[str]) -> str:
    return " / ".join(row[axis] for axis in axes)


def _read_cell(folder: Path, entry: Mapping[str, Any]) -> CellResult:
    path, status, message = folder / entry["folder"], entry["status"], entry["error"] or ""
    results: Sequence[Result] = ()
    if status == DONE:
        try:
            results, _ = read_results(path / "results.json")
        except RunError as error:
            status, message = "failed", str(error)
    history = read_history(path) if (path / "metrics.jsonl").is_file() else History()
    return CellResult(
        entry["row"], entry["seed"], path, status, message, entry["seconds"], entry["clips"],
        results, history,
    )  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, and the sample standard deviation; None of a single seed."""

    value: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of two rows over the seeds that both have.

    Attributes:
        value: the mean difference.
        error: its standard error; None of a single seed.
        interval: 95 % confidence interval by Student's t-distribution; None of a single seed, or
            if the difference is the same for every seed.
        count: number of seeds.
    """

    value: float
    error: float | None
    interval: tuple[float, float] | None
    count: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def mean_over_seeds(values: Mapping[int, float]) -> Mean:
    """Average the values of one or more seeds.

    >>> mean_over_seeds({0: 1.0, 1: 3.0}).deviation == math.sqrt(2)
    True
    """
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Mean(statistics.fmean(numbers), deviation, len(numbers))


def paired_difference(row: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Average ``row - other`` over their common seeds; None if there are none."""
    common = sorted(row.keys() & other.keys())
    if not common:
        return None
    mean = mean_over_seeds({seed: row[seed] - other[seed] for seed in common})
    if mean.deviation is None:
        return Difference(mean.value, None, None, 1)
    error = mean.deviation / math.sqrt(mean.count)
    if error < _ROUNDING:
        return Difference(mean.value, 0.0, None, mean.count)
    reach = error * t_quantile(mean.count - 1)
    return Difference(mean.value, error, (mean.value - reach, mean.value + reach), mean.count)


def t_quantile(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t-distribution.

    Args:
        freedom: degrees of freedom, at least 1.

    >>> round(t_quantile(2), 3)
    4.303
    """
    low, high = 0.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_coverage(middle, freedom) < 0.95 else (low, middle)
    return high


def _t_coverage(t: float, freedom: int) -> float:
    """Return the probability of [-t, t], by the finite sums for integer degrees of freedom."""
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
    """Values of a row in a column by seed, and their difference to the baseline.

    The difference is None for the baseline and for rows without a seed in common with it.
    """

    values: Mapping[int, float]
    difference: Difference | None = None

    @property
    def mean(self) -> Mean:
        """Mean over the seeds."""
        return mean_over_seeds(self.values)


@dataclass(frozen=True)
class TableRow:
    """A row of an ablation's table.

    Attributes:
        name: of the row.
        subject: "trained", "random weights" or "chance".
        detail: number of seeds, and those that failed.
        entries: by column.
        published: the paper's values of the row, with their source.
        placeholder: text of empty cells: "failed" or "missing" if no cell is done, else "–".
        is_partial: whether a cell is not done.
    """

    name: str
    subject: Subject
    detail: str
    entries: Mapping[Column, TableEntry]
    published: str = ""
    placeholder: str = "–"
    is_partial: bool = False


@dataclass(frozen=True)
class AblationTable:
    """The columns of one of the paper's tables."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]

    @property
    def is_published(self) -> bool:
        """Whether the paper has a value of a row."""
        return any(row.published for row in self.rows)


def ablation_tables(ablation: Ablation) -> list[AblationTable]:
    """Build the tables that have values; the last rows are random weights and chance.

    Published values are listed in the table of their protocol, or else in the first table.
    """
    columns = sort_columns(
        Column.from_result(result)
        for cell in ablation.cells
        for result in cell.results
        if result.of == "trained"
    )
    numbers = [number for number in TABLE_TITLES if any(c.table == number for c in columns)]
    tables = []
    for number in numbers:
        members = [column for column in columns if column.table == number]
        published = _published_texts(ablation, number, numbers)
        rows = [
            _table_row(ablation, cells, name, members, published.get(name, ""))
            for name, cells in ablation.rows.items()
        ]
        rows += _reference_rows(ablation, members)
        tables.append(AblationTable(TABLE_TITLES[number], members, rows))
    return tables


def headline_columns(tables: Sequence[AblationTable]) -> list[tuple[AblationTable, Column]]:
    """Select one column per protocol, with its table, for the findings and the charts.

    Top-1 accuracy of the visual feature if the protocol has it, and R@10 from text to video.
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


def format_mean(entry: TableEntry, column: Column) -> str:
    """Format mean and deviation, e.g. "63.2 ± 1.1 %", or "4 ± 0.5" for ranks."""
    mean = entry.mean
    if mean.deviation is None:
        return column.format(mean.value)
    if column.is_rank:
        return f"{mean.value:.4g} ± {mean.deviation:.2g}"
    return f"{100 * mean.value:.1f} ± {100 * mean.deviation:.1f} %"


def format_difference(difference: Difference | None, column: Column) -> str:
    """Format difference, standard error and interval, e.g. "+2.1 ± 0.4 (+0.3 to +3.9)"."""
    if difference is None:
        return ""
    scale = 1 if column.is_rank else 100
    text = format_signed(scale * difference.value)
    if difference.error is not None:
        text += f" ± {scale * difference.error:.1f}"
    if difference.interval is not None:
        low, high = (format_signed(scale * end) for end in difference.interval)
        text += f" ({low} to {high})"
    return text


def _table_row(
    ablation: Ablation,
    cells: Sequence[CellResult],
    name: str,
    columns: Sequence[Column],
    published: str,
) -> TableRow:
    entries = {}
    for column in columns:
        values = _values_by_seed(cells, column, "trained")
        if values:
            baseline = _values_by_seed(ablation.rows[ablation.baseline], column, "trained")
            is_baseline = name == ablation.baseline
            difference = None if is_baseline else paired_difference(values, baseline)
            entries[column] = TableEntry(values, difference)
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell.status, []).append(str(cell.seed))
    done = len(seeds.pop(DONE, ()))
    detail = pluralize(len(cells), "seed")
    if seeds:
        incomplete = (f"seed {', '.join(each)} {status}" for status, each in seeds.items())
        detail = "; ".join([f"{done} of {detail}", *incomplete])
    placeholder = "–" if done else next(iter(seeds))
    return TableRow(name, "trained", detail, entries, published, placeholder, bool(seeds))


def _reference_rows(ablation: Ablation, columns: Sequence[Column]) -> list[TableRow]:
    """Build the rows of random weights and chance, from the first row that has them."""
    rows = []
    subjects: tuple[Subject, ...] = ("random weights", "chance")
    for subject in subjects:
        entries = {}
        for column in columns:
            found = [_values_by_seed(cells, column, subject) for cells in ablation.rows.values()]
            values = next(filter(None, found), {})
            if subject == "chance":  # independent of the seed
                values = dict(list(values.items())[:1])
            if values:
                entries[column] = TableEntry(values)
        if entries:
            seeds = pluralize(max(len(entry.values) for entry in entries.values()), "seed")
            detail = "random guessing" if subject == "chance" else f"{seeds}; no pre-training"
            rows.append(TableRow(subject, subject, detail, entries))
    return rows


def _values_by_seed(
    cells: Sequence[CellResult], column: Column, subject: Subject
) -> dict[int, float]:
    return {
        cell.seed: result.value
        for cell in cells
        for result in cell.results
        if result.of == subject and column.contains(result)
    }


def _published_texts(ablation: Ablation, number: str, numbers: Sequence[str]) -> dict[str, str]:
    """Format the published values that belong to a table, by row."""
    texts: dict[str, list[str]] = {}
    for published in ablation.published:
        finetuned = "3" in numbers and str(published.get("protocol", "")).endswith("views")
        if number == ("3" if finetuned else numbers[0]):
            texts.setdefault(published["name"], []).append(_format_published(published))
    return {name: "; ".join(parts) for name, parts in texts.items()}


def _format_published(published: Mapping[str, Any]) -> str:
    parts = []
    if published.get("value") is not None:
        parts.append(f"{100 * published['value']:.1f} %")
    if published.get("difference") is not None:
        other = " / ".join((published.get("against") or {}).values()) or "the baseline"
        parts.append(f"{format_signed(100 * published['difference'])} points vs. {other}")
    if published.get("note"):
        parts.append(published["note"])
    measure = f"{published.get('protocol', '')}, {published.get('metric', '')}".strip(", ")
    source = "; ".join(text for text in (published.get("source"), measure) if text)
    return f"{', '.join(parts)} ({source})"
