"""Where requests are answered: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from crosspair.corpora.prepare.request import Outcome, Request
from crosspair.errors import RunError
from crosspair.isolation import Lost, isolated

TASK = "crosspair.corpora.prepare.attempt:attempt"
SECONDS = 120.0  # for a file to open and to be written; its frames have time of their own

Engine = Callable[[Sequence[Request]], Generator[tuple[int, Outcome]]]
"""From requests to their indices and outcomes, in the order in which they end."""


def on_processes(requests: Sequence[Request], workers: int) -> Generator[tuple[int, Outcome]]:
    """Answer requests in so many processes of this machine.

    One that crashes or hangs is replaced, and costs its file only.
    """
    with closing(isolated(TASK, requests, seconds=SECONDS, workers=workers)) as answers:
        for index, answer in answers:
            lost = isinstance(answer, Lost)
            yield index, _lost(requests[index], answer.reason) if lost else answer


def on_ray(
    requests: Sequence[Request], workers: int, address: str | None = None
) -> Generator[tuple[int, Outcome]]:
    """Answer requests by tasks of Ray, one core each.

    Sources and targets must be at the same paths, or URLs, on all nodes, and this package must be
    installed there.

    Args:
        workers: cores of the instance that is started here where no address is given.
        address: of a running cluster, as ``auto`` or ``ray://head:10001``.

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

    from crosspair.corpora.prepare.attempt import attempt

    if address:
        _check_reachable(address)
    own: Any = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # it has no class of its own for what may go wrong here
        reason = " ".join(str(error).split())
        where = f"cannot be reached at {address}" if address else "cannot be started"
        raise RunError(f"Ray {where} ({reason})") from error
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(attempt)
        # More than can run, so that no core waits; not all, since each takes memory of the head.
        at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: dict[object, int] = {}
        waiting = iter(range(len(requests)))
        while True:
            while len(pending) < at_once and (index := next(waiting, None)) is not None:
                pending[task.remote(requests[index])] = index
            if not pending:
                return
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                index = pending.pop(reference)
                try:
                    yield index, ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = f"the process that decoded it ended ({type(error).__name__})"
                    yield index, _lost(requests[index], reason)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would knock for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error})") from error


def _lost(request: Request, reason: str) -> Outcome:
    return Outcome(error=f"{request.clip.path}: {reason}")
