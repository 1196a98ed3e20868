"""A bar for work of which nobody knows whether it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from crosspair.progress import Progress, progress

LATE = 1.0  # s before a bar is worth its place


@contextmanager
def late_progress(name: str, unit: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a piece of work, once it has lasted for a second; never, where a bar is there already.

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
