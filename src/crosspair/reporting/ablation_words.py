"""What an ablation's numbers say, in plain sentences made from them."""

from __future__ import annotations

from collections.abc import Sequence

from crosspair.reporting.ablation_cells import DONE, Ablation
from crosspair.reporting.ablation_tables import AblationTable, TableRow, headlines, shown_mean
from crosspair.reporting.columns import Column
from crosspair.reporting.seeds import t_quantile
from crosspair.reporting.tabular import counted, signed

_FEW = 5  # seeds that are called few


def conclusion(ablation: Ablation, tables: Sequence[AblationTable]) -> list[str]:
    """What there is, and what is best by each protocol, a text each."""
    done = ablation.count(DONE)
    told = (
        f"{len(ablation.rows)} rows with {counted(ablation.seeds, 'seed')} each, compared with "
        f"“{ablation.first}”."
    )
    if done < len(ablation.cells):
        told += (
            f" Of {len(ablation.cells)} cells {done} are done, {ablation.count('failed')} failed "
            f"and {ablation.count('missing')} are missing."
        )
    return [told, *(_told(ablation, table, column) for table, column in headlines(tables))]


def caution(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    """What to bear in mind of the intervals."""
    if ablation.seeds == 1:
        return "One seed tells nothing of chance: how far two seeds lie apart is not known."
    entries = [e for table in tables for row in table.rows for e in row.entries.values()]
    compared = [e.difference for e in entries if e.difference and e.difference.interval]
    if not compared:
        return "No two rows share two seeds yet, so that nothing can be said of chance."
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
    rows = [row for row in table.rows if column in row.entries]
    trained = [row for row in rows if row.of == "trained"]
    seeds = {seed for row in trained for seed in row.entries[column].values}
    whole = [row for row in trained if seeds == set(row.entries[column].values)]
    ranked = sorted(whole, key=lambda row: row.entries[column].mean.value, reverse=True)
    named = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    tuned = column.protocol.endswith("views")
    told = f"Fine-tuned, {named}" if tuned else named
    if not whole:
        told += ": no row has all seeds yet."
    else:
        some = "" if whole == trained else f", of the {len(whole)} rows with all seeds"
        told += f"{some}: {_best(ablation, ranked, column)}."
    for row in rows:
        if row.of == "random weights":
            told += " From scratch it is " if tuned else " Random weights have "
            told += f"{shown_mean(row.entries[column], column)}."
    return told


def _best(ablation: Ablation, ranked: Sequence[TableRow], column: Column) -> str:
    """Which row is best, and what that is worth; of rows from the best on."""
    best, *others = ranked
    mean = best.entries[column].mean.value
    level = [row.name for row in ranked if row.entries[column].mean.value == mean]
    if len(level) > 1:
        names = ", ".join(f"“{name}”" for name in level)
        return f"{names} are level at {shown_mean(best.entries[column], column)}"
    told = f"{_named(best, column)} is best"
    if not others:
        return f"{told}, and the only one"
    is_first = best.name == ablation.first
    difference = (others[0] if is_first else best).entries[column].difference
    if difference is None:
        return f"{told}; it shares no seed with the first row"
    told += f"; next is {_named(others[0], column)}" if is_first else ""
    told += f", {signed(100 * difference.value)} points to the first row"
    if difference.interval is None:
        seeds = "by one seed" if difference.count == 1 else "in every seed, so without an interval"
        return f"{told}, {seeds}"
    low, high = (signed(100 * end) for end in difference.interval)
    chance = "which chance between seeds can explain"
    if difference.told_apart:
        chance = "more than chance between seeds explains"
    return f"{told} (interval {low} to {high}): {chance}"


def _named(row: TableRow, column: Column) -> str:
    return f"“{row.name}” ({shown_mean(row.entries[column], column)})"
