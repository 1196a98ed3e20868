"""Transfer: fine-tune, test, and average over official splits (Section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import ManifestError, RunError
from crosspair.evaluation import Provenance, Result, provenance, read_results, write_results
from crosspair.evaluation.classtask import check_labels
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.officialsplits import (
    check_manifest_name,
    name_of_split,
    write_over_splits,
)
from crosspair.models import Classifier, Start, read_start
from crosspair.recipes import recipe_hash
from crosspair.training.finetune import finetune

logger = logging.getLogger(__name__)

RESULTS = "results.json"


def transfer(
    recipe: FinetuneRecipe,
    manifest: str,
    init: str,
    run: Path,
    *,
    test: bool = True,
    tested: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> list[Result] | None:
    """Fine-tune, then test with 30 views; results go to ``run/results.json``.

    Args:
        recipe: of the fine-tuning.
        manifest: file of the videos.
        init: the weights to begin with, see `crosspair.models.read_start`.
        run: the run's folder.
        test: whether to test at all.
        tested: on which split.
        resume: go on with what the folder holds; a test that is there is not made again.
        profile: time the parts of some steps of the training.
        world: the processes that work together.

    Returns:
        The results, none without a test; or None where the training was asked to stop.

    Raises:
        CrosspairError: as `finetune` and `multiview_results` do.
    """
    world = world or World()
    videos, start = _inputs(manifest, init, tested if test else None)
    model = finetune(
        recipe, videos, run,
        start=start, tested=tested, resume=resume, profile=profile, world=world,
    )  # fmt: skip
    if model is None:
        return None
    if not test:
        return []
    origin = _provenance(recipe, model, videos)
    found = _results_there(run / RESULTS, origin)
    if found is not None:
        return found
    results = multiview_results(
        model, videos,
        split=tested, workers=recipe.training.workers, world=world,
        precision=recipe.training.precision,
        settings={"init": start.name, "labels": recipe.labels.share},
    )  # fmt: skip
    if world.is_main:
        write_results(run / RESULTS, results, origin)
    world.barrier()
    return results


def transfer_over_splits(
    recipe: FinetuneRecipe,
    manifest: str,
    init: str,
    run: Path,
    splits: Sequence[int],
    *,
    tested: str = "test",
    resume: bool = False,
    profile: bool = False,
    world: World | None = None,
) -> list[Result] | None:
    """`transfer` on each official split, in ``run/split1`` and so on, and the mean of the results.

    Args:
        recipe: of each fine-tuning.
        manifest: with ``{}`` for a split's number.
        init: likewise, where each split has weights of its own.
        run: gets a folder for each split, and ``results.json`` with the means, then those of each.
        splits: their numbers.
        tested, resume, profile, world: see `transfer`.

    Returns:
        The means (on the main process alone); or None where it was asked to stop.

    Raises:
        RunError: the manifest's name has no place for a number.
        CrosspairError: as `transfer` does.
    """
    world = world or World()
    check_manifest_name(manifest)
    inputs = {
        split: (name_of_split(manifest, split), name_of_split(init, split)) for split in splits
    }
    for videos, weights in inputs.values():  # the last's fault is told before the first's training
        _inputs(videos, weights, tested)
    found = {}
    for split, (videos, weights) in inputs.items():
        folder = run / f"split{split}"
        logger.info("split %d", split)
        results = transfer(
            recipe, videos, weights, folder,
            tested=tested, resume=resume, profile=profile, world=world,
        )  # fmt: skip
        if results is None:
            return None
        found[split] = results, read_results(folder / RESULTS)[1]
    return write_over_splits(run / RESULTS, found) if world.is_main else []


def _inputs(manifest: str, init: str, tested: str | None) -> tuple[Manifest, Start]:
    """What to train on and to begin with; whatever stops the test is told before the training."""
    videos, start = Manifest.read(manifest), read_start(init)
    if tested is None:
        return videos, start
    split = videos.split(tested)
    if not len(split):
        raise ManifestError(
            f"{videos.path}: no video of split {tested} to test on; give another by --test-split, "
            "or --no-test"
        )
    check_labels(split, tested)
    return videos, start


def _provenance(recipe: FinetuneRecipe, model: Classifier, manifest: Manifest) -> Provenance:
    return provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=manifest.hash,
        seed=recipe.training.seed, manifest_file=manifest.path.name,
    )  # fmt: skip


def _results_there(path: Path, origin: Provenance) -> list[Result] | None:
    """Results of an earlier test of the same classifier on the same videos."""
    try:
        results, found = read_results(path)
    except RunError:
        return None
    same = (found.recipe, found.model, found.manifest) == (
        origin.recipe, origin.model, origin.manifest,
    )  # fmt: skip
    return results if same else None
