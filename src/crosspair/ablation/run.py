"""Run a plan: the cells that are not done yet, then the report of all that are."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crosspair.ablation.cells import ALIKE, Cell, cells_of, select
from crosspair.ablation.ledger import (
    DONE,
    FAILED,
    Job,
    read_state,
    status,
    write_job,
    write_ledger,
)
from crosspair.ablation.pairs import Pairs
from crosspair.ablation.plan import Plan
from crosspair.ablation.pool import run_cells
from crosspair.errors import RunError
from crosspair.recipes import recipe_settings

logger = logging.getLogger(__name__)

_PATIENCE = 120.0  # s that cells of a killed ablation have to save themselves


@dataclass(frozen=True)
class Outcome:
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
    plan: Plan,
    out: Path,
    *,
    manifest: str | None = None,
    only: Collection[str] = (),
    jobs: int = 1,
    report_only: bool = False,
) -> Outcome:
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
    source, cells = planned(plan, out, manifest)
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
    return Outcome(found.count(DONE), found.count(FAILED), len(cells), not finished, report)


def planned(plan: Plan, out: Path, manifest: str | None = None) -> tuple[Pairs, list[Cell]]:
    """The pairs and cells of a plan; nothing is written.

    Raises:
        CrosspairError: see `ablate`.
    """
    columns = [plan.overrides, *(keys for values in plan.axes.values() for keys in values.values())]
    titles = any("text.column" in keys for keys in columns)
    source = Pairs(out.absolute() / "corpora", manifest, titles)
    return source, cells_of(plan, source)


def _write_jobs(plan: Plan, todo: Sequence[Cell], source: Pairs, out: Path) -> None:
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
