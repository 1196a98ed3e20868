"""A corpus is prepared: every missing file is made, and the new manifest is written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from crosspair.corpora.manifest import Manifest, manifest_of
from crosspair.corpora.prepare.engines import Engine
from crosspair.corpora.prepare.journal import alone_in
from crosspair.corpora.prepare.plan import MANIFEST, VIDEOS, Plan
from crosspair.errors import RunError

logger = logging.getLogger(__name__)

KEPT = ("pair_id", "title", "title_clean", "title_tree", "label", "split")


def prepare_corpus(
    plan: Plan, engine: Engine, progress: Callable[[int, int], None] = lambda *_: None
) -> Manifest:
    """Do what is planned.

    Files appear whole or not at all, so a call that was cut short is made again to go on.

    Args:
        plan: see `plan_preparation`.
        engine: where to do it.
        progress: called with the requests done and the sources found broken, after every file.

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
            plan.journal.start()
            probed = _answered(plan, engine, progress)
        finally:
            _clean(videos)
        rows = [
            {**row, "path": f"{VIDEOS}/{_target(plan, index).name}", **probed[index]}
            for row, index in zip(
                plan.manifest.table.select(KEPT).to_pylist(), plan.of_row, strict=True
            )
        ]
        return manifest_of(rows, plan.out / MANIFEST).write(plan.out / MANIFEST)


def _answered(
    plan: Plan, engine: Engine, progress: Callable[[int, int], None]
) -> dict[int, dict[str, Any]]:
    """What the manifest says of each request's file beyond its path."""
    probed, broken, missing = dict(plan.done), 0, plan.missing
    progress(len(probed), broken)
    # Closed at once when `progress` raises, so that no process works on.
    with closing(engine([plan.requests[index] for index in missing])) as outcomes:
        for place, outcome in outcomes:
            index = missing[place]
            if outcome.fatal:
                raise RunError(outcome.fatal)
            target = _target(plan, index)
            if outcome.error:
                broken += 1
                logger.warning("broken: %s", outcome.error)
                probed[index] = {"error": outcome.error}
                target.unlink(missing_ok=True)  # of an earlier request, which it no longer answers
            else:
                probed[index] = outcome.probed
                key = plan.requests[index].key
                plan.journal.note(target, key, outcome.size, outcome.probed)
            progress(len(probed), broken)
    return probed


def _target(plan: Plan, index: int) -> Path:
    target = plan.requests[index].target
    assert target is not None
    return target


def _clean(videos: Path) -> None:
    """Remove what killed processes have left."""
    for partial in videos.glob(".*.partial"):
        partial.unlink(missing_ok=True)
