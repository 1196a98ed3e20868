"""A cell's work, in a process of its own: pre-train, test, fine-tune, write ``results.json``."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crosspair.ablation.cells import clips_seen
from crosspair.ablation.job import Job, read_job
from crosspair.ablation.ledger import DONE, RESULTS, read_state, write_state
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.evaluation import (
    Features,
    FrozenConfig,
    Result,
    cached_features,
    frozen_results,
    provenance,
    random_like,
    write_results,
)
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import Subject
from crosspair.models import CPD, read_start
from crosspair.progress import progress
from crosspair.recipes import make_recipe, recipe_hash
from crosspair.training import finetune, pretrain

logger = logging.getLogger(__name__)

RANDOM: Subject = "random weights"


def run_cell(folder: Path, world: World) -> bool:
    """Do the rest of a cell; tell whether it came to its end.

    Raises:
        CrosspairError: as the steps do.
    """
    job = read_job(folder)
    recipe, pairs = make_recipe(Recipe, job.recipe), Manifest.read(job.manifest)
    with _lap(folder, "pretrain"):
        model = pretrain(recipe, pairs, folder, resume=True, world=world)
    if model is None:
        return False
    results: list[Result] = []
    if job.protocols:
        with _lap(folder, "evaluate"):
            results += _frozen(job, recipe, model, folder, world)
    if job.finetuning:
        with _lap(folder, "finetune"):
            tuned = _finetuned(job, job.finetuning, folder, world)
        if tuned is None:
            return False
        results += tuned
    tested = [Manifest.read(path) for path in _tested(job)]
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, seed=recipe.training.seed,
        manifest="+".join(each.hash for each in tested),
        manifest_file="+".join(each.path.name for each in tested),
    )  # fmt: skip
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    write_results(folder / RESULTS, unique, origin)
    used = _pairs_used(folder)
    found = {"status": DONE, "pairs": used, "clips": clips_seen(recipe, used)}
    write_state(folder, {**read_state(folder), **found})
    for run in (folder, folder / "finetuning", folder / "finetuning-random"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # nothing will be resumed
    return True


def _tested(job: Job) -> list[str]:
    """The manifests that results are of; that of the pairs is noted by the training."""
    paths = [job.videos] if job.protocols else []
    paths += [job.finetuning["videos"]] if job.finetuning else []
    return list(dict.fromkeys(paths))


def _frozen(job: Job, recipe: Recipe, model: CPD, folder: Path, world: World) -> list[Result]:
    videos, seed = Manifest.read(job.videos), recipe.training.seed
    subjects: list[tuple[Subject, CPD]] = [("trained", model.to(world.device))]
    if job.beside_random:
        subjects.append((RANDOM, random_like(model, seed)))
    results = []
    for of, each in subjects:
        name = "features" if of == "trained" else "features-random"
        features = _features(job, recipe, each, videos, folder / name, world)
        results += frozen_results(
            each, videos, features, job.protocols, FrozenConfig(seed=seed), of=of
        )
    return results


def _features(
    job: Job, recipe: Recipe, model: CPD, videos: Manifest, folder: Path, world: World
) -> Features:
    with progress("encoding", len(videos) * job.clips, "clips") as bar:
        return cached_features(
            model, videos, folder,
            clips=job.clips, workers=recipe.training.workers, world=world,
            precision=recipe.training.precision, progress=lambda done, _: bar.advance(done),
        )  # fmt: skip


def _finetuned(
    job: Job, settings: dict[str, Any], folder: Path, world: World
) -> list[Result] | None:
    """Results after fine-tuning from the cell's weights and from none; None where it is stopped."""
    recipe = make_recipe(FinetuneRecipe, settings["recipe"])
    videos = Manifest.read(settings["videos"])
    starts: list[tuple[Subject, str, str]] = [("trained", str(folder / "model"), "finetuning")]
    if job.beside_random:
        starts.append((RANDOM, "random", "finetuning-random"))
    results: list[Result] = []
    for of, init, name in starts:
        start = read_start(init)
        model = finetune(recipe, videos, folder / name, start=start, resume=True, world=world)
        if model is None:
            return None
        found = multiview_results(
            model, videos,
            clips=settings["clips"], crops=settings["crops"], workers=recipe.training.workers,
            world=world, precision=recipe.training.precision,
            settings={"labels": recipe.labels.share, "epochs": recipe.training.epochs},
        )  # fmt: skip
        results += [
            dataclasses.replace(result, of=of) if result.of == "trained" else result
            for result in found
        ]
    return results


@contextmanager
def _lap(folder: Path, step: str) -> Iterator[None]:
    """Add a step's seconds to the cell's, also when it is stopped in the middle."""
    begin = time.monotonic()
    try:
        yield
    finally:
        state = read_state(folder)
        seconds = state.setdefault("seconds", {})
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - begin, 1)
        write_state(folder, state)


def _pairs_used(folder: Path) -> int:
    """Pairs that pre-training learnt from, as it noted at its beginning."""
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        first = next(line for line in map(json.loads, lines) if line["kind"] == "pairs")
    return int(first["train"])
