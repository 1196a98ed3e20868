"""What an ablation's numbers say, in plain sentences made from them."""

from __future__ import annotations

from collections.abc import Sequence

from crosspair.reporting.ablation_cells import DONE, Ablation
from crosspair.reporting.ablation_tables import (
    AblationTable,
    TableRow,
    headlines,
    shown_mean,
    signed,
)
from crosspair.reporting.seeds import t_quantile
from crosspair.reporting.summary import Column, is_rank

_FEW = 5  # seeds that are called few


def conclusion(ablation: Ablation, tables: Sequence[AblationTable]) -> list[str]:
    """What there is, and what is best by each protocol, a text each."""
    rows, done = len(ablation.rows), ablation.count(DONE)
    seeds = "1 seed" if ablation.seeds == 1 else f"{ablation.seeds} seeds"
    told = f"{rows} rows with {seeds} each, compared with “{ablation.first}”."
    lost = len(ablation.cells) - done
    if lost:
        told += (
            f" Of {len(ablation.cells)} cells {done} are done, {ablation.count('failed')} failed "
            f"and {ablation.count('missing')} are missing."
        )
    return [told, *(_told(ablation, table, column) for table, column in headlines(tables))]


def caution(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    """What to bear in mind of the intervals."""
    compared = [
        entry.difference
        for table in tables
        for row in table.rows
        for entry in row.entries.values()
        if entry.difference is not None and entry.difference.interval is not None
    ]
    if ablation.seeds == 1:
        return "One seed tells nothing of chance: how far two seeds lie apart is not known."
    told = (
        "Beneath a mean is its difference to the first row over the same seeds, ± its standard "
        "error, with its 95 % interval by Student's t-distribution."
    )
    if ablation.seeds <= _FEW:
        told += (
            f" {ablation.seeds} seeds are few: an interval reaches "
            f"{t_quantile(ablation.seeds - 1):.1f} standard errors to each side, and the standard "
            "errors themselves are rough."
        )
    apart = sum(difference.told_apart for difference in compared)
    return (
        f"{told} Of {len(compared)} differences {apart} have an interval without zero (bold); of "
        f"as many where nothing differs, about {len(compared) / 20:.0f} would have one."
    )


def _told(ablation: Ablation, table: AblationTable, column: Column) -> str:
    told = _best(ablation, table, column)
    for row in table.rows:
        if row.of == "random weights" and column in row.entries:
            told += f" Random weights have {shown_mean(row.entries[column], column)}."
    return told


def _best(ablation: Ablation, table: AblationTable, column: Column) -> str:
    ranked = sorted(
        (row for row in table.rows if row.of == "trained" and column in row.entries),
        key=lambda row: row.entries[column].mean.value * (1 if is_rank(column) else -1),
    )
    named = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    named = f"Fine-tuned, {named}" if column.protocol.endswith("views") else named
    best = ranked[0]
    value = best.entries[column].mean.value
    level = [row for row in ranked if row.entries[column].mean.value == value]
    if len(level) > 1:
        names = ", ".join(f"“{row.name}”" for row in level)
        return f"{named}: {names} are level at {shown_mean(best.entries[column], column)}."
    told = f"{named}: {_named(best, column)} is best"
    if len(ranked) == 1:
        return f"{told}, and the only one."
    own = best.name == ablation.first
    other = ranked[1] if own else best
    difference = other.entries[column].difference
    if difference is None:
        return f"{told}; it shares no seed with the first row."
    told += f"; next is {_named(other, column)}" if own else ""
    told += f", {signed(100 * difference.value)} points to the first row"
    if difference.interval is None:
        seeds = "by one seed" if difference.count == 1 else "in every seed, so without an interval"
        return f"{told}, {seeds}."
    low, high = (signed(100 * end) for end in difference.interval)
    verdict = (
        "more than chance between seeds explains"
        if difference.told_apart
        else "which chance between seeds can explain"
    )
    return f"{told} (interval {low} to {high}): {verdict}."


def _named(row: TableRow, column: Column) -> str:
    return f"“{row.name}” ({shown_mean(row.entries[column], column)})"
