"""Work that may bring its process down, in processes of its own.

A decoder is C code that meets files from anywhere. It may crash, hang, or take all memory; here
that costs the one job it was at, and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from crosspair.errors import CrosspairError

MEMORY = 4 * 2**30  # bytes: a header may ask for more pixels than any machine has
STARTS = 3  # processes that may end as they begin before all is given up

# Not multiprocessing: its children import the caller's main module again, which needs a guard in
# every script, and a fork takes over whatever locks the caller's threads hold.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from crosspair.workers import _serve; _serve(*map(json.loads, sys.argv[1:]))"
)


@dataclass(frozen=True)
class WorkerFailure:
    """A job without an answer.

    Attributes:
        reason: what became of it, for people.
        hung: whether its time was over.
    """

    reason: str
    hung: bool = False


def map_isolated(
    task: str,
    jobs: Sequence[Any],
    *,
    seconds: float,
    workers: int | None = None,
    window: int = 1,
    memory: int = MEMORY,
    name: str = "the decoder",
) -> Generator[tuple[int, Any]]:
    """Do jobs in other processes.

    A process that crashes or hangs is replaced; a job that crashed one is tried once more
    before it is lost. All end with this iterator; where the caller is killed, each
    ends after the job that it is at.

    Args:
        task: "module:function", from a job to an answer; both can be pickled. Its module is
            imported over there, without its packages' ``__init__``. It may ask for more time by
            `allow`.
        jobs: what to do.
        seconds: for one job.
        workers: processes; one a core where it is None. Never more than the jobs keep busy.
        window: jobs that a process is handed at once. More than one hides the way to it and
            back where jobs are short; where they are long, it leaves others without work.
        memory: bytes that a process may take on top of what it begins with.
        name: of a process, for people.

    Yields:
        (index of the job, its answer or `Lost`), in the order in which they are done.

    Raises:
        CrosspairError: processes cannot be started.
    """
    count = min(workers or cpu_count(), -(-len(jobs) // window))
    left, crashed, starts = deque(range(len(jobs))), set[int](), 0
    crew: dict[Connection, _Worker] = {}

    def start() -> None:
        worker = _Worker(task, seconds, memory)
        crew[worker.connection] = worker

    try:
        for _ in range(count):
            start()
        while True:
            for worker in crew.values():
                worker.take(left, jobs, window)
            busy = [connection for connection, worker in crew.items() if worker.taken]
            if not busy:
                return
            for connection in wait(busy):
                assert isinstance(connection, Connection)
                worker = crew[connection]
                try:
                    done = worker.receive()
                except (EOFError, OSError):
                    del crew[connection]
                    status = worker.ended()
                    starts += not worker.ready
                    if starts == STARTS:
                        raise CrosspairError(
                            f"a process for decoding ends as it begins ({_ended(name, status)}); "
                            'see whether "import av" works in this Python'
                        ) from None
                    done = None
                    if worker.ready:
                        index = worker.taken.popleft()
                        if status == -signal.SIGALRM:
                            done = index, WorkerFailure(f"not done after {seconds:g} s", hung=True)
                        elif index in crashed:
                            done = index, WorkerFailure(_ended(name, status))
                        else:
                            crashed.add(index)
                            worker.taken.appendleft(index)
                    left.extendleft(reversed(worker.taken))
                    start()
                if done is not None:
                    yield done
    finally:
        for worker in crew.values():
            worker.kill()


def extend_timeout(seconds: float) -> None:
    """Give the job at hand, within a process of `isolated`, so many seconds more."""
    remaining, _ = signal.getitimer(signal.ITIMER_REAL)
    if remaining > 0:
        signal.setitimer(signal.ITIMER_REAL, remaining + seconds)


def cpu_count() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Worker:
    """A process, seen from here.

    Attributes:
        taken: jobs that it was handed and has not answered, in the order in which it does them.
        ready: whether it has begun.
    """

    def __init__(self, task: str, seconds: float, memory: int) -> None:
        self.taken: deque[int] = deque()
        self.ready = False
        self.connection, theirs = Pipe()
        arguments = theirs.fileno(), sys.path, task, seconds, memory
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *map(json.dumps, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the caller, who ends this
                # Their threads would take memory, and cores that the other processes need.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise CrosspairError(
                f"a process for decoding cannot be started: {error.strerror or error}"
            ) from error
        finally:
            theirs.close()

    def take(self, left: deque[int], jobs: Sequence[Any], window: int) -> None:
        """Take up to ``window`` jobs, once all before are answered.

        Until then it may be writing, and as long as this writes, too, neither would read.
        """
        if self.taken:
            return
        self.taken.extend(left.popleft() for _ in range(min(window, len(left))))
        if self.taken:
            with suppress(OSError):  # if it has ended, that is seen when its answer is read
                self.connection.send([jobs[index] for index in self.taken])

    def receive(self) -> tuple[int, Any] | None:
        """What it says: an answer, or at first that it is ready.

        Raises:
            EOFError: it has ended.
            CrosspairError: it cannot import the task.
        """
        kind, content = self.connection.recv()
        if kind == "answer":
            return self.taken.popleft(), content
        if kind == "raised":
            return self.taken.popleft(), WorkerFailure(content)
        if kind == "stopped":
            raise CrosspairError(f"a process for decoding cannot be started: {content}")
        self.ready = True
        return None

    def ended(self) -> int:
        """How it ended, as `subprocess.Popen.returncode`, once it has closed its side."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        return self.kill()

    def kill(self) -> int:
        """End it, whatever it does."""
        self.connection.close()
        self._process.kill()
        return self._process.wait()


def _ended(name: str, status: int) -> str:
    if status == -signal.SIGKILL:
        return f"{name} was killed (signal 9: no memory left?)"
    if status < 0:
        return f"{name} crashed (signal {-status})"
    return f"{name} ended its process (status {status})"


def _serve(handle: int, path: list[str], name: str, seconds: float, memory: int) -> None:
    """What a process does: answer jobs until nobody asks."""
    del path  # it was needed to come here
    connection = Connection(handle)

    try:
        module, _, function = name.partition(":")
        task = getattr(_imported(module), function)
        _limit(memory)
    except Exception as error:
        connection.send(("stopped", _line(error)))
        return
    with suppress(EOFError, OSError):
        connection.send(("ready", None))
        while True:
            for job in connection.recv():
                # The system ends the process then, however deep in the decoder it is.
                signal.setitimer(signal.ITIMER_REAL, seconds)
                try:
                    said = "answer", task(job)
                except Exception as error:
                    said = "raised", _line(error)
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send(said)


def _imported(name: str) -> Any:
    """A module, without running its packages' ``__init__``: they may bring torch, for seconds."""
    packages = name.split(".")[:-1]
    for depth in range(1, len(packages) + 1):
        package = ".".join(packages[:depth])
        spec = None if package in sys.modules else find_spec(package)
        if spec is not None:
            sys.modules[package] = module_from_spec(spec)
    return import_module(name)


def _limit(memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        begun = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (begun + memory, hard))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
