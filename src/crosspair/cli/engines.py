"""Options of verbs whose work this machine can do, or a Ray cluster."""

from __future__ import annotations

import argparse
import os

from crosspair.errors import CrosspairError


def add_engine(verb: argparse.ArgumentParser) -> None:
    """``--engine`` and ``--address``."""
    verb.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster with a shared file system",
    )  # fmt: skip
    verb.add_argument("--address", help="of the cluster, as auto (default: start Ray here)")


def on_cluster(options: argparse.Namespace) -> bool:
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
