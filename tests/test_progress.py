"""Progress: delayed bars, and log lines without a terminal."""

from __future__ import annotations

import logging
import signal
import time
from types import SimpleNamespace

import pytest

from crosspair import progress as module
from crosspair.progress import delayed_progress, graceful_shutdown, progress


@pytest.mark.parametrize(("delay", "shown"), [(0.0, [1, 2]), (1e9, [])])
def test_a_bar_is_shown_after_a_delay(monkeypatch: pytest.MonkeyPatch, delay: float, shown: list[int]) -> None:
    reported: list[int] = []
    monkeypatch.setattr(module, "DELAY", delay)
    monkeypatch.setattr(module.Progress, "advance", lambda _, done: reported.append(done))
    with delayed_progress("counting", "beans") as advance:
        advance(1, 2)
        advance(2, 2)
    assert reported == shown


def test_log_lines_count_from_the_first_call(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO), progress("counting", 30, "beans") as bar:
        for done in (10, 12, 14):  # a run that is resumed at 10
            bar.advance(done, "slowly")
            time.sleep(0.02)
    assert len(caplog.messages) == 2
    assert caplog.messages[-1].startswith("counting: 14 of 30 beans, slowly, ")
    rate = float(caplog.messages[-1].split()[6])
    assert 0 < rate <= 2 / 0.02


def test_units_that_take_longer_than_half_a_minute_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with caplog.at_level(logging.INFO), progress("counting", 30, "beans") as bar:
        bar._bars.get_time = lambda: clock[0]
        for done in range(4):
            bar.advance(done)
            clock[0] += 40
    assert [message.split(",")[0] for message in caplog.messages][-1] == "counting: 3 of 30 beans"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_request_a_stop_unless_nohup_ignores_them(number: int) -> None:
    with graceful_shutdown() as stop_requested:
        assert not stop_requested()
        signal.raise_signal(number)
        assert stop_requested()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with graceful_shutdown() as stop_requested:
        signal.raise_signal(signal.SIGHUP)
        assert not stop_requested()
    signal.signal(signal.SIGHUP, before)
