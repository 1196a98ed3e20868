"""The tables of several runs as files: for a page on the web, for text, for other programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from crosspair.atomic import write_atomically
from crosspair.reporting.page import render_page
from crosspair.reporting.summary import Column, Row, Run, Table, is_rank, summarise
from crosspair.reporting.table import shown, shown_interval
from crosspair.reporting.tabular import csv_text, markdown_rows, plain

_FIELDS = (
    "table", "run", "of", "protocol", "metric", "feature", "split", "over", "classes", "labels",
    "value", "low", "high", "count", "note", "results",
)  # fmt: skip


def write_summary(folder: Path, runs: Sequence[Run]) -> list[Table]:
    """Write ``report.md``, ``report.csv`` and ``report.html``, each in one step.

    The csv has a line for each number, as it is rather than rounded: accuracies from 0 to 1.

    Args:
        folder: to write to; links to files of results are relative to it.
        runs: in the order to show them.

    Returns:
        The tables.

    Raises:
        RunError: a run holds two numbers for one place, or a file cannot be written.
    """
    tables = summarise(runs)
    contents = {
        "report.md": _markdown(folder, tables, runs),
        "report.csv": _csv(folder, tables),
        "report.html": render_page(
            "summary.html.j2",
            tables=tables,
            told=explanation(runs),
            is_rank=is_rank,
            origins=_ORIGIN,
            runs=[(run.name, _link(folder, run), _origin(run)) for run in runs],
            link=lambda run: _link(folder, run),
        ),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tables


def explanation(runs: Sequence[Run]) -> list[str]:
    """What to know before numbers are compared, a sentence each."""
    told = [
        "Beside a number, in parentheses or beneath it, is its 95 % interval: where it lies when "
        "the tested videos are drawn again. The small number tells of the note with its settings.",
        "Rows marked as published are not measured here: they are from the paper or from the "
        "source named, on the data set named.",
    ]
    if len({run.origin.manifest for run in runs}) > 1:
        told.append(
            "The runs were tested on different manifests (see Runs): numbers of one column "
            "compare only where the manifest is the same."
        )
    return told


def _markdown(folder: Path, tables: Sequence[Table], runs: Sequence[Run]) -> str:
    parts = ["# Results", " ".join(explanation(runs))]
    for table in tables:
        heads = [f"{column.title}<br>{column.detail}" for column in table.columns]
        rows = [
            [
                f"{plain(row.name)}<br>{row.detail}",
                *(_markdown_cell(folder, table, row, column) for column in table.columns),
            ]
            for row in table.rows
        ]
        notes = [f"{i}. {plain(note)}" for i, note in enumerate(table.notes, start=1)]
        parts += [f"## {table.title}", markdown_rows(["run", *heads], rows), "\n".join(notes)]
        if table.remark:
            parts.append(table.remark)
    origins = [
        [f"[{plain(run.name)}]({_link(folder, run)})", *map(plain, _origin(run))] for run in runs
    ]
    names = 1 + len(_ORIGIN)
    parts += ["## Runs", markdown_rows(["run", *_ORIGIN], origins, names=names)]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(folder: Path, table: Table, row: Row, column: Column) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return "–"
    value = shown(cell.value, is_rank(column))
    value = f"[{value}]({_link(folder, row.run)})" if row.run else f"*{value}*"
    interval = f" ({shown_interval(cell.interval)})" if cell.interval else ""
    return f"{value}{interval} <sup>{table.notes.index(cell.note) + 1}</sup>"


def _csv(folder: Path, tables: Sequence[Table]) -> str:
    rows = []
    for table in tables:
        for row in table.rows:
            for column, cell in row.cells.items():
                low, high = cell.interval or ("", "")
                rows.append([
                    table.number, row.name, row.of, column.protocol, column.metric, column.feature,
                    column.split, column.over, column.classes or "", f"{column.labels:g}",
                    cell.value, low, high, cell.count or "", cell.note,
                    _relative(folder, row.run) if row.run else "",
                ])  # fmt: skip
    return csv_text(_FIELDS, rows)


_ORIGIN = ("weights", "manifest", "recipe", "seed", "commit", "device", "created")


def _origin(run: Run) -> list[str]:
    origin = run.origin
    return [
        origin.model, origin.data, origin.recipe or "not known", str(origin.seed),
        origin.commit or "not in a checkout", origin.machine.device, origin.created,
    ]  # fmt: skip


def _link(folder: Path, run: Run) -> str:
    # A colon in a folder's name would read as a scheme.
    return quote(_relative(folder, run), safe="/")


def _relative(folder: Path, run: Run) -> str:
    return Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix()
