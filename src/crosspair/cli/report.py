"""``crosspair report``: the results of several runs side by side, or an ablation's."""

from __future__ import annotations

import argparse
from pathlib import Path

from crosspair.cli.verbs import Verbs
from crosspair.errors import RunError


def add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report",
        help="the results of several runs side by side, as the paper's Tables 2 to 5 are",
        description="Tables of runs by protocols: each number with its settings and a link to its "
        "file, accuracies with their 95 %% intervals, chance and random weights where they were "
        "measured, and what was published of the same protocol. The folder of an ablation, given "
        "alone, gets its own report written anew.",
    )
    verb.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder that holds results.json, or a file of results, NAME=RUN to name it; or "
        "one folder of crosspair ablate",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, metavar="DIR",
        help="gets report.html, report.md and report.csv; those of an ablation are in its folder",
    )  # fmt: skip
    verb.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> None:
    from crosspair.reporting.ablation import ABLATION, write_ablation_report
    from crosspair.reporting.summary import read_runs
    from crosspair.reporting.summary_files import write_summary
    from crosspair.reporting.tabular import counted

    ablations = [run for run in options.runs if (Path(run) / ABLATION).is_file()]
    if ablations and (len(options.runs) > 1 or options.out):
        raise RunError(f"{ablations[0]} is an ablation: report it alone and without --out")
    if ablations:
        page = write_ablation_report(Path(ablations[0]))
        print(f"{page}: the ablation's report; report.md, report.csv beside it")
        return
    if options.out is None:
        raise RunError("--out DIR is missing: it gets report.html, report.md and report.csv")
    runs = read_runs(options.runs)
    tables = write_summary(options.out, runs)
    numbers = sum(len(row.cells) for table in tables for row in table.rows if row.run)
    print(
        f"{options.out / 'report.html'}: {numbers} numbers of {counted(len(runs), 'run')} in "
        f"{counted(len(tables), 'table')}; report.md, report.csv beside it"
    )
