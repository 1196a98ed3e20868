"""``crosspair ablate``: the paper's ablations, at a size one can afford."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import Verbs, whole_number

if TYPE_CHECKING:
    from crosspair.ablation import Cell, Plan


def add_ablate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "ablate",
        help="run an ablation: every row of a plan with every seed, and a report",
        description="Pre-train, test and perhaps fine-tune one cell for each row and seed of a "
        "plan, all on equally many clips. What is done is never run again: the same command goes "
        "on after a kill, and tries again what failed.",
        epilog="Status 1: cells failed, as the report and the end of their logs tell. A plan that "
        "renders its pairs needs no data. Plans for your own: table-1a-ucf and so on, of any "
        "manifest with labels; the paper's sizes: table-1a-paper and so on.",
    )
    verb.add_argument("plan", metavar="PLAN", help="as table-1a, noise, batch; or my.yaml")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="right after PLAN: a key of the recipe for all cells, as training.epochs=5; of the "
        "plan, as seeds=0, corpus.pairs=500; or what the plan needs, as transformer=DIR",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for all")
    verb.add_argument("--manifest", metavar="M", help="the pairs, for a plan that renders none")
    verb.add_argument(
        "--only", action="append", default=[], metavar="ROW",
        help='run these rows only: a row\'s name, as ranking, or "words / joint", or words for '
        "all with it; may be given several times",
    )  # fmt: skip
    verb.add_argument(
        "--jobs", type=whole_number(1), default=1, metavar="N",
        help="cells at a time; they share the cores, and take the GPUs in turn (default: 1)",
    )  # fmt: skip
    verb.add_argument("--dry-run", action="store_true", help="tell what would be run, and end")
    verb.add_argument(
        "--report-only", action="store_true", help="report what is there, run nothing"
    )
    verb.set_defaults(verb=_ablate)


def _ablate(options: argparse.Namespace) -> None:
    from crosspair.ablation import ablate, read_plan

    plan = read_plan(options.plan, options.overrides)
    if options.dry_run:
        _tell(plan, options)
        return
    outcome = ablate(
        plan, options.out,
        manifest=options.manifest, only=options.only, jobs=options.jobs,
        report_only=options.report_only,
    )  # fmt: skip
    told = f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed"
    print(f"{outcome.report or options.out}: {told}")
    if outcome.stopped:
        sys.exit(130)
    if outcome.failed:
        sys.exit(1)


def _tell(plan: Plan, options: argparse.Namespace) -> None:
    from crosspair.ablation import planned
    from crosspair.ablation.cells import select
    from crosspair.ablation.ledger import status

    _, every = planned(plan, options.out, options.manifest)
    cells = select(every, options.only)
    print(f"{plan.title}: {len(cells)} cells; all {len(every)} are meant to take "
          f"{plan.minutes:g} minutes")  # fmt: skip
    for cell in cells:
        print(_line(cell, status(options.out / cell.folder)))


def _line(cell: Cell, status: str) -> str:
    return f"{cell.hash}  {status:7}  {cell.clips:,} clips of {cell.pairs:,} pairs  {cell.name}"
