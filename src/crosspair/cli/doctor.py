"""``crosspair doctor``: what this machine has, and what is missing for what."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosspair.doctor import Check


def add_doctor(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "doctor",
        help="what this machine has, what is missing for what, and how to mend it",
        epilog="Status: 1 if something is wrong or missing that is no optional extra.",
    )
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.set_defaults(verb=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from crosspair.doctor import examine

    checks = examine(Path())
    if options.json:
        print(json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2))
    else:
        _print(checks)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)


def _print(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        mark = "[green]ok[/green]" if check.ok else "[red]--[/red]"
        table.add_row(mark, check.name, escape(check.found))
    Console().print(table)
    for check in checks:
        if not check.ok:
            print(f"{check.name}, for {check.needed_for}: {check.mend}")
