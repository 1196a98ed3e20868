"""Ray: run tasks on a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from typing import Any

from crosspair.errors import RunError
from crosspair.workers import WorkerFailure, cpu_count


def map_on_ray(
    function: Callable[..., Any],
    jobs: Sequence[Any],
    *shared: Any,
    cores: int = 1,
    gpus: bool = False,
    retries: int = 0,
    workers: int | None = None,
    address: str | None = None,
) -> Generator[tuple[int, Any]]:
    """Run ``function(job, *shared)`` for each job in a task of a Ray cluster; the counterpart of `map_isolated`.

    Args:
        function: a module-level function of a package that is installed on all nodes.
        jobs: the first arguments.
        shared: further arguments, sent to each node once.
        cores: cores of a task; at most those of the smallest node.
        gpus: whether a task takes one GPU instead, if the cluster has any.
        retries: how often Ray repeats the task of a lost node.
        workers: cores of the cluster that is started if there is no address; None for all of this machine.
        address: of a running cluster, as ``auto`` or ``ray://head:10001``.

    Yields:
        The index of a job, and its result or a `WorkerFailure`, in the order of completion.

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
    local: Any = {} if address else {"num_cpus": workers or cpu_count(), "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises exceptions of many types here
        failure = f"cannot be reached at {address}" if address else "cannot be started"
        raise RunError(f"Ray {failure} ({' '.join(str(error).split())})") from error
    try:
        resources, at_once = _task_resources(ray, cores, gpus)
        task = ray.remote(max_retries=retries, **resources)(function)
        references = [ray.put(value) for value in shared]
        waiting, pending = iter(range(len(jobs))), dict[Any, int]()
        while True:
            # Twice as many as can run, so that no core waits; each takes memory of the head node.
            while len(pending) < 2 * at_once and (index := next(waiting, None)) is not None:
                pending[task.remote(jobs[index], *references)] = index
            if not pending:
                return
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = (str(error).strip() or "no reason given").splitlines()[-1]
                    outcome = WorkerFailure(f"a Ray task failed ({type(error).__name__}: {reason})")
                yield pending.pop(reference), outcome
    finally:
        ray.shutdown()


def _task_resources(ray: Any, cores: int, gpus: bool) -> tuple[dict[str, int], int]:
    """Return the Ray resources of a task, and how many tasks run at once."""
    resources = ray.cluster_resources()
    if gpus and (count := int(resources.get("GPU", 0))):
        return {"num_gpus": 1}, count
    # A task that requires more cores than any node has would wait forever.
    smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    cores = max(1, min(cores, smallest))
    return {"num_cpus": cores}, max(1, int(resources.get("CPU", 1)) // cores)


def _check_reachable(address: str) -> None:
    """Raise RunError if no server listens at host:port, since Ray retries for minutes; skip "auto"."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error})") from error
