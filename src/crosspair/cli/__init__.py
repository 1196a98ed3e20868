"""The ``crosspair`` command. Each command imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from crosspair.cli.corpora import add_check, add_corpus, add_prepare, add_titles, add_words
from crosspair.cli.evaluate import add_evaluate, add_features, add_report
from crosspair.cli.train import add_ablate, add_finetune, add_plan, add_pretrain, add_quickstart
from crosspair.cli.use import add_classify, add_doctor, add_embed, add_index, add_search, add_serve
from crosspair.cli.weights import add_export, add_import_weights, add_publish
from crosspair.errors import CrosspairError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A `CrosspairError` is printed on one line and exits with status 2."""
    options = build_parser().parse_args(arguments)
    # Idle OpenMP threads that spin take CPU time from the decoding workers: a quarter of the speed
    # on two cores. The variable has an effect only if it is set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _log_to_terminal(options.quiet)
    try:
        options.command(options)
    except CrosspairError as error:
        print(f"crosspair: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # destructors of half-built objects may raise
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="crosspair", description="Learn video representations from videos and their text."
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_quickstart, add_corpus, add_check, add_prepare, add_titles, add_words, add_plan,
        add_pretrain, add_finetune, add_features, add_evaluate, add_report, add_ablate,
        add_embed, add_classify, add_index, add_search, add_serve, add_doctor,
        add_import_weights, add_export, add_publish,
    ):  # fmt: skip
        add(commands)
    return parser


def _log_to_terminal(quiet: bool) -> None:
    from rich.logging import RichHandler

    from crosspair.progress import console

    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=[handler]
    )
