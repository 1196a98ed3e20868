"""The tables of several runs as files: for a page on the web, for text, for other programs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from crosspair.atomic import write_atomically
from crosspair.reporting.summary import Cell, Column, Row, Run, Table, is_rank, summarise
from crosspair.reporting.table import shown

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
        "report.html": _page(folder, tables, runs),
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
    lines = ["# Results", "", " ".join(explanation(runs)), ""]
    for table in tables:
        heads = [f"{column.title}<br>{column.detail}" for column in table.columns]
        lines += [f"## {table.title}", ""]
        lines += [_line(["run", *heads]), _line(["---", *["--:"] * len(heads)])]
        for row in table.rows:
            cells = [_markdown_cell(folder, table, row, column) for column in table.columns]
            lines.append(_line([f"{_plain(row.name)}<br>{row.detail}", *cells]))
        lines += ["", *(f"{i}. {_plain(note)}" for i, note in enumerate(table.notes, start=1)), ""]
        if table.remark:
            lines += [table.remark, ""]
    lines += ["## Runs", "", _line(["run", *_ORIGIN]), _line(["---"] * (len(_ORIGIN) + 1))]
    for run in runs:
        name = f"[{_plain(run.name)}]({_link(folder, run)})"
        lines.append(_line([name, *(_plain(each) for each in _origin(run))]))
    return "\n".join(lines) + "\n"


def _markdown_cell(folder: Path, table: Table, row: Row, column: Column) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return "–"
    value = shown(cell.value, is_rank(column))
    value = f"[{value}]({_link(folder, row.run)})" if row.run else f"*{value}*"
    interval = f" ({_interval(cell)})" if cell.interval else ""
    return f"{value}{interval} <sup>{table.notes.index(cell.note) + 1}</sup>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _csv(folder: Path, tables: Sequence[Table]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_FIELDS)
    for table in tables:
        for row in table.rows:
            for column, cell in row.cells.items():
                low, high = cell.interval or ("", "")
                writer.writerow([
                    table.number, row.name, row.of, column.protocol, column.metric, column.feature,
                    column.split, column.over, column.classes or "", f"{column.labels:g}",
                    cell.value, low, high, cell.count or "", cell.note,
                    _relative(folder, row.run) if row.run else "",
                ])  # fmt: skip
    return file.getvalue()


def _page(folder: Path, tables: Sequence[Table], runs: Sequence[Run]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        interval=_interval,
        link=lambda run: _link(folder, run),
        origin=_origin,
        value=lambda cell, column: shown(cell.value, is_rank(column)),
    )
    return environment.from_string(_resource("summary.html.j2")).render(
        look=Markup(_look()), tables=tables, runs=runs, told=explanation(runs), origins=_ORIGIN
    )


_ORIGIN = ("weights", "manifest", "recipe", "seed", "commit", "device", "created")


def _origin(run: Run) -> list[str]:
    origin = run.origin
    return [
        origin.model, origin.manifest, origin.recipe or "not known", str(origin.seed),
        origin.commit or "not in a checkout", origin.machine.device, origin.created,
    ]  # fmt: skip


def _interval(cell: Cell) -> str:
    return f"{100 * cell.interval[0]:.1f}–{100 * cell.interval[1]:.1f}" if cell.interval else ""


def _link(folder: Path, run: Run) -> str:
    # A colon in a folder's name would read as a scheme.
    return quote(_relative(folder, run), safe="/")


def _relative(folder: Path, run: Run) -> str:
    return Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix()


def _look() -> str:
    """The style of the other reports, so that all pages look alike."""
    return _resource("report.html.j2").partition("<style>")[2].partition("</style>")[0]


def _resource(name: str) -> str:
    return resources.files("crosspair.reporting").joinpath(name).read_text("utf-8")
