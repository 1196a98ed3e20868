"""Progress for people: a bar with rate and time left, or lines in a log without a terminal."""

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

LOG_EVERY = 30.0  # s between lines where there is no terminal
LATE = 1.0  # s before a late bar is worth its place


class Progress:
    """One piece of work, from 0 to ``total`` units.

    Args:
        name: what is done, for people.
        total: units in all.
        unit: what a unit is, in the plural.
        shown: whether this process shows anything.
    """

    def __init__(self, name: str, total: int, unit: str, shown: bool = True) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._bars = _bars() if shown and console.is_terminal else None
        self._logs = shown and self._bars is None
        self._first: int | None = None
        self._begun = self._logged = time.monotonic()
        if self._bars:
            self._task = self._bars.add_task(name, total=total, unit=unit, note="")

    def advance(self, done: int, note: str = "") -> None:
        """Tell how many units are done by now."""
        if self._first is None:
            self._first = done  # what a resumed run found done says nothing about the rate
            self._begun = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._logs and now - self._logged >= LOG_EVERY and done > self._first:
            self._logged = now
            rate = (done - self._first) / (now - self._begun)
            left = (self.total - done) / rate
            logger.info(
                "%s: %d of %d %s%s, %.1f a second, %d:%02d left",
                self.name, done, self.total, self.unit, f", {note}" if note else "",
                rate, left // 60, left % 60,
            )  # fmt: skip


@contextmanager
def progress(name: str, total: int, unit: str, shown: bool = True) -> Iterator[Progress]:
    """Show a piece of work while it lasts.

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
def delayed_progress(
    name: str, unit: str, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Show a piece of work once it has lasted for a second, where no bar is there already.

    Yields:
        What to call with the units done and their number.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        bars: list[Progress] = []

        def advance(done: int, total: int) -> None:
            if shown and not bars and time.monotonic() - begun >= LATE:
                bars.append(stack.enter_context(progress(name, total, unit)))
            if bars:
                bars[0].advance(done)

        yield advance


class _Rate(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


def _bars() -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("[dim]{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def graceful_shutdown(answer: str = "") -> Iterator[Callable[[], bool]]:
    """While this lasts, SIGTERM and the first Ctrl-C ask for a stop instead of killing.

    Args:
        answer: to be logged then.

    Yields:
        A function that tells whether a stop was asked for.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        if answer:
            logger.warning(answer)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = {
            number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
    except ValueError:  # signals belong to the main thread; elsewhere there is nothing to catch
        previous = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
