"""A corpus is prepared: every missing file is made, and the new manifest is written."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from crosspair.corpora.manifest import Manifest, manifest_of
from crosspair.corpora.prepare.engines import Engine
from crosspair.corpora.prepare.plan import JOURNAL, MANIFEST, VIDEOS, Plan
from crosspair.corpora.prepare.request import Outcome
from crosspair.errors import ManifestError, RunError
from crosspair.journal import Journal

logger = logging.getLogger(__name__)

KEPT = ("pair_id", "title", "title_clean", "title_tree", "label", "split")

Tell = Callable[[int, int], None]
"""Called after every file with the files that are done, and how many sources were broken."""


def prepare_corpus(plan: Plan, engine: Engine, progress: Tell = lambda *_: None) -> Manifest:
    """Do what is planned.

    Files appear whole or not at all, so a call that was cut short is made again to go on.

    Returns:
        The manifest of the prepared files. Rows whose source is broken have ``error`` filled.

    Raises:
        RunError: the folder cannot be written to, or another run prepares into it.
    """
    videos = plan.out / VIDEOS
    try:
        videos.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{plan.out} cannot be written to: {error.strerror}") from error
    with alone_in(plan.out):
        _clean(videos)
        try:
            probed = _probed(plan, engine, progress)
        finally:
            _clean(videos)
        rows = plan.manifest.table.select(KEPT).to_pylist()
        for row, index in zip(rows, plan.of_row, strict=True):
            row |= {"path": f"{VIDEOS}/{plan.requests[index].target.name}", **probed[index]}
        return manifest_of(rows, plan.out / MANIFEST).write(plan.out / MANIFEST)


@dataclass(frozen=True)
class Estimate:
    """What is missing, and what a sample says about it.

    Attributes:
        missing: files to be made.
        sampled: how many of them were made to see.
        broken: how many of these could not be.
        work: of one core for all that is missing, in s.
        size: of all that is missing, in bytes.
    """

    missing: int
    sampled: int
    broken: int
    work: float
    size: float


def estimate(
    plan: Plan, engine: Engine, sample: int, seed: int = 0, progress: Tell = lambda *_: None
) -> Estimate:
    """Make a random sample of the missing files in a temporary folder.

    Args:
        plan: see `plan_preparation`.
        engine: of as many processes as the real run has, since they slow each other.
        sample: how many, at most.
        seed: of the choice.
        progress: see `Tell`.

    Raises:
        ManifestError: ``sample`` is not positive.
        RunError: the temporary folder cannot be written to.
    """
    if sample < 1:
        raise ManifestError(f"the sample is {sample} videos; it must be 1 or more")
    missing = plan.missing
    chosen = np.random.default_rng(seed).permutation(len(missing))[:sample]
    requests = [plan.requests[missing[place]] for place in chosen]
    with TemporaryDirectory() as folder:
        elsewhere = [replace(each, target=Path(folder) / each.target.name) for each in requests]
        with closing(engine(elsewhere)) as outcomes:
            made = [outcome for _, outcome in _told(outcomes, 0, progress)]
    scale = len(missing) / max(1, len(made))
    work, size = (scale * sum(of) for of in ([o.seconds for o in made], [o.size for o in made]))
    return Estimate(len(missing), len(made), sum(bool(o.error) for o in made), work, size)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Raises:
        RunError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run prepares into {folder}; wait until it ends") from error
        except OSError:
            pass  # file systems without locks
        yield
    finally:
        os.close(descriptor)


def _probed(plan: Plan, engine: Engine, progress: Tell) -> dict[int, dict[str, Any]]:
    """What the manifest says of each request's file beyond its path."""
    probed, missing = dict(plan.done), plan.missing
    requests = [plan.requests[index] for index in missing]
    # Closed at once when `progress` raises, so that no process works on.
    with Journal(plan.out / JOURNAL) as journal, closing(engine(requests)) as outcomes:
        for place, outcome in _told(outcomes, len(probed), progress):
            target, key = requests[place].target, requests[place].key
            if outcome.error:
                logger.warning("broken: %s", outcome.error)
                probed[missing[place]] = {"error": outcome.error}
                target.unlink(missing_ok=True)  # of an earlier request, which it no longer answers
            else:
                probed[missing[place]] = found = outcome.probed
                journal.add(
                    {"file": target.name, "key": key, "size": outcome.size, "probed": found}
                )
    return probed


def _told(
    outcomes: Iterable[tuple[int, Outcome]], done: int, progress: Tell
) -> Iterator[tuple[int, Outcome]]:
    broken = 0
    progress(done, broken)
    for count, (place, outcome) in enumerate(outcomes, done + 1):
        if outcome.fatal:
            raise RunError(outcome.fatal)
        yield place, outcome
        broken += bool(outcome.error)
        progress(count, broken)


def _clean(videos: Path) -> None:
    """Remove what killed processes have left."""
    for partial in videos.glob(".*.partial"):
        partial.unlink(missing_ok=True)
