"""Run the missing cells of a plan in worker processes, and write the report."""

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
    CLIP_TOLERANCE,
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
    write_state,
    write_summary,
)
from crosspair.ablation.plan import AblationPlan
from crosspair.errors import RunError
from crosspair.progress import console, graceful_shutdown
from crosspair.recipes import recipe_settings
from crosspair.workers import cpu_count

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75  # exit status of a cell that was interrupted and can be resumed
STOP_INTERVAL = 5.0  # s between two stop signals to a cell
LOG = "log.txt"
_POLL_INTERVAL = 0.2  # s
_LOCK_TIMEOUT = 120.0  # s that the cells of a killed ablation have to write a checkpoint


@dataclass(frozen=True)
class AblationOutcome:
    """Result of `ablate`.

    Attributes:
        done, failed: numbers of done and of failed cells in the whole plan.
        cells: number of cells in the plan.
        stopped: whether the run was interrupted.
        report: HTML report, or None if no cell is done.
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
    """Run all cells of a plan that are not done, and write the report.

    Args:
        plan: plan, see `crosspair.ablation.read_plan`.
        out: folder for ``plan.yaml``, ``ablation.json``, ``cells/``, ``corpora/`` and the report.
            Cells that are done are reused, interrupted ones are resumed, and failed ones retried.
        manifest: training pairs, for plans that do not render them.
        only: rows to run, see `crosspair.ablation.cells.select`; empty: all rows.
        jobs: number of cells that run at the same time.
        report_only: whether to run no cell.

    Raises:
        CrosspairError: The plan, the pairs or the folder are invalid. Errors within a cell are only
            counted in the outcome.
    """
    source, cells = plan_cells(plan, out, manifest)
    wanted = select(cells, only)
    if report_only and not any(status(out / cell.folder) == DONE for cell in cells):
        raise RunError(
            f"{out} has no completed cell of this plan. Use the manifest and the overrides of the "
            "original run, listed in its plan.yaml."
        )
    with _lock_folder(out) as lock:
        write = partial(write_summary, out, plan, cells)
        finished = True
        if not report_only:
            todo = [cell for cell in wanted if status(out / cell.folder) != DONE]
            logger.info("running %d of %d cells", len(todo), len(wanted))
            for cell in todo:
                write_job(out / cell.folder, _create_job(plan, cell, source))
            write()
            finished = run_cells(todo, out, jobs=jobs, lock=lock, on_cell_end=write)
        write()
        _warn_unequal_clips(out, cells)
        states = [status(out / cell.folder) for cell in cells]
        report = None
        if DONE in states:
            from crosspair.reporting.ablation import write_ablation_report

            report = write_ablation_report(out)
    return AblationOutcome(
        states.count(DONE), states.count(FAILED), len(cells), not finished, report
    )


def plan_cells(
    plan: AblationPlan, out: Path, manifest: str | None = None
) -> tuple[PairSource, list[Cell]]:
    """Return the pairs and the cells of a plan without writing anything.

    Raises:
        CrosspairError: See `ablate`.
    """
    columns = [plan.overrides, *(keys for values in plan.axes.values() for keys in values.values())]
    titles = any("text.column" in keys for keys in columns)
    source = PairSource(out.absolute() / "corpora", manifest, titles)
    return source, expand_cells(plan, source)


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    jobs: int,
    lock: int,
    on_cell_end: Callable[[], None],
) -> bool:
    """Run cells in processes. The folder of each cell already contains ``job.json``.

    For a failed cell, ``cell.json`` gets the status "failed" and the last line of the log as
    ``error``; the other cells continue. After SIGTERM or Ctrl-C, the running cells write a
    checkpoint; a second Ctrl-C kills them.

    Args:
        cells: cells in the order of execution.
        out: folder of the ablation.
        jobs: number of cells at the same time. Each gets a part of the CPU cores, and one of the
            GPUs.
        lock: file descriptor of the lock of ``out``, which the cells inherit.
        on_cell_end: called after each completed or failed cell.

    Returns:
        Whether all cells have run; False after an interruption.
    """
    waiting, running = deque(cells), dict[int, _CellProcess]()
    tally = _Tally(len(cells), jobs)
    shutdown = graceful_shutdown("stopping: the running cells write a checkpoint first")
    with shutdown as stop_requested, console.status("") as line:
        try:
            while running or (waiting and not stop_requested()):
                for slot in range(jobs):
                    if waiting and slot not in running and not stop_requested():
                        running[slot] = _CellProcess(waiting.popleft(), out, slot, jobs, lock)
                for slot, cell in list(running.items()):
                    if stop_requested():
                        cell.request_stop()
                    code = cell.process.poll()
                    if code is None:
                        continue
                    del running[slot]
                    terminated = cell.stop_requested is not None and code == -signal.SIGTERM
                    if code != EXIT_STOPPED and not terminated:
                        tally.add(cell, code)
                        on_cell_end()
                names = (
                    f"{cell.name} ({_format_duration(cell.seconds)})" for cell in running.values()
                )
                line.update(f"{tally}; running: {', '.join(names)}")
                time.sleep(_POLL_INTERVAL)
        finally:
            for cell in running.values():
                cell.process.kill()
                cell.process.wait()
        return not (stop_requested() and tally.left)


def _create_job(plan: AblationPlan, cell: Cell, source: PairSource) -> Job:
    """Write the pairs of a cell, and describe its work."""
    pairs = str(source.write(cell.corpus, cell.seed).absolute())

    def manifest(path: str) -> str:
        return str(Path(path).absolute()) if path else pairs

    finetuning = None
    if cell.finetuning is not None and plan.finetuning is not None:
        finetuning = {
            "recipe": recipe_settings(cell.finetuning),
            "videos": manifest(plan.finetuning.manifest),
            "clips": plan.finetuning.clips,
            "crops": plan.finetuning.crops,
        }
    return Job(
        recipe_settings(cell.recipe), pairs, plan.evaluation.protocols, plan.evaluation.clips,
        manifest(plan.evaluation.manifest), finetuning, cell.random_baseline,
    )  # fmt: skip


def _warn_unequal_clips(out: Path, cells: Sequence[Cell]) -> None:
    """Warn if the training skipped different numbers of titles without a known word."""
    done = [cell for cell in cells if status(out / cell.folder) == DONE]
    seen = {read_state(out / cell.folder)["clips"]: cell.name for cell in done}
    if seen and max(seen) - min(seen) > CLIP_TOLERANCE * max(seen):
        logger.warning(
            "%s has seen %d clips, but %s only %d, because titles without a word in the vocabulary "
            "were skipped. These rows are not directly comparable.",
            seen[max(seen)], max(seen), seen[min(seen)], min(seen),
        )  # fmt: skip


@contextmanager
def _lock_folder(out: Path) -> Iterator[int]:
    """Lock the folder against other ablations, and yield the file descriptor of the lock."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        lock = os.open(out / "cells" / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RunError(f"{out} is not writable: {error.strerror}") from error
    try:
        deadline, logged = time.monotonic() + _LOCK_TIMEOUT, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"another ablation is running in {out}. Wait until it has finished."
                    ) from error
                if not logged:
                    logger.info("waiting for the cells of an earlier command to stop")
                    logged = True
                time.sleep(_POLL_INTERVAL)
        yield lock
    finally:
        os.close(lock)


