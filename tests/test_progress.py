"""A bar that comes only where work takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crosspair import progress as module
from crosspair.progress import Progress, delayed_progress


@pytest.mark.parametrize(("after", "shown"), [(0.0, [1, 2]), (1e9, [])])
def test_a_bar_comes_late_or_never(
    monkeypatch: pytest.MonkeyPatch, after: float, shown: list[int]
) -> None:
    told: list[int] = []

    class Bar(Progress):
        def advance(self, done: int, note: str = "") -> None:
            told.append(done)

    @contextmanager
    def progress(name: str, total: int, unit: str) -> Iterator[Bar]:
        assert (name, total, unit) == ("counting", 2, "beans")
        yield Bar(name, total, unit, shown=False)

    monkeypatch.setattr(module, "LATE", after)
    monkeypatch.setattr(module, "progress", progress)
    with delayed_progress("counting", "beans") as advance:
        advance(1, 2)
        advance(2, 2)
    assert told == shown
