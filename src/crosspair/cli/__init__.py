"""The command ``crosspair``: one thin function a verb. Heavy imports wait until a verb runs."""

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
    """Run a verb; a fault in the user's input ends it with one line and status 2."""
    options = _parser().parse_args(arguments)
    # Idle threads of the network must not spin on the cores that the decoding workers need: on two
    # cores that costs a quarter of the speed. It counts only if set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _log_to_terminal(options.quiet)
    try:
        options.verb(options)
    except CrosspairError as error:
        print(f"crosspair: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # what was half-built complains when it is taken down
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crosspair",
        description="Learn video representations from videos and the text that comes with them.",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for add in (
        add_quickstart, add_corpus, add_check, add_prepare, add_titles, add_words, add_plan,
        add_pretrain, add_finetune, add_features, add_evaluate, add_report, add_ablate,
        add_embed, add_classify, add_index, add_search, add_serve, add_doctor,
        add_import_weights, add_export, add_publish,
    ):  # fmt: skip
        add(verbs)
    return parser


def _log_to_terminal(quiet: bool) -> None:
    from rich.logging import RichHandler

    from crosspair.progress import console

    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=[handler]
    )
