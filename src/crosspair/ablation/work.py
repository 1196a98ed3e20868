"""A cell's work, in a process of its own: pre-train, test, fine-tune, write ``results.json``."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crosspair.ablation.cells import (
    DONE,
    RESULTS,
    Job,
    count_clips,
    read_job,
    read_state,
    write_state,
)
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.evaluation.evaluate import FrozenConfig, frozen_results, results_with_random_baseline
from crosspair.evaluation.feature_cache import cached_features
from crosspair.evaluation.features import Features
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import Result, Subject, write_results
from crosspair.files import read_jsonl
from crosspair.models.cpd import CPD
from crosspair.models.init import load_init_weights
from crosspair.progress import progress
from crosspair.provenance import provenance
from crosspair.recipes import make_recipe, recipe_hash
from crosspair.training.finetune import finetune
from crosspair.training.pretrain import pretrain


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
    metrics = read_jsonl(folder / "metrics.jsonl")
    used = next(int(line["train"]) for line in metrics if line["kind"] == "pairs")
    found = {"status": DONE, "pairs": used, "clips": count_clips(recipe, used)}
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
    videos, config = Manifest.read(job.videos), FrozenConfig(seed=recipe.training.seed)
    model.to(world.device)

    def features(each: CPD) -> Features:
        name = "features" if each is model else "features-random"
        with progress("encoding", len(videos) * job.clips, "clips") as bar:
            return cached_features(
                each, videos, folder / name,
                clips=job.clips, workers=recipe.training.workers, world=world,
                precision=recipe.training.precision, progress=lambda done, _: bar.advance(done),
            )  # fmt: skip

    if job.beside_random:
        return results_with_random_baseline(model, videos, features, job.protocols, config)[0]
    return frozen_results(model, videos, features(model), job.protocols, config)


def _finetuned(
    job: Job, settings: dict[str, Any], folder: Path, world: World
) -> list[Result] | None:
    """Results after fine-tuning from the cell's weights and from none; None where it is stopped."""
    recipe = make_recipe(FinetuneRecipe, settings["recipe"])
    videos = Manifest.read(settings["videos"])
    starts: list[tuple[Subject, str, str]] = [("trained", str(folder / "model"), "finetuning")]
    if job.beside_random:
        starts.append(("random weights", "random", "finetuning-random"))
    results: list[Result] = []
    for of, init, name in starts:
        start = load_init_weights(init)
        model = finetune(recipe, videos, folder / name, init=start, resume=True, world=world)
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
