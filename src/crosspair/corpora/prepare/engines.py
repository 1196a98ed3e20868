"""Where requests are answered: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from crosspair.cluster import answers, ray_cluster
from crosspair.corpora.prepare.request import Outcome, Request
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
    with ray_cluster(address, workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=0)(in_time)
        # More than can run, so that no core waits.
        at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        for index, reference in answers(ray, task.remote, requests, at_once):
            try:
                yield index, ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"the process that decoded it ended ({type(error).__name__})"
                yield index, _lost(requests[index], reason)


def in_time(request: Request) -> Outcome:
    """An attempt; the process ends when its time is over, however deep in the decoder it is."""
    from crosspair.corpora.prepare.attempt import attempt

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return attempt(request)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _lost(request: Request, reason: str) -> Outcome:
    return Outcome(error=f"{request.clip.path}: {reason}")
