"""``crosspair report``: the results of several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosspair.cli.verbs import Verbs


def add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report",
        help="the results of several runs side by side, as the paper's Tables 2 to 5 are",
        description="Tables of runs by protocols: each number with its 95 %% interval and its "
        "settings, a link to its file, chance and random weights where they were measured, and "
        "what was published of the same protocol.",
    )
    verb.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder that holds results.json, or a file of results; NAME=RUN to name it",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="gets report.html, report.md and report.csv",
    )  # fmt: skip
    verb.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspair.reporting.summary import read_runs
    from crosspair.reporting.summary_files import write_summary

    runs = read_runs(options.runs)
    tables = write_summary(options.out, runs)
    numbers = sum(len(row.cells) for table in tables for row in table.rows if row.run)
    print(
        f"{options.out / 'report.html'}: {numbers} numbers of {len(runs)} "
        f"{'run' if len(runs) == 1 else 'runs'} in {len(tables)} "
        f"{'table' if len(tables) == 1 else 'tables'}; report.md, report.csv beside it"
    )
