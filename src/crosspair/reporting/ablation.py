"""The report of an ablation: a page, the same in Markdown, and every number as csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosspair.atomic import write_atomically
from crosspair.reporting.ablation_cells import ABLATION, Ablation, read_ablation
from crosspair.reporting.ablation_examples import examples
from crosspair.reporting.ablation_figures import (
    dial_charts,
    dot_charts,
    loss_panels,
    validation_panels,
)
from crosspair.reporting.ablation_tables import (
    AblationTable,
    TableRow,
    ablation_tables,
    shown_difference,
    shown_mean,
)
from crosspair.reporting.ablation_words import caution, conclusion
from crosspair.reporting.page import render_page
from crosspair.reporting.summary import Column
from crosspair.reporting.tabular import csv_text, markdown_rows, plain
from crosspair.reporting.titles import KINDS

__all__ = ["ABLATION", "write_ablation_report"]

_FIELDS = (
    "row", "of", "protocol", "metric", "feature", "split", "over", "classes", "labels", "seed",
    "value", "deviation", "seeds", "difference", "error", "low", "high", "status",
)  # fmt: skip
_CELL = ("row", "seed", "status", "pretrain, s", "evaluate, s", "fine-tune, s", "clips", "clips/s")


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
    page = render_page(
        "ablation.html.j2",
        ablation=ablation,
        tables=tables,
        conclusion=conclusion(ablation, tables),
        caution=caution(ablation, tables),
        charts=dial_charts(ablation, tables) or dot_charts(tables),
        validation=validation_panels(ablation),
        losses=loss_panels(ablation),
        examples=examples(ablation),
        kinds=KINDS,
        heads=_CELL,
        cells=_cells(ablation),
        mean=shown_mean,
        difference=shown_difference,
    )
    write_atomically(out / "report.md", _markdown(ablation, tables))
    write_atomically(out / "report.csv", _csv(ablation, tables))
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _cells(ablation: Ablation) -> list[tuple[str, str, list[str]]]:
    """A link, an error and what the table of cells says, for each cell."""
    told = []
    for cell in (each for cells in ablation.rows.values() for each in cells):
        seconds = [cell.seconds.get(step) for step in ("pretrain", "evaluate", "finetune")]
        file = "results.json" if cell.results else "log.txt"
        told.append((
            f"{cell.folder}/{file}" if (cell.path / file).is_file() else "",
            cell.error,
            [
                cell.name, str(cell.seed), cell.status,
                *("–" if each is None else f"{each:,.0f}" for each in seconds),
                f"{cell.clips:,}", "–" if cell.speed is None else f"{cell.speed:,.0f}",
            ],
        ))  # fmt: skip
    return told


def _markdown(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    whole, *best = (plain(each) for each in conclusion(ablation, tables))
    parts = [f"# {plain(ablation.title)}", whole, "\n".join(f"- {each}" for each in best)]
    parts.append(plain(caution(ablation, tables)))
    for table in tables:
        published = ["published, not measured here"] if table.is_published else []
        heads = [f"{column.title}<br>{column.detail}" for column in table.columns]
        rows = [
            [
                f"{plain(row.name)}<br>{row.detail}",
                *(_markdown_cell(row, column) for column in table.columns),
                *([f"*{plain(row.published)}*" if row.published else ""] if published else []),
            ]
            for row in table.rows
        ]
        parts += [f"## {table.title}", markdown_rows(["row", *heads, *published], rows)]
    cells = [
        [f"[{plain(told[0])}]({link})" if link else plain(told[0]), *told[1:], plain(error)]
        for link, error, told in _cells(ablation)
    ]
    parts += ["## Cells", markdown_rows([*_CELL, "error"], cells)]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(row: TableRow, column: Column) -> str:
    entry = row.entries.get(column)
    if entry is None:
        return row.lacking
    told = shown_difference(entry.difference, column)
    bold = entry.difference is not None and entry.difference.told_apart
    return shown_mean(entry, column) + (f"<br>{f'**{told}**' if bold else told}" if told else "")


def _csv(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    lines: list[Sequence[object]] = []
    for table in tables:
        for row in table.rows:
            for column, entry in row.entries.items():
                own = [
                    row.name, row.of, column.protocol, column.metric, column.feature, column.split,
                    column.over, column.classes or "", f"{column.labels:g}",
                ]  # fmt: skip
                empty = [""] * 6
                lines += [[*own, s, v, *empty, "done"] for s, v in entry.values.items()]
                mean, apart = entry.mean, entry.difference
                told = [apart.value, apart.error, *(apart.interval or "  ")] if apart else empty[:4]
                lines.append([*own, "", mean.value, mean.deviation, mean.count, *told, "mean"])
    for cell in ablation.cells:
        if not cell.results:
            empty = [""] * 7
            lines.append([cell.name, "trained", *empty, cell.seed, "", *empty[1:], cell.status])
    return csv_text(_FIELDS, lines)
