"""Run jobs in worker processes with time and memory limits, or as tasks of a Ray cluster.

A decoder is C code that reads files from anywhere. A crash, hang or out-of-memory error in it fails
only the job that caused it. The pool is one `ProcessPoolExecutor` of a single process per worker,
since an executor fails as a whole when one of its processes dies.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import platform
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from crosspair.errors import CrosspairError, RunError, format_error

MEMORY_LIMIT = 4 * 2**30  # bytes: a header may ask for more pixels than any machine has
ATTEMPTS = 2  # a job that crashes its process is tried once more: memory may have run out elsewhere
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
QUEUED = 2  # jobs submitted to each process, so that it does not wait for the next one

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkerFailure:
    """The outcome of a job that has no result."""

    reason: str  # what happened, in one line
    timed_out: bool = False  # whether the job exceeded its time limit


def map_isolated(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    timeout: float,
    workers: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    in_order: bool = False,
) -> Generator[tuple[int, Result | WorkerFailure]]:
    """Apply a function to jobs in worker processes.

    A process that crashes or exceeds the time limit is replaced. All processes end with the
    iterator, and with the calling process.

    Args:
        function: A module-level function; it, its jobs and its results are pickled. It may call
            `extend_timeout`.
        jobs: The arguments, one per call.
        timeout: Seconds for one job.
        workers: Number of processes; default: one per core.
        memory_limit: Bytes that a process may allocate in addition to what it starts with.
        in_order: Yield in the order of `jobs` rather than in order of completion. At most
            2 × `QUEUED` results per process are held back.

    Yields:
        (index of the job, its result or a `WorkerFailure`). An exception raised by `function` is a
        `WorkerFailure`, too.

    Raises:
        CrosspairError: Worker processes cannot be started.
    """
    count = min(workers or cpu_count(), len(jobs))
    slots = [_Slot(function, timeout, memory_limit) for _ in range(count)]
    waiting, crashes = deque(range(len(jobs))), Counter[int]()
    held: dict[int, Result | WorkerFailure] = {}
    following = 0  # the next job to yield if in_order
    try:
        while waiting or any(slot.submitted for slot in slots):
            for _ in range(QUEUED):
                for slot in slots:
                    limit = following + 2 * QUEUED * count if in_order else len(jobs)
                    if waiting and waiting[0] < limit and len(slot.submitted) < QUEUED:
                        index = waiting.popleft()
                        slot.submit(index, jobs[index])
            wait([future for slot in slots for _, future in slot.submitted], None, FIRST_COMPLETED)
            for slot in slots:
                for index, future in slot.completed():
                    error = future.exception()
                    if not isinstance(error, BrokenProcessPool):
                        held[index] = WorkerFailure(format_error(error)) if error else future.result()
                        continue
                    failure, queued = slot.restart()
                    waiting.extendleft(reversed(queued))
                    crashes[index] += 1
                    if crashes[index] < ATTEMPTS and not failure.timed_out:
                        waiting.appendleft(index)
                    else:
                        held[index] = failure
            if in_order:
                while following in held:
                    yield following, held.pop(following)
                    following += 1
            else:
                for index in list(held):
                    yield index, held.pop(index)
    finally:
        for slot in slots:
            slot.close()


def run_with_timeout(function: Callable[[Any], Any], timeout: float, job: Any) -> Any:
    """Return ``function(job)``; after ``timeout`` seconds, SIGALRM ends the whole process."""
    # The default action of the signal ends the process, even inside of C code.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return function(job)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def extend_timeout(seconds: float) -> None:
    """Add ``seconds`` to the time left to the current job; outside a worker process, do nothing."""
    remaining, _ = signal.getitimer(signal.ITIMER_REAL)
    if remaining > 0:
        signal.setitimer(signal.ITIMER_REAL, remaining + seconds)


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Slot:
    """A worker process and the jobs submitted to it."""

    def __init__(self, function: Callable[[Any], Any], timeout: float, memory_limit: int) -> None:
        self.function, self.timeout, self.memory_limit = function, timeout, memory_limit
        # (index, future) of unfinished jobs, oldest first: the order in which they run.
        self.submitted: deque[tuple[int, Future[Any]]] = deque()
        self._start()

    def _start(self) -> None:
        self._process: BaseProcess | None = None
        self._ready = _CONTEXT.Event()
        arguments = self.function, self.memory_limit, self._ready  # imports the function's module
        self._executor = ProcessPoolExecutor(1, _CONTEXT, initializer=_start_worker, initargs=arguments)

    def submit(self, index: int, job: Any) -> None:
        try:
            future = self._executor.submit(run_with_timeout, self.function, self.timeout, job)
        except BrokenProcessPool as error:  # the process died after the job before
            future = Future()
            future.set_exception(error)
        except OSError as error:
            raise CrosspairError(f"worker processes cannot be started: {format_error(error)}") from error
        self._process = next(iter((self._executor._processes or {}).values()), self._process)
        self.submitted.append((index, future))

    def completed(self) -> Iterator[tuple[int, Future[Any]]]:
        """Remove and yield the completed jobs."""
        while self.submitted and self.submitted[0][1].done():
            yield self.submitted.popleft()

    def restart(self) -> tuple[WorkerFailure, list[int]]:
        """Replace a dead process; return how it ended, and the indices of the jobs that it had not begun."""
        queued = [index for index, _ in self.submitted]
        self.submitted.clear()
        self._executor.shutdown(wait=True)  # fills the exit code in
        code = self._process.exitcode if self._process else None
        if not self._ready.is_set():
            raise CrosspairError(
                f"a worker process ended as it started (status {code}); check that "
                f'"import {self.function.__module__}" works in this Python'
            )
        self._start()
        if code == -signal.SIGALRM:
            return WorkerFailure(f"not done after {self.timeout:g} s", timed_out=True), queued
        if code == -signal.SIGKILL:
            return WorkerFailure("its process was killed (signal 9: out of memory?)"), queued
        if code is not None and code < 0:
            return WorkerFailure(f"its process crashed (signal {-code})"), queued
        return WorkerFailure(f"its process ended (status {code})"), queued

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


class _WorkerProcess(ForkServerProcess):
    """A process that does not import the caller's main module: scripts need no ``__main__`` guard."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 - the name in multiprocessing
        with _main_module_lock:
            main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                return ForkServerProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = main


class _WorkerContext(ForkServerContext):
    """Fork from a server process that has no threads, and hence no locks held by them."""

    Process = _WorkerProcess


_CONTEXT = _WorkerContext()
# By default the server imports the caller's main module.
_CONTEXT.set_forkserver_preload(["crosspair.video.integrity"])
_main_module_lock = threading.Lock()


def _start_worker(function: Callable[[Any], Any], memory_limit: int, ready: Event) -> None:
    """Ignore Ctrl-C, discard output, exit with the parent, limit memory, and set ``ready``."""
    del function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Path(os.devnull).open("wb") as null:  # crashing libraries write to the terminal
        for stream in (1, 2):
            os.dup2(null.fileno(), stream)
    exit_with_parent()
    _limit_memory(memory_limit)
    ready.set()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor: returning it to the system doubles the time of some networks."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def exit_with_parent() -> None:
    """Exit this process of `multiprocessing` when its parent has ended, even if that was killed before the call."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _limit_memory(limit: int) -> None:
    """Let this process allocate ``limit`` bytes beyond its present size, and write no core dump; Linux only."""
    with suppress(ImportError, OSError, ValueError):  # Linux only
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        start = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (start + limit, hard))


# --- Ray ----------------------------------------------------------------------------------------


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
