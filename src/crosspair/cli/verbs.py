"""What verbs share: the place where they are added, and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_splits(verb: argparse.ArgumentParser, named: str) -> None:
    """``--splits``; ``named`` are the options that hold a place for a split's number."""
    verb.add_argument(
        "--splits", type=_splits, default=[], metavar="1,2,3",
        help=f"official splits, one after another: {{}} stands for their number in {named}; "
        "results are averaged",
    )  # fmt: skip


def add_profile(verb: argparse.ArgumentParser) -> None:
    """``--profile`` of a training."""
    verb.add_argument(
        "--profile", action="store_true",
        help="time the parts of 20 steps: a page and a trace for Perfetto in the folder profile/ "
        "of the run; its numbers stay as they are",
    )  # fmt: skip


def _splits(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of splits, as 1,2,3")
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names a split twice")
    return [int(number) for number in numbers]


def check_place(out: Path, option: str = "--out", example: str = "results.json") -> None:
    """See that results can be written to a file, before they are computed.

    Args:
        out: the file.
        option: that names it.
        example: of a file's name, for who names a folder.

    Raises:
        RunError: it is a folder, or lies in a file.
    """
    from crosspair.errors import RunError

    if out.is_dir():
        raise RunError(
            f"{option} names a file of results, and {out} is a folder; try {out / example}"
        )
    for folder in out.parents:
        if folder.is_file():
            raise RunError(f"{option} {out}: {folder} is a file, not a folder")


def whole_number(least: int) -> Callable[[str], int]:
    """A type of options."""

    def parsed(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return parsed
