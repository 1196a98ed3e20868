"""Progress bars (log lines without a terminal) and graceful shutdown on signals."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

logger = logging.getLogger(__name__)


class Terminal(Console):
    """A console that raises BrokenPipeError, as ``print`` does, instead of exiting."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise


console = Terminal(stderr=True)

LOG_EVERY = 30.0  # s between log lines without a terminal
DELAY = 1.0  # s before `delayed_progress` shows a bar


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


class Progress:
    """A progress bar inside a ``with`` block, or lines in the log if standard error is not a terminal.

    Args:
        name: description of the task.
        total: number of units.
        unit: name of the unit, in the plural.
        shown: False shows nothing, e.g. on ranks other than 0.
    """

    def __init__(self, name: str, total: int, unit: str, shown: bool = True) -> None:
        self._logs = shown and not console.is_terminal
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or self._logs,
            speed_estimate_period=3600,  # s; rich reports no speed if there is only one update in it
        )
        self._bars.add_task(name, total=total, unit=unit, note="")
        (self._task,) = self._bars.tasks
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, done: int, note: str = "") -> None:
        """Set (not add) the number of finished units; without a terminal, log it at most every 30 s.

        The first call sets the start of the rate: units of a resumed run do not count.
        """
        task, now = self._task, time.monotonic()
        self._bars.update(task.id, completed=done, note=note)
        if self._logs and now - self._logged >= LOG_EVERY and task.speed:
            self._logged = now
            left = timedelta(seconds=int(task.time_remaining or 0))
            position = f"{done} of {task.total:g} {task.fields['unit']}{note and f', {note}'}"
            logger.info("%s: %s, %.1f per second, %s left", task.description, position, task.speed, left)


def progress(name: str, total: int, unit: str, shown: bool = True) -> Progress:
    """Show the progress of a task inside a ``with`` block.

    >>> with progress("counting", 2, "beans", shown=False) as bar:
    ...     bar.advance(2)
    """
    return Progress(name, total, unit, shown)


@contextmanager
def delayed_progress(name: str, unit: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a task if it takes longer than a second.

    Yields:
        A function ``advance(done, total)`` to report progress.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        bars: list[Progress] = []

        def advance(done: int, total: int) -> None:
            if shown and not bars and time.monotonic() - started >= DELAY:
                bars.append(stack.enter_context(progress(name, total, unit)))
            for bar in bars:
                bar.advance(done)

        yield advance


@contextmanager
def graceful_shutdown(message: str = "") -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGHUP and the first Ctrl-C into a request to stop. A second Ctrl-C interrupts.

    SIGHUP stays ignored under ``nohup``. Outside the main thread, where signals cannot be handled, nothing changes.

    Args:
        message: warning to log on a request.

    Yields:
        A function that returns whether a stop was requested.
    """
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        del frame
        requests.append(number)
        if number == signal.SIGHUP:
            discard_output()
        if message:
            logger.warning(message)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        numbers = [signal.SIGINT, *stop_signals()]
        previous = {number: signal.signal(number, request_stop) for number in numbers}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop, other than Ctrl-C: SIGTERM and, unless ignored (``nohup``), SIGHUP."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


def discard_output() -> None:
    """Discard output to a terminal; after SIGHUP it may be closed, and writing fails."""
    with suppress(OSError), Path(os.devnull).open("wb") as null:
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(null.fileno(), stream)
