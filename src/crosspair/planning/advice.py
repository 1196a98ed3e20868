"""What to change before a long training, by what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest
from crosspair.planning.measuring import Measured
from crosspair.precision import dtype_for

LARGER = 1.25  # times the short side that a recipe needs, from which on a video is large
SLOWED = 0.9  # of the speed of steps alone, below which loading costs something
WHOLE_BATCH = {"ranking", "in_batch"}  # objectives whose batch must not be in parts


def advice(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    measured: Measured,
    cores: int,
    *,
    data_bound: bool,
    device: torch.device,
) -> list[str]:
    """What would make the training faster, or possible; a sentence each, the most urgent first."""
    found = list(_on_memory(recipe, measured))
    if measured.together < SLOWED * measured.step:  # by waiting, or as workers take its cores
        found += _on_videos(recipe, manifest)
    if data_bound:
        found += _on_workers(recipe, measured, cores)
    slow = recipe.training.precision == "fp32"
    if slow and dtype_for(device, "auto") != torch.float32:
        found.append("training.precision=auto: this processor computes in bfloat16.")
    return found


def _on_memory(recipe: Recipe | FinetuneRecipe, measured: Measured) -> Iterator[str]:
    training = recipe.training
    parts = range(training.accumulate, training.batch_size // 2 + 1)
    fitting = [
        each
        for each in parts
        if training.batch_size % each == 0
        and measured.memory_of(training.batch_size // each) <= measured.available
    ]
    if not fitting or fitting[0] == training.accumulate:
        return
    clips = training.batch_size // training.accumulate
    needed = measured.memory_of(clips) / 1e9
    if isinstance(recipe, Recipe) and recipe.objective.name in WHOLE_BATCH:
        change = f"training.batch_size={training.batch_size // fitting[0]}"
    else:
        change = f"training.accumulate={fitting[0]}"
    yield (
        f"{change}: {clips} clips at a time need {needed:.1f} GB, and there are "
        f"{measured.available / 1e9:.1f}."
    )


def _on_videos(recipe: Recipe | FinetuneRecipe, manifest: Manifest) -> Iterator[str]:
    side = 2 * math.ceil(recipe.clip.test_scale * recipe.clip.size / 2)
    sizes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    known = [min(size) for size in sizes if all(size)]
    codecs = set(manifest.column("codec")) - {None}
    if not known:
        yield f'Look at the videos: "crosspair check {manifest.path}" tells whether they are large.'
    elif statistics.median(known) > LARGER * side or codecs - {"h264"}:
        yield (
            f'Prepare the videos: "crosspair prepare {manifest.path} --out prepared --short-side '
            f'{side}"; half of them have a short side of {statistics.median(known):g} pixels or '
            f"more, and are {', '.join(sorted(codecs))}."
        )


def _on_workers(recipe: Recipe | FinetuneRecipe, measured: Measured, cores: int) -> Iterator[str]:
    wanted, workers = math.ceil(measured.step / measured.by_worker), recipe.training.workers
    if workers < min(wanted, cores):
        yield (
            f"training.workers={min(wanted, cores)}: a worker loads {measured.by_worker:.1f} "
            f"clips/s, and a step could take {measured.step:.1f}."
        )
    if wanted > cores:
        yield (
            f"More cores: {wanted} would keep up with the network, and this machine has {cores}."
        )
