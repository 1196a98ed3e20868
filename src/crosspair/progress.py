"""Progress bars (log lines without a terminal) and graceful shutdown on signals."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

logger = logging.getLogger(__name__)

console = Console(stderr=True)

LOG_EVERY = 30.0  # s between log lines without a terminal
DELAY = 1.0  # s before `delayed_progress` shows a bar


class Progress:
    """A progress bar, or lines in the log if standard error is not a terminal.

    Args:
        name: description of the task.
        total: number of units.
        unit: name of the unit, in the plural.
        shown: False shows nothing, e.g. on ranks other than 0.
    """

    def __init__(self, name: str, total: int, unit: str, shown: bool = True) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._bars = _bars() if shown and console.is_terminal else None
        self._logs = shown and self._bars is None
        self._first: int | None = None
        self._started = self._logged = time.monotonic()
        if self._bars:
            self._task = self._bars.add_task(name, total=total, unit=unit, note="")

    def advance(self, done: int, note: str = "") -> None:
        """Set (not add) the number of finished units; without a terminal, log it at most every 30 s.

        The first call sets the start of the rate: units of a resumed run do not count.
        """
        if self._first is None:
            self._first = done
            self._started = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._logs and now - self._logged >= LOG_EVERY and done > self._first:
            self._logged = now
            rate = (done - self._first) / (now - self._started)
            left = (self.total - done) / rate
            logger.info(
                "%s: %d of %d %s%s, %.1f per second, %d:%02d left",
                self.name, done, self.total, self.unit, f", {note}" if note else "",
                rate, left // 60, left % 60,
            )  # fmt: skip


@contextmanager
def progress(name: str, total: int, unit: str, shown: bool = True) -> Iterator[Progress]:
    """Show the progress of a task inside the block.

    >>> with progress("counting", 2, "beans", shown=False) as bar:
    ...     bar.advance(2)
    """
    bar = Progress(name, total, unit, shown)
    if bar._bars is None:
        yield bar
        return
    with bar._bars:
        yield bar


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
            if bars:
                bars[0].advance(done)

        yield advance


class _RateColumn(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


def _bars() -> Bars:
    return Bars(
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
    )


@contextmanager
def graceful_shutdown(message: str = "") -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a request to stop. A second Ctrl-C interrupts.

    Outside the main thread, where signals cannot be handled, nothing changes.

    Args:
        message: warning to log on a request.

    Yields:
        A function that returns whether a stop was requested.
    """
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        del frame
        requests.append(number)
        if message:
            logger.warning(message)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
