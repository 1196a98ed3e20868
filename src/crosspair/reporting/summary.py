"""Summary of several runs: their results in tables that follow the paper's Tables 2 to 5."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from crosspair.errors import RunError
from crosspair.evaluation.results import SUBJECTS, Result, read_results
from crosspair.files import write_atomically
from crosspair.provenance import Provenance
from crosspair.reporting.tables import (
    COLUMN_FIELDS,
    TABLE_TITLES,
    Column,
    ReportTable,
    TableCell,
    check_unique,
    format_csv,
    format_interval,
    format_value,
    render_page,
    results_frame,
    sort_columns,
)

RESULTS = "results.json"
PUBLISHED = pd.read_csv(str(resources.files(__package__) / "published.csv"))
_CSV_FIELDS = ["table", "run", "of", "over", *COLUMN_FIELDS, "value", "low", "high", "count", "note", "results"]
_EXPLANATION = [
    "Ranges below a value are 95 % bootstrap intervals over the test videos; clips of one recording are resampled "
    "together. The superscript refers to the note with the settings of the protocol.",
    "Rows marked as published were not measured here. Their values are from the given source and data set.",
]
_MANIFESTS_DIFFER = (
    "The runs were tested on different manifests (see Runs). Values of a column are comparable only for the same "
    "manifest."
)
_LOW_SHOT_REMARK = (
    "The paper has no such probe: it fine-tunes the whole network on a fraction of the labels (Appendix B, Table 4), "
    "which is not comparable."
)


@dataclass(frozen=True)
class Run:
    """A results file and the name of its rows."""

    name: str
    path: Path
    results: Sequence[Result]
    origin: Provenance

    def link(self, folder: Path) -> str:
        """Return the path of the results file relative to a folder."""
        return Path(os.path.relpath(self.path.resolve(), folder.resolve())).as_posix()


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read the runs given on the command line.

    Args:
        arguments: run folders that contain ``results.json``, or results files, optionally as
            ``NAME=PATH``. The default name is that of the folder, or that of the file if it is not
            named ``results.json``.

    Raises:
        RunError: a run does not exist, is empty or is not a results file, or two have the same
            name.
    """
    runs: dict[str, Run] = {}
    for argument in arguments:
        name, sign, rest = argument.partition("=")
        if not sign or not name or Path(argument).exists():
            name, rest = "", argument
        path = Path(rest) / RESULTS if Path(rest).is_dir() else Path(rest)
        results, origin = read_results(path)
        if not results:
            raise RunError(f"{path} contains no results. Evaluate the run again.")
        file = path.resolve()
        name = name or (file.parent.name if file.name == RESULTS else file.stem)
        # Names of folders that are not UTF-8 have lone surrogates, which data frames reject.
        name = name.encode(errors="backslashreplace").decode()
        if name in runs:
            raise RunError(f"two runs are named {name!r}: {runs[name].path} and {path}. Name them with NAME=PATH.")
        runs[name] = Run(name, path, results, origin)
    return list(runs.values())


def write_summary(folder: Path, runs: Sequence[Run]) -> pd.DataFrame:
    """Write ``report.md``, ``report.csv`` and ``report.html``.

    The CSV file has one unrounded value per line; accuracies are fractions.

    Args:
        folder: output folder; links to results files are relative to it.
        runs: in the order of the rows.

    Returns:
        The data frame of `summary_frame`.

    Raises:
        RunError: a run has two values for the same cell, or a file cannot be written.
    """
    frame = summary_frame(runs, folder)
    tables = [*summary_tables(frame), _runs_table(runs, folder)]
    differ = len({run.origin.manifest for run in runs}) > 1
    explanation = [*_EXPLANATION, *[_MANIFESTS_DIFFER] * differ]
    blocks = ["# Results", " ".join(explanation), *(table.markdown() for table in tables)]
    write_atomically(folder / "report.md", "\n\n".join(blocks) + "\n")
    write_atomically(folder / "report.csv", format_csv(frame[_CSV_FIELDS]))
    write_atomically(folder / "report.html", render_page("summary.html", tables=tables, explanation=explanation))
    return frame


