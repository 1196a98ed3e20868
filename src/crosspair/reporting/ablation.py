"""The report of an ablation: a page, the same in Markdown, and every number as csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosspair.atomic import write_atomically
from crosspair.reporting.ablation_cells import ABLATION, Ablation, Cell, read_ablation
from crosspair.reporting.ablation_examples import examples
from crosspair.reporting.ablation_figures import (
    dial_charts,
    dot_charts,
    loss_panels,
    validation_panels,
)
from crosspair.reporting.ablation_tables import (
    AblationTable,
    ablation_tables,
    shown_difference,
    shown_mean,
)
from crosspair.reporting.ablation_words import caution, conclusion
from crosspair.reporting.columns import FIELDS
from crosspair.reporting.page import render
from crosspair.reporting.tabular import csv_text
from crosspair.reporting.title_picture import KINDS

__all__ = ["ABLATION", "write_ablation_report"]

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
    page = render(
        "ablation.html", **told, kinds=KINDS, examples=examples(ablation),
        charts=dial_charts(ablation, tables) or dot_charts(tables),
        validation=validation_panels(ablation), losses=loss_panels(ablation),
    )  # fmt: skip
    write_atomically(out / "report.md", render("ablation.md", **told))
    write_atomically(out / "report.csv", _csv(ablation, tables))
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _cells(ablation: Ablation) -> list[tuple[Cell, str, dict[str, str]]]:
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
    return csv_text(_FIELDS, ([line.get(name, "") for name in _FIELDS] for line in lines))
