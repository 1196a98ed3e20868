"""Process of a cell: pre-train, evaluate, fine-tune, and write ``results.json`` and ``report.html``.

Usage: ``python -m crosspair.ablation.work FOLDER SLOT``, started by `crosspair.ablation.run` or
by a scheduler. The same command resumes an interrupted cell.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crosspair.ablation.cells import JOB, RESULTS, read_state, update_state
from crosspair.ablation.run import EXIT_STOPPED
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.errors import CrosspairError
from crosspair.evaluation.evaluate import EvaluationConfig, evaluate_model
from crosspair.evaluation.features import Features, cached_features
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import Result, Subject, write_results
from crosspair.files import file_lock
from crosspair.models.cpd import CPD
from crosspair.models.init import load_init_weights
from crosspair.progress import delayed_progress
from crosspair.provenance import provenance
from crosspair.recipes import make_recipe, recipe_hash
from crosspair.training.finetune import finetune
from crosspair.training.pretrain import pretrain
from crosspair.workers import keep_freed_memory

logger = logging.getLogger(__name__)

_STOP_INTERVAL = 5.0  # s between two stop signals
_LOCK_TIMEOUT = 120.0  # s that the process of a killed ablation has to write a checkpoint


def main(folder: str, slot: str, *options: str) -> int:
    """Run a cell, and return the exit status; an error is the last line of the output.

    Args:
        folder: folder of the cell, with ``job.json``.
        slot: number of the cell among those that run at the same time; it selects the GPU.
        options: ``--stop-with-stdin`` to stop when standard input is closed.
    """
    if options:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X")
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    world = World()
    if torch.cuda.is_available():
        world = World(device=torch.device("cuda", int(slot) % torch.cuda.device_count()))
        torch.cuda.set_device(world.device)
    path = Path(folder)
    try:
        with file_lock(path / ".lock", f"{path} is running", timeout=_LOCK_TIMEOUT):
            update_state(path, error=None)
            return 0 if (path / RESULTS).is_file() or run_cell(path, world) else EXIT_STOPPED
    except CrosspairError as error:
        update_state(path, error=f"error: {error}")
        sys.stderr.write(f"error: {error}\n")
        return 2


def run_cell(folder: Path, world: World) -> bool:
    """Start or resume a cell.

    Returns:
        Whether the cell is done; False after an interruption.

    Raises:
        CrosspairError: Training or evaluation failed.
    """
    job: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
    recipe, paths = make_recipe(Recipe, job["recipe"]), job["paths"]
    with _record_seconds(folder, "pretrain"):
        pairs = Manifest.read(paths["training"])
        model = pretrain(recipe, pairs, folder, resume=True, world=world)
    if model is None:
        return False
    results: list[Result] = []
    if job["protocols"]:
        with _record_seconds(folder, "evaluate"):
            results += _evaluate_frozen(job, recipe, model, folder, world)
    if job["finetuning"]:
        with _record_seconds(folder, "finetune"):
            finetuned = _finetune_and_evaluate(job, folder, world)
        if finetuned is None:
            return False
        results += finetuned
    manifests = [Manifest.read(path) for path in evaluated_manifests(paths)]
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, seed=recipe.training.seed,
        manifest="+".join(manifest.hash for manifest in manifests),
        manifest_file="+".join(manifest.path.name for manifest in manifests),
    )  # fmt: skip
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    write_results(folder / RESULTS, unique, origin, by_recording=True)
    for run in (folder, folder / "finetuning", folder / "finetuning-random"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # only needed to resume
    _write_page(folder)
    return True


def evaluated_manifests(paths: Mapping[str, str]) -> list[str]:
    """List the distinct manifest paths of evaluation and fine-tuning, without that of the training."""
    return list(dict.fromkeys(path for name, path in paths.items() if name != "training"))


def _evaluate_frozen(job: dict[str, Any], recipe: Recipe, model: CPD, folder: Path, world: World) -> list[Result]:
    """Evaluate the cell's frozen model and, if the cell is of the plan's baseline row, random weights."""
    videos = Manifest.read(job["paths"]["evaluation"])

    def extract(network: CPD, subject: Subject) -> Features:
        name = "features" if subject == "trained" else "features-random"
        with delayed_progress("encoding", "clips") as advance:
            return cached_features(
                network, videos, folder / name,
                clips=job["clips"], workers=recipe.training.workers, world=world,
                precision=recipe.training.precision, progress=advance,
            )  # fmt: skip

    config = EvaluationConfig(split=job.get("split", "test"), seed=recipe.training.seed)
    model.to(world.device)
    return evaluate_model(model, videos, extract, job["protocols"], config, random_baseline=job["random"])[0]


def _finetune_and_evaluate(job: dict[str, Any], folder: Path, world: World) -> list[Result] | None:
    """Fine-tune and test the cell's model and, in the baseline row, random weights; None if interrupted."""
    recipe = make_recipe(FinetuneRecipe, job["finetuning"]["recipe"])
    videos, (clips, crops) = Manifest.read(job["paths"]["finetuning"]), job["finetuning"]["views"]
    runs: list[tuple[Subject, str, str]] = [("trained", str(folder / "model"), "finetuning")]
    if job["random"]:
        runs.append(("random weights", "random", "finetuning-random"))
    results: list[Result] = []
    for subject, weights, name in runs:
        start = load_init_weights(weights)
        model = finetune(recipe, videos, folder / name, init=start, resume=True, world=world)
        if model is None:
            return None
        views = multiview_results(
            model, videos,
            replace(recipe.multiview, clips=clips, crops=crops),
            workers=recipe.training.workers, world=world, precision=recipe.training.precision,
            settings={"labels": recipe.labels.share, "epochs": recipe.training.epochs},
        )  # fmt: skip
        results += [replace(view, of=subject) if view.of == "trained" else view for view in views]
    return results


def _write_page(folder: Path) -> None:
    """Write ``report.html`` of the cell's run; a failure is a warning, since the cell is done."""
    from crosspair.reporting.run_report import write_run_report

    try:
        write_run_report(folder)
    except Exception as error:
        logger.warning("%s has no report.html: %s: %s", folder, type(error).__name__, error)


@contextmanager
def _record_seconds(folder: Path, step: str) -> Iterator[None]:
    """Add the duration of a step to the state of the cell, also if the step is interrupted."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds = read_state(folder).get("seconds", {})
        duration = round(seconds.get(step, 0.0) + time.monotonic() - start, 1)
        update_state(folder, seconds=seconds | {step: duration})


def _stop_with_stdin() -> None:
    """Wait until standard input is closed, also by a kill of the parent; then send this process SIGTERM every 5 s."""
    # Not sys.stdin: worker processes would inherit its lock in the locked state and block.
    while os.read(0, 1):
        pass
    while True:  # repeat: a signal at the end of a training is not seen by the next step
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_STOP_INTERVAL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
