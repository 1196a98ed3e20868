"""The report of one run: its results, what it finds, how it learnt, where it comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from crosspair.atomic import write_atomically
from crosspair.evaluation.origin import Provenance
from crosspair.evaluation.results import Result
from crosspair.reporting.curves import Curve
from crosspair.reporting.page import render
from crosspair.reporting.sheets import Sheet
from crosspair.reporting.table import comparison


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    results: Sequence[Result],
    provenance: Provenance,
    curves: Sequence[Curve] = (),
    sheets: Sequence[Sheet] = (),
    facts: Sequence[tuple[str, str]] = (),
    recipe: str = "",
) -> None:
    """Write a report in one step.

    Args:
        path: the HTML file.
        title: plain text, as is every text here.
        summary: a paragraph under the title.
        results: what the table is made of, see `crosspair.reporting.table.comparison`.
        provenance: where the results come from.
        curves: figures in the order to show them.
        sheets: queries with the clips that they found.
        facts: names and values of what else is to be known: pairs, seconds spent.
        recipe: the recipe's YAML.

    Raises:
        RunError: the file cannot be written, or two results claim the same cell of the table.
    """
    page = render(
        "run.html", title=title, summary=summary, rows=comparison(results),
        provenance=provenance, curves=curves, sheets=sheets, facts=facts, recipe=recipe,
    )  # fmt: skip
    write_atomically(Path(path), page)
