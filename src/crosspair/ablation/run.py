"""Run the missing cells of a plan in processes, and write the report."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from crosspair.ablation.cells import (
    DONE,
    FAILED,
    MISSING,
    PAIR_TOLERANCE,
    Cell,
    describe_cell,
    plan_cells,
    select,
    status,
    update_state,
    write_jobs,
    write_summary,
)
from crosspair.ablation.plan import AblationPlan
from crosspair.errors import RunError
from crosspair.files import check_output, file_lock
from crosspair.progress import graceful_shutdown, progress
from crosspair.workers import cpu_count

logger = logging.getLogger(__name__)

EXIT_STOPPED = 75  # exit status of a cell that was interrupted and can be resumed
LOG = "log.txt"
_POLL_INTERVAL = 0.2  # s


class AblationOutcome(NamedTuple):
    """Numbers of cells in the whole plan, whether the run was interrupted, and the HTML report."""

    done: int
    failed: int
    cells: int
    stopped: bool
    report: Path | None  # None if no cell is done


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

    If a cell fails, the others continue. After SIGTERM, SIGHUP or Ctrl-C, the running cells write a
    checkpoint.

    Args:
        plan: plan, see `crosspair.ablation.read_plan`.
        out: folder for ``plan.yaml``, ``ablation.json``, ``cells/``, ``corpora/`` and the report.
            Cells that are done are reused, interrupted ones are resumed, and failed ones retried.
        manifest: training pairs, for plans that do not render them.
        only: rows to run, see `crosspair.ablation.cells.select`; empty: all rows.
        jobs: number of cells that run at the same time. Each gets a part of the CPU cores, and one
            of the GPUs.
        report_only: whether to run no cell.

    Raises:
        CrosspairError: The plan, the pairs or the folder are invalid. Errors within a cell are only
            counted in the outcome.
    """
    check_output(out / "report.html", "a report")
    cells, stopped = plan_cells(plan, out, manifest), False
    select(plan, cells, only)  # reject unknown rows
    if report_only and not any(status(out, cell) == DONE for cell in cells):
        raise RunError(
            f"{out} has no completed cell of this plan. Use the manifest and the overrides of the "
            "original run, listed in its plan.yaml."
        )
    with file_lock(out / "cells" / ".lock", f"another ablation is running in {out}"):
        for tuning in (True, False):
            cells = plan_cells(plan, out, manifest)  # with the values chosen by tuning
            wanted = [] if report_only or stopped else select(plan, cells, only)
            todo = write_jobs(out, plan, [cell for cell in wanted if cell.tuning == tuning])
            write_summary(out, plan, cells)
            _run_cells(plan, out, cells, todo, jobs)
            stopped |= any(status(out, cell) == MISSING for cell in todo)
        write_summary(out, plan, cells)
        _warn_unequal_pairs(out, [cell for cell in cells if not cell.tuning])
        states = [status(out, cell) for cell in cells]
        report = None
        if DONE in states:
            from crosspair.reporting.ablation import write_ablation_report

            report = write_ablation_report(out)
    return AblationOutcome(states.count(DONE), states.count(FAILED), len(cells), stopped, report)


def cell_command(folder: Path, slot: int) -> list[str]:
    """Return the command that runs a cell, or resumes it.

    Args:
        folder: folder of the cell, see `crosspair.ablation.cells.write_jobs`.
        slot: number of the cell among those that run at the same time; it selects the GPU.
    """
    return [sys.executable, "-m", "crosspair.ablation.work", str(folder.absolute()), str(slot)]


def _run_cells(plan: AblationPlan, out: Path, cells: Sequence[Cell], todo: Sequence[Cell], jobs: int) -> None:
    """Run the cells ``todo``, ``jobs`` processes at a time, and update the summary of all cells after each."""
    waiting, running, ended = deque(todo), dict[int, tuple[Cell, subprocess.Popen[bytes]]](), 0
    threads = str(max(1, cpu_count() // jobs))
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": threads}
    stdin, keep_running = os.pipe()  # cells stop when the latter is closed, also by a kill
    with (
        graceful_shutdown("stopping: the running cells write a checkpoint first") as stop_requested,
        progress("ablation", len(todo), "cells") as bar,
    ):
        try:
            while (waiting or running) and not stop_requested():
                while waiting and len(running) < jobs:
                    cell, slot = waiting.popleft(), min({*range(jobs)} - running.keys())
                    update_state(out / cell.folder, error=None)
                    with (out / cell.folder / LOG).open("ab") as log:
                        running[slot] = cell, subprocess.Popen(
                            [*cell_command(out / cell.folder, slot), "--stop-with-stdin"],
                            stdin=stdin, stdout=log, stderr=log, env=environment,
                            start_new_session=True,  # Ctrl-C does not reach the cells
                        )  # fmt: skip
                    logger.info("%s: started, log in %s", cell.name, out / cell.folder / LOG)
                    bar.advance(ended, cell.name)
                time.sleep(_POLL_INTERVAL)
                for slot, (cell, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        _record_end(cell, out / cell.folder, process.returncode)
                        write_summary(out, plan, cells)
                        ended += 1
                        bar.advance(ended)
        finally:
            os.close(keep_running)
            os.close(stdin)
            for _, process in running.values():
                process.wait()


def _record_end(cell: Cell, folder: Path, code: int) -> None:
    """Log that a cell is done or failed, and record the last line of a failed one's log; skip interrupted ones."""
    if code == 0:
        logger.info("%s: done", cell.name)
    elif code not in {EXIT_STOPPED, -signal.SIGTERM}:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        error = next((line for line in reversed(lines) if line.strip()), "the log is empty")
        if code < 0:
            error = f"killed by {signal.Signals(-code).name}, last line of the log: {error}"
        update_state(folder, error=error)
        logger.error("%s failed: %s (%s)", cell.name, error, folder / LOG)


def _warn_unequal_pairs(out: Path, cells: Sequence[Cell]) -> None:
    """Warn if completed cells differ by over 2 % in pairs seen (titles without a known word are skipped)."""
    states = {cell.name: describe_cell(out, cell) for cell in cells}
    pairs = {state["clips"] // state["views"]: name for name, state in states.items() if state["status"] == DONE}
    most, fewest = max(pairs, default=0), min(pairs, default=0)
    if most - fewest > PAIR_TOLERANCE * most:
        logger.warning(
            "%s has seen %d pairs, but %s only %d, because titles without a word in the vocabulary "
            "were skipped. These rows are not directly comparable.",
            pairs[most], most, pairs[fewest], fewest,
        )  # fmt: skip
