"""Cells in processes of their own, a few at a time; one view of all; a clean stop."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspair.ablation.cells import Cell
from crosspair.ablation.ledger import read_state, write_state
from crosspair.isolation import cores
from crosspair.progress import console
from crosspair.stopping import stop_requests

logger = logging.getLogger(__name__)

LOG = "log.txt"
STOPPED = 75  # status of a process that was asked to stop and can go on
ASK_EVERY = 5.0  # s between requests to stop
_LOOK_EVERY = 0.2  # s


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    jobs: int,
    lock: int,
    ended: Callable[[], None],
) -> bool:
    """Run cells, each in ``out/cells/HASH``, where ``job.json`` is already.

    A cell that fails has status "failed" and the last line of its log as ``error`` in its
    ``cell.json``; the rest goes on. A stop (SIGTERM, Ctrl-C) lets each running cell save itself; a
    second Ctrl-C does not wait for that.

    Args:
        cells: in their order.
        out: the ablation's folder.
        jobs: how many at a time; they share the cores, and have the accelerators in turn.
        lock: of ``out``, a file descriptor that the cells hold as well.
        ended: called after each that is done or has failed.

    Returns:
        Whether all were run; False where a stop was asked for.
    """
    waiting, running = deque(cells), dict[int, _Running]()
    tally = _Tally(len(cells), jobs)
    asked = stop_requests("asked to stop: the running cells save themselves first")
    with asked as stop_requested, console.status("") as shown:
        try:
            while running or (waiting and not stop_requested()):
                for slot in range(jobs):
                    if waiting and slot not in running and not stop_requested():
                        running[slot] = _start(waiting.popleft(), out, slot, jobs, lock)
                for slot, each in list(running.items()):
                    if stop_requested():
                        each.ask_to_stop()
                    code = each.process.poll()
                    if code is not None:
                        del running[slot]
                        if code == STOPPED or (each.asked is not None and code == -signal.SIGTERM):
                            continue
                        tally.ended(each, code)
                        ended()
                now = ", ".join(f"{e.cell.name} ({_told(e.seconds)})" for e in running.values())
                shown.update(f"{tally}; now: {now}")
                time.sleep(_LOOK_EVERY)
        finally:
            for each in running.values():
                each.process.kill()
                each.process.wait()
        return not (stop_requested() and tally.left)


@dataclass
class _Running:
    cell: Cell
    folder: Path
    process: subprocess.Popen[bytes]
    begun: float
    asked: float | None = None  # when it was last asked to stop

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def ask_to_stop(self) -> None:
        now = time.monotonic()
        if self.asked is None or now - self.asked > ASK_EVERY:
            self.asked = now
            self.process.terminate()


def _start(cell: Cell, out: Path, slot: int, jobs: int, lock: int) -> _Running:
    folder = out / cell.folder
    threads = str(max(1, cores() // jobs))
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "crosspair.ablation", str(folder), str(slot)],
            stdin=subprocess.PIPE,  # never written to: its end tells the cell that we are gone
            stdout=log,
            stderr=log,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": threads},
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C is for us, who then ask each cell
        )
    logger.info("%s: begun, see %s", cell.name, folder / LOG)
    return _Running(cell, folder, process, time.monotonic())


class _Tally:
    """Cells done and failed, and the time left by the mean of those done."""

    def __init__(self, cells: int, jobs: int) -> None:
        self._cells, self._jobs = cells, jobs
        self._seconds: list[float] = []
        self._failed = 0

    @property
    def left(self) -> int:
        return self._cells - len(self._seconds) - self._failed

    def ended(self, each: _Running, code: int) -> None:
        if code:
            self._failed += 1
            error = _keep_fault(each, code)
            logger.error("%s failed: %s (%s); %s", each.cell.name, error, each.folder / LOG, self)
        else:
            self._seconds.append(each.seconds)
            logger.info("%s: done in %s; %s", each.cell.name, _told(each.seconds), self)

    def __str__(self) -> str:
        told = f"{len(self._seconds)} of {self._cells} cells done, {self._failed} failed"
        if self._seconds and self.left:
            mean = sum(self._seconds) / len(self._seconds)
            told += f", about {_told(mean * self.left / self._jobs)} left"
        return told


def _keep_fault(each: _Running, code: int) -> str:
    lines = (each.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "nothing in its log")
    error = f"ended by {signal.Signals(-code).name}, after: {last}" if code < 0 else last
    write_state(each.folder, {**read_state(each.folder), "status": "failed", "error": error})
    return error


def _told(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
