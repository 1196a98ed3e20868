"""What verbs share: the place where they are added, options, and how processes join."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from crosspair.errors import CrosspairError, RunError

if TYPE_CHECKING:
    from crosspair.distributed import World


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_workers(verb: argparse.ArgumentParser) -> None:
    """``--workers``, of work that has the machine for itself."""
    verb.add_argument(
        "--workers", type=int_at_least(1), metavar="N", help="processes (default: one a core)"
    )


def add_seed(verb: argparse.ArgumentParser, of: str) -> None:
    """``--seed``; ``of`` says what is drawn by it."""
    verb.add_argument("--seed", type=int_at_least(0), default=0, help=f"of {of} (default: 0)")


def add_precision(verb: argparse.ArgumentParser) -> None:
    """``--precision`` of a network that only looks."""
    verb.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="of the network; auto: bf16 where the processor computes in it",
    )  # fmt: skip


def add_encoding(verb: argparse.ArgumentParser) -> None:
    """How a test looks at videos: ``--clips``, ``--workers``, ``--precision``."""
    verb.add_argument(
        "--clips", type=int_at_least(1), default=10, help="a video; the paper's and default: 10"
    )
    verb.add_argument(
        "--workers", type=int_at_least(0), default=2, help="decoding processes (default: 2)"
    )
    add_precision(verb)


def add_cluster(verb: argparse.ArgumentParser) -> None:
    """``--engine`` and ``--address``."""
    verb.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster with a shared file system",
    )  # fmt: skip
    verb.add_argument("--address", help="of the cluster, as auto (default: start Ray here)")


def uses_ray(options: argparse.Namespace) -> bool:
    """Whether a cluster is asked for.

    Raises:
        CrosspairError: the options do not go together.
    """
    ray = bool(options.engine == "ray")
    if options.address is not None and not ray:
        raise CrosspairError("--address is of a Ray cluster; add --engine ray")
    if ray and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CrosspairError("--engine ray starts processes by itself; leave out torchrun")
    return ray


@contextmanager
def distributed_context() -> Iterator[World]:
    """This process among those that ``torchrun`` started, of which the first one talks."""
    from crosspair.distributed import init_distributed

    with init_distributed() as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        yield world


def add_splits(verb: argparse.ArgumentParser, named: str) -> None:
    """``--splits``; ``named`` are the options that hold a place for a split's number."""
    verb.add_argument(
        "--splits", type=_splits, default=[], metavar="1,2,3",
        help=f"official splits, one after another: {{}} stands for their number in {named}; "
        "results are averaged",
    )  # fmt: skip


def _splits(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of splits, as 1,2,3")
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names a split twice")
    return [int(number) for number in numbers]


def check_output_path(out: Path, option: str = "--out", example: str = "results.json") -> None:
    """See that results can be written to a file, before they are computed.

    Args:
        out: the file.
        option: that names it.
        example: of a file's name, for who names a folder.

    Raises:
        RunError: it is a folder, lies in a file, or its folder cannot be written to.
    """
    if out.is_dir():
        raise RunError(
            f"{option} names a file of results, and {out} is a folder; try {out / example}"
        )
    for folder in out.parents:
        if folder.is_file():
            raise RunError(f"{option} {out}: {folder} is a file, not a folder")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()  # asked for leave, a superuser has it anywhere
    except OSError as error:
        raise RunError(f"{option} {out}: {there} cannot be written to: {error.strerror}") from error


def int_at_least(least: int) -> Callable[[str], int]:
    """A type of options."""

    def parsed(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return parsed
