"""Run a plan: the cells that are not done yet, then the report of all that are."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crosspair.ablation.cells import (
    ALIKE,
    DONE,
    FAILED,
    Cell,
    Job,
    PairSource,
    expand_cells,
    read_state,
    select,
    status,
    write_job,
    write_ledger,
    write_state,
)
from crosspair.ablation.plan import AblationPlan
from crosspair.errors import RunError
from crosspair.progress import console, graceful_shutdown
from crosspair.recipes import recipe_settings
from crosspair.workers import cpu_count

logger = logging.getLogger(__name__)

_PATIENCE = 120.0  # s that cells of a killed ablation have to save themselves


@dataclass(frozen=True)
class AblationOutcome:
    """What became of an ablation.

    Attributes:
        done, failed: cells of the whole plan.
        cells: all of them.
        stopped: whether a stop was asked for.
        report: its page, if any cell is done.
    """

    done: int
    failed: int
    cells: int
    stopped: bool
    report: Path | None


def ablate(
    plan: AblationPlan,
    out: Path,
    *,
    manifest: str | None = None,
    only: Collection[str] = (),
    jobs: int = 1,
    report_only: bool = False,
) -> AblationOutcome:
    """Run the cells of a plan that are not done, and report.

    Args:
        plan: see `crosspair.ablation.read_plan`.
        out: gets ``plan.yaml``, ``ablation.json``, ``cells/``, ``corpora/`` and the report. What
            it has of these cells is used again: a cell that is done is never run twice, one that
            was killed goes on, one that failed is tried again.
        manifest: the pairs, where the plan renders none.
        only: rows to run, see `crosspair.ablation.cells.select`; none: all.
        jobs: cells at a time.
        report_only: run nothing.

    Raises:
        CrosspairError: the plan, the pairs or the folder do not do. What fails within a cell
            raises nothing; the outcome counts it.
    """
    source, cells = plan_cells(plan, out, manifest)
    wanted = select(cells, only)
    if report_only and not any(status(out / cell.folder) == DONE for cell in cells):
        raise RunError(
            f"{out} has no cell of this plan that is done; give the manifest and the overrides "
            "that it was run with (its plan.yaml tells them)"
        )
    with _locked(out) as lock:
        keep = partial(write_ledger, out, plan, cells)
        finished = True
        if not report_only:
            todo = [cell for cell in wanted if status(out / cell.folder) != DONE]
            logger.info("%d cells, %d of them to be run", len(wanted), len(todo))
            _write_jobs(plan, todo, source, out)
            keep()
            finished = run_cells(todo, out, jobs=jobs, lock=lock, ended=keep)
        keep()
        _check_clips(out, cells)
        found = [status(out / cell.folder) for cell in cells]
        report = None
        if DONE in found:
            from crosspair.reporting.ablation import write_ablation_report

            report = write_ablation_report(out)
    return AblationOutcome(found.count(DONE), found.count(FAILED), len(cells), not finished, report)


def plan_cells(
    plan: AblationPlan, out: Path, manifest: str | None = None
) -> tuple[PairSource, list[Cell]]:
    """The pairs and cells of a plan; nothing is written.

    Raises:
        CrosspairError: see `ablate`.
    """
    columns = [plan.overrides, *(keys for values in plan.axes.values() for keys in values.values())]
    titles = any("text.column" in keys for keys in columns)
    source = PairSource(out.absolute() / "corpora", manifest, titles)
    return source, expand_cells(plan, source)


def _write_jobs(plan: AblationPlan, todo: Sequence[Cell], source: PairSource, out: Path) -> None:
    """Make the pairs, and tell each cell's process what to do."""
    for cell in todo:
        pairs = str(source.write(cell.corpus, cell.seed).absolute())
        finetuning = None
        if cell.finetuning is not None and plan.finetuning is not None:
            finetuning = {
                "recipe": recipe_settings(cell.finetuning),
                "videos": _absolute(plan.finetuning.manifest) or pairs,
                "clips": plan.finetuning.clips,
                "crops": plan.finetuning.crops,
            }
        job = Job(
            recipe_settings(cell.recipe), pairs, plan.evaluation.protocols, plan.evaluation.clips,
            _absolute(plan.evaluation.manifest) or pairs, finetuning, cell.beside_random,
        )  # fmt: skip
        write_job(out / cell.folder, job)


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def _check_clips(out: Path, cells: Sequence[Cell]) -> None:
    """Pairs whose title a text encoder cannot read are only known when a cell has begun."""
    done = [cell for cell in cells if status(out / cell.folder) == DONE]
    seen = {read_state(out / cell.folder)["clips"]: cell.name for cell in done}
    if seen and max(seen) - min(seen) > ALIKE * max(seen):
        logger.warning(
            "%s has seen %d clips, %s only %d, as titles without a word that its text encoder "
            "knows were left out: compare them with care",
            seen[max(seen)], max(seen), seen[min(seen)], min(seen),
        )  # fmt: skip


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Hold the folder, so that no two processes work on one cell; yields a file descriptor."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        lock = os.open(out / "cells" / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RunError(f"{out} cannot be written to: {error.strerror}") from error
    try:
        until, told = time.monotonic() + _PATIENCE, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise RunError(f"another ablation is at work in {out}; wait for it") from error
                if not told:
                    logger.info("waiting for the cells of an earlier command to save themselves")
                    told = True
                time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


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
    asked = graceful_shutdown("asked to stop: the running cells save themselves first")
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
    threads = str(max(1, cpu_count() // jobs))
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