class _CellProcess:
    """Process that runs a cell; see `crosspair.ablation.work`."""

    def __init__(self, cell: Cell, out: Path, slot: int, jobs: int, lock: int) -> None:
        self.name, self.folder = cell.name, out / cell.folder
        self.stop_requested: float | None = None  # time of the last stop signal
        self._start = time.monotonic()
        threads = str(max(1, cpu_count() // jobs))
        with (self.folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "crosspair.ablation.work", str(self.folder), str(slot)],
                stdin=subprocess.PIPE,  # never written to: the cell stops when it is closed
                stdout=log,
                stderr=log,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": threads},
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C only reaches this process, which stops the cells
            )
        logger.info("%s: started, log in %s", self.name, self.folder / LOG)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def request_stop(self) -> None:
        now = time.monotonic()
        if self.stop_requested is None or now - self.stop_requested > STOP_INTERVAL:
            self.stop_requested = now
            self.process.terminate()

    def record_failure(self, code: int) -> str:
        """Write the last line of the log as the error of the cell, and return it."""
        lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        error = next((line for line in reversed(lines) if line.strip()), "the log is empty")
        if code < 0:
            error = f"killed by {signal.Signals(-code).name}, last line of the log: {error}"
        write_state(self.folder, {**read_state(self.folder), "status": FAILED, "error": error})
        return error


class _Tally:
    """Numbers of done and failed cells, and the estimated time of the others."""

    def __init__(self, cells: int, jobs: int) -> None:
        self._cells, self._jobs = cells, jobs
        self._seconds: list[float] = []
        self._failed = 0

    @property
    def left(self) -> int:
        return self._cells - len(self._seconds) - self._failed

    def add(self, cell: _CellProcess, code: int) -> None:
        if code:
            self._failed += 1
            error = cell.record_failure(code)
            logger.error("%s failed: %s (%s); %s", cell.name, error, cell.folder / LOG, self)
        else:
            self._seconds.append(cell.seconds)
            logger.info("%s: done in %s; %s", cell.name, _format_duration(cell.seconds), self)

    def __str__(self) -> str:
        text = f"{len(self._seconds)} of {self._cells} cells done, {self._failed} failed"
        if self._seconds and self.left:
            mean = sum(self._seconds) / len(self._seconds)
            text += f", about {_format_duration(mean * self.left / self._jobs)} left"
        return text


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
