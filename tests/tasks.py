"""Jobs for `crosspair.workers` that succeed, fail, crash or hang, by name."""

import os
import signal
import time
from pathlib import Path

from crosspair.workers import extend_timeout


def task(job: list[str]) -> object:
    name, argument = job
    if name == "echo":
        return argument
    if name == "signal":
        os.kill(os.getpid(), int(argument))
    if name == "exit":
        os._exit(int(argument))
    if name == "hang":
        while True:
            signal.pause()
    if name == "crash once" and not Path(argument).exists():
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "slow":
        extend_timeout(100)
        time.sleep(float(argument))
    if name == "sleep":
        time.sleep(float(argument))
    if name == "pid":
        Path(argument).write_text(str(os.getpid()))
    if name == "raise":
        raise ValueError(argument)
    if name == "memory":
        return len(bytearray(int(argument)))
    return "done"


def pid_then_hang(job: str) -> None:
    """Write the process ID to a file and never return."""
    Path(job).write_text(str(os.getpid()))
    while True:
        signal.pause()


class _Unpicklable:
    """A function that a worker process fails to load."""

    __module__ = __name__

    def __call__(self, job: object) -> None:
        raise NotImplementedError

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (4,)


fail_to_unpickle = _Unpicklable()
