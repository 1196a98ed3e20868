"""The report of an ablation: a page, the same in Markdown, and every number as csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosspair.files import write_atomically
from crosspair.reporting.ablation_figures import (
    dial_charts,
    dot_charts,
    examples,
    loss_panels,
    validation_panels,
)
from crosspair.reporting.ablation_tables import (
    DONE,
    Ablation,
    AblationTable,
    CellResult,
    TableRow,
    ablation_tables,
    headlines,
    read_ablation,
    shown_difference,
    shown_mean,
    t_quantile,
)
from crosspair.reporting.run_report import render_page
from crosspair.reporting.tables import FIELDS, Column, format_csv, format_signed, pluralize
from crosspair.reporting.titles import KINDS

_FIELDS = (
    "row", "of", *FIELDS, "seed", "value", "deviation", "seeds", "difference", "error", "low",
    "high", "status",
)  # fmt: skip


def write_ablation_report(out: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.csv``, each in one step.

    The csv has a line for each number as it is, seed by seed, a line for each mean (its seed is
    empty) with its difference to the first row, and a line for each cell that is not done.

    Args:
        out: the folder of ``crosspair ablate``; its cells may be done, failed or missing.

    Returns:
        The page.

    Raises:
        RunError: there is no ``ablation.json`` or it is damaged, or a file cannot be written.
    """
    ablation = read_ablation(out)
    tables = ablation_tables(ablation)
    told: dict[str, Any] = {
        "ablation": ablation,
        "tables": tables,
        "conclusion": conclusion(ablation, tables),
        "caution": caution(ablation, tables),
        "mean": shown_mean,
        "difference": shown_difference,
        "cells": _cells(ablation),
    }
    page = render_page(
        "ablation.html", **told, kinds=KINDS, examples=examples(ablation),
        charts=dial_charts(ablation, tables) or dot_charts(tables),
        validation=validation_panels(ablation), losses=loss_panels(ablation),
    )  # fmt: skip
    write_atomically(out / "report.md", render_page("ablation.md", **told))
    write_atomically(out / "report.csv", _csv(ablation, tables))
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _cells(ablation: Ablation) -> list[tuple[CellResult, str, dict[str, str]]]:
    """Each cell, a link to its file, and what is told of it beside its name."""
    told = []
    for cell in (each for cells in ablation.rows.values() for each in cells):
        file = cell.path / ("results.json" if cell.results else "log.txt")
        link = file.relative_to(ablation.folder).as_posix() if file.is_file() else ""
        numbers = {
            "pretrain, s": cell.seconds.get("pretrain"),
            "evaluate, s": cell.seconds.get("evaluate"),
            "fine-tune, s": cell.seconds.get("finetune"),
            "clips": cell.clips,
            "clips/s": cell.speed,
        }
        rounded = {head: "–" if n is None else f"{n:,.0f}" for head, n in numbers.items()}
        told.append((cell, link, {"seed": str(cell.seed), "status": cell.status, **rounded}))
    return told


def _csv(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    lines: list[dict[str, object]] = []
    for row in (row for table in tables for row in table.rows):
        for column, entry in row.entries.items():
            own = {"row": row.name, "of": row.of, **dict(zip(FIELDS, column.fields, strict=True))}
            lines += [
                {**own, "seed": seed, "value": value, "status": "done"}
                for seed, value in entry.values.items()
            ]
            mean, apart = entry.mean, entry.difference
            own |= {"value": mean.value, "deviation": mean.deviation, "seeds": mean.count}
            if apart:
                low, high = apart.interval or ("", "")
                own |= {"difference": apart.value, "error": apart.error, "low": low, "high": high}
            lines.append({**own, "status": "mean"})
    lines += [
        {"row": cell.name, "of": "trained", "seed": cell.seed, "status": cell.status}
        for cell in ablation.cells
        if not cell.results
    ]
    return format_csv(_FIELDS, ([line.get(name, "") for name in _FIELDS] for line in lines))


_FEW = 5  # seeds that are called few


def conclusion(ablation: Ablation, tables: Sequence[AblationTable]) -> list[str]:
    """What there is, and what is best by each protocol, a text each."""
    done = ablation.count(DONE)
    told = (
        f"{len(ablation.rows)} rows with {pluralize(ablation.seeds, 'seed')} each, compared with "
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
    told += f", {format_signed(100 * difference.value)} points to the first row"
    if difference.interval is None:
        seeds = "by one seed" if difference.count == 1 else "in every seed, so without an interval"
        return f"{told}, {seeds}"
    low, high = (format_signed(100 * end) for end in difference.interval)
    chance = "which chance between seeds can explain"
    if difference.told_apart:
        chance = "more than chance between seeds explains"
    return f"{told} (interval {low} to {high}): {chance}"


def _named(row: TableRow, column: Column) -> str:
    return f"“{row.name}” ({shown_mean(row.entries[column], column)})"