def summary_frame(runs: Sequence[Run], folder: Path = Path()) -> pd.DataFrame:
    """Return the values of all runs, followed in each table by published values.

    Args:
        runs: in the order of the rows.
        folder: paths of results files are relative to it.

    Returns:
        See `crosspair.reporting.tables.results_frame`; also ``run``, its name or the published
        method; ``results``, the path of its file; and ``detail``, the small print of its row.
        ``of`` is "published" for published values.

    Raises:
        RunError: a file has two values for the same cell.
    """
    frames = [results_frame(run.results, run=run.name, results=run.link(folder)) for run in runs]
    for run, measured in zip(runs, frames, strict=True):
        try:
            check_unique(measured, ["over", "column"])
        except RunError as error:
            raise RunError(f"{run.path}: {error}") from None
    frame = pd.concat(frames, ignore_index=True)
    frame["detail"] = (frame.of + "; " + frame.over).str.removesuffix("; ")
    others = [of for of in frame.of.unique() if of not in SUBJECTS]
    orders = {
        "table": list(TABLE_TITLES), "run": [run.name for run in runs],
        "of": [SUBJECTS[0], *others, *SUBJECTS[1:]], "over": list(frame.over.unique()),
    }  # fmt: skip
    frame = frame.sort_values(list(orders), key=lambda each: each.map(orders[each.name].index))
    tables = [table for _, table in frame.groupby("table", sort=False)]
    parts = [part for table in tables for part in (table, _published_frame(sort_columns(table.column)))]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _published_frame(columns: Sequence[Column]) -> pd.DataFrame:
    """Return published top-1 values: per column, those with its number of classes, or else the paper's own."""
    rows = []
    for column in (each for each in columns if each.metric == "top-1"):
        found = PUBLISHED[(PUBLISHED.protocol == column.protocol) & (PUBLISHED.labels == column.labels)]
        same_data = found[found.classes == (column.classes or 0)]
        remark = "" if len(same_data) else " (not the data of this column)"
        for each in (same_data if len(same_data) else found[found.method.str.startswith("CPD")]).itertuples():
            note = f"published, {each.source}: {each.data}, {each.classes} classes{remark}"
            detail = f"published: {each.source}; {each.data}; network: {each.network}; pre-training: {each.pretrained}"
            value = round(each.percent / 100, 3)
            fields = (each.method, "published", "", "", value, note, detail)
            rows.append((each.Index, column, *astuple(column), column.table, *fields))
    head = ["index", "column", *COLUMN_FIELDS, "table", "run", "of", "over", "results", "value", "note", "detail"]
    return pd.DataFrame(rows, columns=head, dtype=object).sort_values("index", kind="stable")


def summary_tables(frame: pd.DataFrame) -> list[ReportTable]:
    """Build a table of runs by columns for each of the paper's tables that has values."""
    frame = frame.astype(object).where(frame.notna(), None)
    tables = []
    for number, values in frame.groupby("table", sort=False):
        columns, notes = sort_columns(values.column), list(dict.fromkeys(values.note))
        cells = {}
        for row in values.itertuples():
            interval = "" if row.low is None else format_interval((row.low, row.high))
            value, link = format_value(row.value, row.column.is_rank), quote(os.fsencode(row.results))
            cell = TableCell(value, interval, link, notes.index(row.note) + 1, _row_style(row.of))
            cells[row.run, row.of, row.detail, row.column] = cell
        rows = [
            [TableCell(name, detail, style=_row_style(of)),
             *(cells.get((name, of, detail, column), TableCell("–")) for column in columns)]
            for name, of, detail in dict.fromkeys(key[:3] for key in cells)
        ]  # fmt: skip
        head = [TableCell("run"), *(TableCell(column.title, column.detail) for column in columns)]
        title = TABLE_TITLES[number] + (f" (the paper's Table {number})" if number.isdigit() else "")
        remark = _LOW_SHOT_REMARK if number == "low-shot" else ""
        tables.append(ReportTable(f"table-{number}", title, head, rows, notes, remark))
    return tables


def _row_style(of: str) -> str:
    return {"trained": "main", "published": "published"}.get(of, "")


def _runs_table(runs: Sequence[Run], folder: Path) -> ReportTable:
    """Build the table of each run's provenance, not its results: weights, manifest, recipe, commit, …."""
    head = ["run", "weights", "manifest", "recipe", "seed", "commit", "device", "created"]
    rows = []
    for run in runs:
        origin, link = run.origin, quote(os.fsencode(run.link(folder)))
        texts = [origin.model, origin.data, origin.recipe or "unknown", str(origin.seed), origin.commit or "unknown"]
        rows.append([
            TableCell(run.name, link=link), *map(TableCell, [*texts, origin.machine.device, origin.created]),
        ])  # fmt: skip
    return ReportTable("runs", "Runs", list(map(TableCell, head)), rows)
