"""Tables of an ablation: rows by protocols, over seeds, beside the first row, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosspair.evaluation.results import Subject
from crosspair.reporting.ablation_cells import DONE, Ablation, Cell
from crosspair.reporting.columns import TITLES, Column, column_of, ordered, stands_in
from crosspair.reporting.seeds import Difference, Mean, mean_over, paired_difference
from crosspair.reporting.tabular import counted, signed


@dataclass(frozen=True)
class Entry:
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
    entries: Mapping[Column, Entry]
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


def shown_mean(entry: Entry, column: Column) -> str:
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
    told = signed(scale * difference.value)
    if difference.error is None:
        return told
    told += f" ± {scale * difference.error:.1f}"
    if difference.interval is None:
        return told
    low, high = (signed(scale * end) for end in difference.interval)
    return f"{told} ({low} to {high})"


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
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell.status, []).append(str(cell.seed))
    done = len(seeds.pop(DONE, ()))
    lost = [f"seed {', '.join(own)} {status}" for status, own in seeds.items()]
    whole = counted(len(cells), "seed")
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
                entries[column] = Entry(values)
        if entries:
            most = max(len(entry.values) for entry in entries.values())
            detail = f"{counted(most, 'seed')}; no pre-training" if of != "chance" else "guessing"
            rows.append(TableRow(of, of, detail, entries))
    return rows


def _values(cells: Sequence[Cell], column: Column, of: Subject) -> dict[int, float]:
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
        points = signed(100 * published["difference"])
        told.append(f"{points} points to {against or 'the first row'}")
    if published.get("note"):
        told.append(published["note"])
    measure = f"{published.get('protocol', '')}, {published.get('metric', '')}".strip(", ")
    return f"{', '.join(told)} ({'; '.join(x for x in (published.get('source'), measure) if x)})"
