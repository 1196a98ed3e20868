"""Tables of an ablation: rows by protocols, over seeds, beside the first row, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crosspair.evaluation.results import Subject
from crosspair.reporting.ablation_cells import DONE, Ablation, Cell
from crosspair.reporting.seeds import Difference, Mean, mean_over, paired_difference
from crosspair.reporting.summary import (
    TITLES,
    Column,
    column_of,
    is_rank,
    ordered,
    table_number,
)
from crosspair.reporting.table import shown


@dataclass(frozen=True)
class Entry:
    """What a row has in a column."""

    values: Mapping[int, float]
    """By seed."""
    difference: Difference | None = None
    """To the first row over the same seeds; None in the first row itself."""

    @property
    def mean(self) -> Mean:
        """Over the seeds."""
        return mean_over(self.values)


@dataclass(frozen=True)
class TableRow:
    """One row."""

    name: str
    of: Subject
    detail: str
    """How many seeds it has, and which failed."""
    entries: Mapping[Column, Entry]
    published: str = ""
    """What the paper says of it, with its source."""
    lacking: str = "–"
    """What stands where there is no number: "failed", "missing", or nothing was measured."""
    is_partial: bool = False
    """Whether a cell is not done."""


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
    results = [result for cell in ablation.cells for result in cell.results]
    columns: dict[str, list[Column]] = {number: [] for number in TITLES}
    for result in results:
        if result.of == "trained":
            columns[table_number(result)].append(column_of(result))
    there = {number: ordered(own) for number, own in columns.items() if own}
    tables = []
    for number, own in there.items():
        published = _published(ablation, number, next(iter(there)), "3" in there)
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


def shown_mean(entry: Entry | None, column: Column) -> str:
    """As "63.2 ± 1.1 %", or "4 ± 0.5" where numbers are ranks; without ± of a single seed."""
    if entry is None:
        return "–"
    mean, rank = entry.mean, is_rank(column)
    if mean.deviation is None:
        return shown(mean.value, rank)
    if rank:
        return f"{mean.value:.4g} ± {mean.deviation:.2g}"
    return f"{100 * mean.value:.1f} ± {100 * mean.deviation:.1f} %"


def shown_difference(difference: Difference | None, column: Column) -> str:
    """As "+2.1 ± 0.4 (0.3 to 3.9)": difference, its standard error, and its 95 % interval."""
    if difference is None:
        return ""
    scale = 1 if is_rank(column) else 100
    told = signed(scale * difference.value)
    if difference.error is None:
        return told
    told += f" ± {scale * difference.error:.1f}"
    if difference.interval is None:
        return told
    low, high = (signed(scale * end) for end in difference.interval)
    return f"{told} ({low} to {high})"


def signed(value: float) -> str:
    """A difference, to one decimal.

    >>> signed(-2.04)
    '−2.0'
    """
    return f"{value:+.1f}".replace("-", "−")


def _row(
    ablation: Ablation, cells: Sequence[Cell], name: str, columns: Sequence[Column], published: str
) -> TableRow:
    first = ablation.rows[ablation.first]
    entries = {}
    for column in columns:
        values = _values(cells, column, "trained")
        against = _values(first, column, "trained")
        if values:
            difference = None if name == ablation.first else paired_difference(values, against)
            entries[column] = Entry(values, difference)
    lost = [cell.status for cell in cells if cell.status != DONE]
    lacking = lost[0] if len(lost) == len(cells) else "–"
    return TableRow(name, "trained", _detail(cells), entries, published, lacking, bool(lost))


def _detail(cells: Sequence[Cell]) -> str:
    """As "2 of 3 seeds; seed 1 failed"."""
    done = sum(cell.status == DONE for cell in cells)
    statuses = dict.fromkeys(cell.status for cell in cells if cell.status != DONE)
    lost = [
        f"seed {', '.join(str(cell.seed) for cell in cells if cell.status == status)} {status}"
        for status in statuses
    ]
    return "; ".join([f"{done} of {_seeds(len(cells))}" if lost else _seeds(done), *lost])


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _references(ablation: Ablation, columns: Sequence[Column]) -> list[TableRow]:
    """Random weights over seeds, of the first row that has them; and chance."""
    rows = []
    for of in ("random weights", "chance"):
        entries = {}
        for column in columns:
            values: Mapping[int, float] = {}
            for cells in ablation.rows.values():
                values = values or _values(cells, column, of)
            if of == "chance":  # of no seed
                values = dict(list(values.items())[:1])
            if values:
                entries[column] = Entry(values)
        if entries:
            most = max(len(entry.values) for entry in entries.values())
            detail = f"{_seeds(most)}; before any training" if of != "chance" else "guessing"
            rows.append(TableRow(of, of, detail, entries))
    return rows


def _values(cells: Sequence[Cell], column: Column, of: Subject) -> dict[int, float]:
    """By seed. Chance with no feature is that of every feature."""
    alike = {column, replace(column, feature="")} if of == "chance" else {column}
    return {
        cell.seed: result.value
        for cell in cells
        for result in cell.results
        if result.of == of and column_of(result) in alike
    }


def _published(ablation: Ablation, number: str, first: str, finetuned: bool) -> dict[str, str]:
    """What the paper says of rows, in one of the tables."""
    told: dict[str, list[str]] = {}
    for each in ablation.published:
        own = "3" if str(each.get("protocol", "")).endswith("views") and finetuned else first
        if own == number:
            told.setdefault(each["name"], []).append(_said(each))
    return {name: "; ".join(parts) for name, parts in told.items()}


def _said(published: Mapping[str, Any]) -> str:
    told = []
    if published.get("value") is not None:
        told.append(f"{100 * published['value']:.1f} %")
    if published.get("difference") is not None:
        against = " / ".join((published.get("against") or {}).values())
        points = signed(100 * published["difference"])
        told.append(f"{points} points to {against or 'the first row'}")
    if published.get("note"):
        told.append(published["note"])
    measure = f"{published.get('protocol', '')}, {published.get('metric', '')}".strip(", ")
    return f"{', '.join(told)} ({'; '.join(x for x in (published.get('source'), measure) if x)})"
