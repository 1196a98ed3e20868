"""A Ray cluster: one that runs, or one that is started here for as long as it is used."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from crosspair.errors import RunError


@contextmanager
def ray_cluster(address: str | None, cores: int) -> Iterator[Any]:
    """Be connected to a cluster.

    Args:
        address: of a running one, as ``auto`` or ``ray://head:10001``; None starts one here.
        cores: that it then has.

    Yields:
        The module `ray`.

    Raises:
        RunError: Ray is not installed, or no cluster is to be found there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise RunError(
            "the engine ray needs Ray; install it by pip install 'crosspair[scale]'"
        ) from error

    if address:
        _check_reachable(address)
    own: Any = {"num_cpus": cores, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # it has no class of its own for what may go wrong here
        reason = " ".join(str(error).split())
        where = f"cannot be reached at {address}" if address else "cannot be started"
        raise RunError(f"Ray {where} ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def map_on_ray(
    ray: Any, ask: Callable[[Any], object], requests: Sequence[Any], at_once: int
) -> Iterator[tuple[int, Any]]:
    """Ask for all requests, so many at a time, as each takes memory of the head.

    Args:
        ask: gives a reference to the answer.

    Yields:
        A request's index, and the reference to its answer, in the order in which they end.
    """
    pending: dict[object, int] = {}
    waiting = iter(range(len(requests)))
    while True:
        while len(pending) < at_once and (index := next(waiting, None)) is not None:
            pending[ask(requests[index])] = index
        if not pending:
            return
        for reference in ray.wait(list(pending), num_returns=1)[0]:
            yield pending.pop(reference), reference


def _check_reachable(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would knock for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error})") from error
