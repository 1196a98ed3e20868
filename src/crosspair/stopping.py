"""How work that can be gone on with later is asked to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stop_requests(answer: str = "") -> Iterator[Callable[[], bool]]:
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
