"""``crosspair check``: whether the videos of a manifest can be used."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import Verbs, add_workers, check_place

if TYPE_CHECKING:
    from crosspair.corpora.check import Checked


def add_check(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "check",
        help="look at every video of a manifest, and mark those that cannot be used",
        epilog="Status: 0 if every video can be used, 1 if not, 2 for a fault in what was given.",
    )
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument(
        "--decode", action="store_true",
        help="decode every frame, too; a check that was stopped goes on where it was",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, metavar="MANIFEST2", help="write here (default: over MANIFEST)"
    )
    verb.add_argument(
        "--list", type=Path, metavar="FILE.csv",
        help="write a list of what was found: pair_id, path, kind, message",
    )  # fmt: skip
    add_workers(verb)
    verb.add_argument(
        "--timeout", type=_seconds, metavar="S",
        help="seconds for a file (default: 20; with --decode 60, and its own length)",
    )  # fmt: skip
    verb.set_defaults(verb=_check)


def _check(options: argparse.Namespace) -> None:
    from crosspair.corpora import Manifest
    from crosspair.corpora.check import check
    from crosspair.progress import progress

    if options.list:
        check_place(options.list, "--list", "list.csv")
    manifest = Manifest.read(options.manifest)
    videos = len({clip.path for clip in manifest.clips()})
    try:
        with progress("decoding" if options.decode else "checking", videos, "videos") as bar:
            checked = check(
                manifest, options.out, decode=options.decode, workers=options.workers,
                seconds=options.timeout, progress=bar.advance,
            )  # fmt: skip
    except KeyboardInterrupt:
        if options.decode:
            print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    if options.list:
        checked.write_list(options.list)
    _print_summary(checked, options.list)
    sys.exit(1 if checked.broken else 0)


def _print_summary(checked: Checked, listed: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", box=None, header_style="bold", pad_edge=False)
    table.add_column("videos", justify="right")
    table.add_column("pairs", justify="right")
    table.add_column("training")
    for kind, (videos, pairs) in checked.counts().items():
        use = "[red]leaves them out[/red]" if kind.broken else "uses them"
        table.add_row(kind.value, f"{videos:,}", f"{pairs:,}", use)
    Console().print(table)
    total = len(checked.manifest)
    print(f"{checked.manifest.path}: {total - checked.broken} of {total} pairs can be used")
    if listed:
        print(f"{listed}: what is the matter with which")
    elif any(verdict.reason for verdict in checked.verdicts):
        print("--list FILE.csv tells what is the matter with which")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number
