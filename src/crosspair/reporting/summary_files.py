"""The tables of several runs as files: for a page on the web, for text, for other programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crosspair.atomic import write_atomically
from crosspair.evaluation.origin import Provenance
from crosspair.reporting.columns import FIELDS
from crosspair.reporting.page import render
from crosspair.reporting.summary import Run, Table, summarise
from crosspair.reporting.tabular import csv_text

_FIELDS = (
    "table", "run", "of", "over", *FIELDS, "value", "low", "high", "count", "note", "results",
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
    told: dict[str, Any] = {
        "tables": tables,
        "explanation": _explanation(runs),
        # A colon in a folder's name would read as a scheme.
        "links": {run.name: quote(os.fsencode(_relative(folder, run)), safe="/") for run in runs},
        "origins": {run.name: _origin(run.origin) for run in runs},
    }
    write_atomically(folder / "report.md", render("summary.md", **told))
    write_atomically(folder / "report.csv", _csv(folder, tables))
    write_atomically(folder / "report.html", render("summary.html", **told))
    return tables


def _explanation(runs: Sequence[Run]) -> list[str]:
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


def _csv(folder: Path, tables: Sequence[Table]) -> str:
    return csv_text(_FIELDS, (
        [
            table.number, row.name, row.of, row.over, *column.fields, cell.value,
            *(cell.interval or ("", "")), cell.count or "", cell.note,
            _relative(folder, row.run) if row.run else "",
        ]
        for table in tables for row in table.rows for column, cell in row.cells.items()
    ))  # fmt: skip


def _origin(origin: Provenance) -> dict[str, str]:
    return {
        "weights": origin.model,
        "manifest": origin.data,
        "recipe": origin.recipe or "not known",
        "seed": str(origin.seed),
        "commit": origin.commit or "not in a checkout",
        "device": origin.machine.device,
        "created": origin.created,
    }


def _relative(folder: Path, run: Run) -> str:
    return Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix()
