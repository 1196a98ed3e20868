"""Where requests are answered: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence

from crosspair.corpora.prepare.attempt import Outcome, attempt
from crosspair.corpora.prepare.plan import Request
from crosspair.corpora.prepare.processes import Died, each_in_processes
from crosspair.errors import RunError

Engine = Callable[[Sequence[Request]], Generator[tuple[int, Outcome]]]
"""From requests to their indices and outcomes, in the order in which they end."""


def on_processes(requests: Sequence[Request], workers: int) -> Generator[tuple[int, Outcome]]:
    """Answer requests in so many processes of this machine."""
    for index, result in each_in_processes(attempt, requests, workers):
        if isinstance(result, Died):
            yield index, _lost(requests[index], f"exit code {result.code}")
        else:
            yield index, result


def on_ray(
    requests: Sequence[Request], workers: int, address: str | None = None
) -> Generator[tuple[int, Outcome]]:
    """Answer requests by tasks of Ray, one core each.

    Args:
        requests: sources and targets must be at the same paths, or URLs, on all nodes, and this
            package must be installed there.
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
    own = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, **own
        )  # fmt: skip
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise RunError(f"no Ray at {address}: {str(error).splitlines()[0]}") from error
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
                    yield index, _lost(requests[index], type(error).__name__)
    finally:
        ray.shutdown()


def _lost(request: Request, how: str) -> Outcome:
    return Outcome(error=f"{request.clip.path}: the process that decoded it died ({how})")
