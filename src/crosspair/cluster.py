"""Ray: connect to a cluster and run tasks on it."""

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
    """Connect to a Ray cluster, and disconnect at the end of the block.

    Args:
        address: of a running cluster, as ``auto`` or ``ray://head:10001``; None starts a local one.
        cores: number of cores of a local cluster.

    Yields:
        The module `ray`.

    Raises:
        RunError: Ray is not installed, or the cluster cannot be reached or started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise RunError("the engine ray requires Ray; install it with: pip install 'crosspair[scale]'") from error

    if address:
        _check_reachable(address)
    local: Any = {"num_cpus": cores, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises exceptions of many types here
        reason = " ".join(str(error).split())
        failure = f"cannot be reached at {address}" if address else "cannot be started"
        raise RunError(f"Ray {failure} ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def map_on_ray(
    ray: Any, submit: Callable[[Any], object], requests: Sequence[Any], at_once: int
) -> Iterator[tuple[int, Any]]:
    """Submit requests, at most ``at_once`` at a time, since each takes memory of the head node.

    Args:
        ray: the module `ray`.
        submit: submits a request and returns the reference to its result.
        requests: arguments of ``submit``.
        at_once: maximum number of pending requests.

    Yields:
        The index of a request and the reference to its result, in the order of completion.
    """
    pending: dict[object, int] = {}
    waiting = iter(range(len(requests)))
    while True:
        while len(pending) < at_once and (index := next(waiting, None)) is not None:
            pending[submit(requests[index])] = index
        if not pending:
            return
        for reference in ray.wait(list(pending), num_returns=1)[0]:
            yield pending.pop(reference), reference


def _check_reachable(address: str) -> None:
    """Raise RunError if no server listens at host:port, since Ray retries for minutes; skip "auto"."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error})") from error
