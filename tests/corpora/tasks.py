"""What may go wrong in a process: tasks for `crosspair.workers`, by the name of the job."""

import os
import signal
import sys
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
    if name == "raise":
        raise ValueError(argument)
    if name == "memory":
        return len(bytearray(int(argument)))
    if name == "modules":
        return [module for module in ("torch", "pyarrow") if module in sys.modules]
    return "done"


def pid_then_hang(job: str) -> None:
    """Tell which process this is, in a file, and stay."""
    Path(job).write_text(str(os.getpid()))
    while True:
        signal.pause()
