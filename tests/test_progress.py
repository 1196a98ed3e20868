"""Delayed progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crosspair import progress as module
from crosspair.progress import Progress, delayed_progress


@pytest.mark.parametrize(("after", "shown"), [(0.0, [1, 2]), (1e9, [])])
def test_a_bar_is_shown_after_a_delay(monkeypatch: pytest.MonkeyPatch, after: float, shown: list[int]) -> None:
    reported: list[int] = []

    class Bar(Progress):
        def advance(self, done: int, note: str = "") -> None:
            reported.append(done)

    @contextmanager
    def progress(name: str, total: int, unit: str) -> Iterator[Bar]:
        assert (name, total, unit) == ("counting", 2, "beans")
        yield Bar(name, total, unit, shown=False)

    monkeypatch.setattr(module, "DELAY", after)
    monkeypatch.setattr(module, "progress", progress)
    with delayed_progress("counting", "beans") as advance:
        advance(1, 2)
        advance(2, 2)
    assert reported == shown
