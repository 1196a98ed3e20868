"""Process of a cell: pre-train, evaluate, fine-tune, and write ``results.json``.

`crosspair.ablation.run` starts it as ``python -m crosspair.ablation.work FOLDER SLOT``.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from crosspair.ablation.cells import (
    DONE,
    RESULTS,
    Job,
    count_clips,
    read_job,
    read_state,
    write_state,
)
from crosspair.ablation.run import EXIT_STOPPED, STOP_INTERVAL
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.errors import CrosspairError
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


def main(folder: str, slot: str) -> int:
    """Run a cell, and return the exit status; an error is the last line of the output.

    Args:
        folder: folder of the cell, with ``job.json``.
        slot: number of the job among those that run at the same time; it selects the GPU.
    """
    _stop_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    world = World()
    if torch.cuda.is_available():
        world = World(device=torch.device("cuda", int(slot) % torch.cuda.device_count()))
        torch.cuda.set_device(world.device)
    try:
        return 0 if run_cell(Path(folder), world) else EXIT_STOPPED
    except CrosspairError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def run_cell(folder: Path, world: World) -> bool:
    """Start or resume a cell.

    Returns:
        Whether the cell is done; False after an interruption.

    Raises:
        CrosspairError: Training or evaluation failed.
    """
    job = read_job(folder)
    recipe, pairs = make_recipe(Recipe, job.recipe), Manifest.read(job.manifest)
    with _record_seconds(folder, "pretrain"):
        model = pretrain(recipe, pairs, folder, resume=True, world=world)
    if model is None:
        return False
    results: list[Result] = []
    if job.protocols:
        with _record_seconds(folder, "evaluate"):
            results += _evaluate_frozen(job, recipe, model, folder, world)
    if job.finetuning:
        with _record_seconds(folder, "finetune"):
            finetuned = _finetune_and_evaluate(job, job.finetuning, folder, world)
        if finetuned is None:
            return False
        results += finetuned
    manifests = [Manifest.read(path) for path in _evaluated_manifests(job)]
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, seed=recipe.training.seed,
        manifest="+".join(manifest.hash for manifest in manifests),
        manifest_file="+".join(manifest.path.name for manifest in manifests),
    )  # fmt: skip
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    write_results(folder / RESULTS, unique, origin)
    metrics = read_jsonl(folder / "metrics.jsonl")
    used = next(int(line["train"]) for line in metrics if line["kind"] == "pairs")
    counts = {"pairs": used, "clips": count_clips(recipe, used)}
    write_state(folder, {**read_state(folder), "status": DONE, **counts})
    for run in (folder, folder / "finetuning", folder / "finetuning-random"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # only needed to resume
    return True


def _evaluate_frozen(
    job: Job, recipe: Recipe, model: CPD, folder: Path, world: World
) -> list[Result]:
    videos, config = Manifest.read(job.videos), FrozenConfig(seed=recipe.training.seed)
    model.to(world.device)

    def features(network: CPD) -> Features:
        name = "features" if network is model else "features-random"
        with progress("encoding", len(videos) * job.clips, "clips") as bar:
            return cached_features(
                network, videos, folder / name,
                clips=job.clips, workers=recipe.training.workers, world=world,
                precision=recipe.training.precision, progress=lambda done, _: bar.advance(done),
            )  # fmt: skip

    if job.random_baseline:
        return results_with_random_baseline(model, videos, features, job.protocols, config)[0]
    return frozen_results(model, videos, features(model), job.protocols, config)


def _finetune_and_evaluate(
    job: Job, settings: dict[str, Any], folder: Path, world: World
) -> list[Result] | None:
    """Fine-tune the cell's model, and random weights for the baseline; None if interrupted."""
    recipe = make_recipe(FinetuneRecipe, settings["recipe"])
    videos = Manifest.read(settings["videos"])
    runs: list[tuple[Subject, str, str]] = [("trained", str(folder / "model"), "finetuning")]
    if job.random_baseline:
        runs.append(("random weights", "random", "finetuning-random"))
    results: list[Result] = []
    for subject, weights, name in runs:
        start = load_init_weights(weights)
        model = finetune(recipe, videos, folder / name, init=start, resume=True, world=world)
        if model is None:
            return None
        views = multiview_results(
            model, videos,
            clips=settings["clips"], crops=settings["crops"], workers=recipe.training.workers,
            world=world, precision=recipe.training.precision,
            settings={"labels": recipe.labels.share, "epochs": recipe.training.epochs},
        )  # fmt: skip
        results += [
            dataclasses.replace(result, of=subject) if result.of == "trained" else result
            for result in views
        ]
    return results


def _evaluated_manifests(job: Job) -> list[str]:
    """List the manifests in the provenance of the results; a training logs its own manifest."""
    paths = [job.videos] if job.protocols else []
    paths += [job.finetuning["videos"]] if job.finetuning else []
    return list(dict.fromkeys(paths))


@contextmanager
def _record_seconds(folder: Path, step: str) -> Iterator[None]:
    """Add the duration of a step to the state of the cell, also if the step is interrupted."""
    begin = time.monotonic()
    try:
        yield
    finally:
        state = read_state(folder)
        seconds = state.setdefault("seconds", {})
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - begin, 1)
        write_state(folder, state)


def _stop_with_parent() -> None:
    """Send SIGTERM to this process when standard input is closed, that is, when the parent ends."""

    def watch() -> None:
        # Not sys.stdin: worker processes would inherit its lock in the locked state and block.
        while os.read(0, 1):
            pass
        while True:  # repeat: a signal at the end of a training is not seen by the next step
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(STOP_INTERVAL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
