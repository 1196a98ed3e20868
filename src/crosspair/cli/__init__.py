"""The ``crosspair`` command. Each command imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from crosspair.errors import CrosspairError

COMMANDS = {  # the module that defines add_COMMAND
    "quickstart": "train", "corpus": "corpora", "check": "corpora", "prepare": "corpora",
    "titles": "corpora", "words": "corpora", "benchmark": "train", "pretrain": "train",
    "finetune": "train", "features": "evaluate", "evaluate": "evaluate", "report": "evaluate",
    "ablate": "train", "embed": "use", "classify": "use", "index": "use", "search": "use",
    "serve": "use", "doctor": "use", "import-weights": "weights", "export": "weights",
    "publish": "weights",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A `CrosspairError` is printed on one line and exits with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((argument for argument in arguments if not argument.startswith("-")), "")
    # Other commands are needed for help and for error messages only.
    options = build_parser([named] if named in COMMANDS else COMMANDS).parse_args(arguments)
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


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of ``crosspair`` with only the named commands."""
    parser = argparse.ArgumentParser(
        prog="crosspair", description="Learn video representations from videos and their text."
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        module = import_module(f"crosspair.cli.{COMMANDS[name]}")
        getattr(module, f"add_{name.replace('-', '_')}")(commands)
    return parser


def _log_to_terminal(quiet: bool) -> None:
    from rich.logging import RichHandler

    from crosspair.progress import console

    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=[handler])
