"""Options and checks that several commands have in common."""

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

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers`` for work that may use the whole machine."""
    parser.add_argument(
        "--workers", type=int_at_least(1), metavar="N",
        help="worker processes (default: number of cores)",
    )  # fmt: skip


def add_seed(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--seed``; ``purpose`` names the random choices that it determines."""
    parser.add_argument("--seed", type=int_at_least(0), default=0, help=f"random seed of {purpose} (default: 0)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision`` for inference."""
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="precision of the network; auto (default): bf16 if the device supports it in hardware",
    )  # fmt: skip


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add ``--clips``, ``--workers`` and ``--precision`` for an evaluation."""
    parser.add_argument(
        "--clips", type=int_at_least(1), default=10,
        help="clips per video (default: 10, as in the paper)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int_at_least(0), default=2, help="decoding processes (default: 2)")
    add_precision(parser)


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add ``--batch-size`` for inference."""
    parser.add_argument(
        "--batch-size", type=int_at_least(1), default=32,
        help="maximum number of clips per forward pass (default: 32)",
    )  # fmt: skip


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--address``."""
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="run on processes of this machine (default), or on a Ray cluster with a shared file "
        "system",
    )  # fmt: skip
    parser.add_argument("--address", help="address of the Ray cluster, for example auto (default: start Ray here)")


def uses_ray(options: argparse.Namespace) -> bool:
    """Return whether ``--engine ray`` is given.

    Raises:
        CrosspairError: ``--address`` or ``torchrun`` conflicts with ``--engine``.
    """
    ray = bool(options.engine == "ray")
    if options.address is not None and not ray:
        raise CrosspairError("--address requires --engine ray")
    if ray and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CrosspairError("--engine ray starts its own processes; run it without torchrun")
    return ray


@contextmanager
def distributed_context() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, and silence the logs of all but rank 0."""
    from crosspair.distributed import init_distributed

    with init_distributed() as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        yield world


def add_splits(parser: argparse.ArgumentParser, options: str) -> None:
    """Add ``--splits``; ``options`` lists the options in which ``{}`` is the split number."""
    parser.add_argument(
        "--splits", type=_parse_splits, default=[], metavar="1,2,3",
        help=f"official splits to run one after another; their numbers replace {{}} in {options}; "
        "results are averaged",
    )  # fmt: skip


def _parse_splits(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of split numbers such as 1,2,3")
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} contains a split more than once")
    return [int(number) for number in numbers]


def check_output_path(out: Path, option: str = "--out", example: str = "results.json") -> None:
    """Check that an output file can be written, before its content is computed.

    Args:
        out: output file.
        option: option that sets it.
        example: file name to suggest if ``out`` is a folder.

    Raises:
        RunError: ``out`` is a folder, a parent is a file, or the folder is not writable.
    """
    if out.is_dir():
        raise RunError(f"{option} {out} is a folder; give a file, for example {out / example}")
    for folder in out.parents:
        if folder.is_file():
            raise RunError(f"{option} {out}: {folder} is a file, not a folder")
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # os.access is always true for root
    except OSError as error:
        raise RunError(f"{option} {out}: {existing} is not writable: {error.strerror}") from error


def int_at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for integers of at least ``minimum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {minimum}")
        return int(text)

    return parse
