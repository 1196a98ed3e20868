"""What a whole training takes, told from a part of a minute of it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import RecipeError
from crosspair.models.init import load_init_weights
from crosspair.planning.measuring import Measurements, measure
from crosspair.provenance import Machine, provenance
from crosspair.training.finetune import Finetuning
from crosspair.training.loop import check_batch_size
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import explain_dead_workers

DATA_BOUND = 0.1  # share of the time that the network waits for clips
LOGGED = 12  # numbers in a line of metrics.jsonl
NUMBER = 30 + 64  # bytes of one there, and in TensorBoard's file


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training will take.

    Attributes:
        recipe, manifest: what is to be trained on what.
        machine: that was measured.
        pairs: to learn from.
        clips: that the training sees.
        part: clips that go through the network at a time, by the recipe.
        measured: see there.
        data_bound: whether the network waits for clips more than a tenth of the time.
        projections: the first is this machine as it was measured.
        checkpoints, model, logs: bytes on the disk; of all checkpoints that there are at a time.
        advice: what to change, a sentence each.
    """

    recipe: str
    manifest: str
    machine: Machine
    pairs: int
    clips: int
    part: int
    measured: Measurements
    data_bound: bool
    projections: list[Projection]
    checkpoints: int
    model: int
    logs: int
    advice: list[str]


def estimate_training(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    *,
    name: str = "recipe",
    init: str = "random",
    processes: Sequence[int] = (),
    seconds: float = 30,
    world: World | None = None,
) -> TrainingEstimate:
    """Measure a training for some time, and tell what all of it takes. Nothing is written.

    Args:
        recipe: of a pre-training or a fine-tuning.
        manifest: pairs, or videos with labels.
        name: the recipe's, for people.
        init: weights to begin with, as of the training itself.
        processes: numbers of GPUs (of machines, where there is no GPU) to compute besides one.
        seconds: to measure for, about.
        world: where to compute: one process.

    Raises:
        CrosspairError: whatever would stop the training at its start; or the batch cannot be
            shared evenly by one of ``processes``.
    """
    world = world or World()
    training = recipe.training
    if world.size > 1:
        raise RecipeError("one process makes a plan for any number of them; leave out torchrun")
    for number in processes:
        check_batch_size(training, World(size=number))
    # A part of the batch is measured as a batch of its own.
    one_part = dataclasses.replace(training, accumulate=1)
    task = _task(dataclasses.replace(recipe, training=one_part), manifest, init, world)
    part = training.batch_size // training.accumulate
    with explain_dead_workers(manifest.path):
        measured = measure(task, part, seconds)
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    whole = TrainingSize(
        clips=training.epochs * task.steps_per_epoch * training.batch_size,
        validated=-(-training.epochs // training.validate_every) * len(task.validation),
        batch=training.batch_size,
        parts=training.accumulate,
        bank=_size(task.rank_state_dict()),
        gradients=_size([each for each in task.model.parameters() if each.requires_grad]),
        cores=0 if world.device.type == "cpu" else machine.cores,
    )
    state = task.state_dict()
    data_bound = measured.data_wait > DATA_BOUND
    return TrainingEstimate(
        recipe=name,
        manifest=str(manifest.path),
        machine=machine,
        pairs=len(task.clips),
        clips=whole.clips,
        part=part,
        measured=measured,
        data_bound=data_bound,
        projections=[project(whole, measured, each) for each in sorted({1, *processes})],
        # The newest, the best on validation, and the one that is being written.
        checkpoints=(_size(state) + whole.bank) * (3 if len(task.validation) else 2),
        model=_size(state["model"]),
        logs=whole.clips // training.batch_size // training.log_every * LOGGED * NUMBER,
        advice=advice(
            recipe, manifest, measured, machine.cores, data_bound=data_bound, device=world.device
        ),
    )


def _task(
    recipe: Recipe | FinetuneRecipe, manifest: Manifest, init: str, world: World
) -> Pretraining | Finetuning:
    """The training, in its dearest stage."""
    if isinstance(recipe, FinetuneRecipe):
        return Finetuning(recipe, manifest, load_init_weights(init), world)
    task = Pretraining(recipe, manifest, world, init)
    if recipe.curriculum.strategy == "curriculum":
        task.curriculum.stage = 2
        task.enter_stage()
    return task


def _size(state: Any) -> int:
    """Bytes of all tensors in a nest of dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


@dataclass(frozen=True)
class Projection:
    """A training on some GPUs of a machine, or on some machines where there is no GPU.

    Attributes:
        processes: how many train, each on a GPU, or a machine, of its own.
        measured: whether this is what was measured; else it is computed from that.
        clips_per_second: of all of them.
        hours: to the last epoch, with validations.
        memory: bytes, the peak of each process.
        all_reduce: bytes of gradients that each process sends a step, and as many it receives.
    """

    processes: int
    measured: bool
    clips_per_second: float
    hours: float
    memory: int
    all_reduce: int


@dataclass(frozen=True)
class TrainingSize:
    """A whole training.

    Attributes:
        clips: that it sees.
        validated: clips that all its validations look at.
        batch: clips a step, over all processes.
        parts: that a process's share of a batch goes through the network in.
        bank: bytes of the whole memory bank.
        gradients: bytes of all gradients.
        cores: of the machine, which its GPUs share; 0 where each process has a machine of its own.
    """

    clips: int
    validated: int
    batch: int
    parts: int
    bank: int
    gradients: int
    cores: int


def project(whole: TrainingSize, measured: Measurements, processes: int) -> Projection:
    """Compute what a number of processes take.

    Nothing is lost on the way between them, and a smaller part of the batch costs as much a clip:
    where the network between machines is slow it will be less. Workers have no more cores than
    there are.
    """
    loading = _loading(whole, measured, processes)
    faster = _limit(whole, measured, processes) / _limit(whole, measured, 1)
    rate = measured.together * faster
    validation = whole.validated / min(processes * measured.forward, loading)
    part = whole.batch // processes // whole.parts
    # What a process keeps of the bank is its share.
    memory = measured.memory_of(part) - whole.bank * (1 - 1 / processes)
    return Projection(
        processes=processes,
        measured=processes == 1,
        clips_per_second=rate,
        hours=(whole.clips / rate + validation) / 3600,
        memory=int(memory),
        all_reduce=int(2 * (processes - 1) / processes * whole.gradients),  # in a ring
    )


def _limit(whole: TrainingSize, measured: Measurements, processes: int) -> float:
    """Clips/s that steps and loading allow, could they be done at the same time."""
    return min(processes * measured.step, _loading(whole, measured, processes))


def _loading(whole: TrainingSize, measured: Measurements, processes: int) -> float:
    rate = processes * measured.loading
    return (
        min(rate, max(measured.loading, whole.cores * measured.by_worker)) if whole.cores else rate
    )


LARGER = 1.25  # times the short side that a recipe needs, from which on a video is large
SLOWED = 0.9  # of the speed of steps alone, below which loading costs something
WHOLE_BATCH = {"ranking", "in_batch"}  # objectives whose batch must not be in parts


def advice(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    measured: Measurements,
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


def _on_memory(recipe: Recipe | FinetuneRecipe, measured: Measurements) -> Iterator[str]:
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


def _on_workers(
    recipe: Recipe | FinetuneRecipe, measured: Measurements, cores: int
) -> Iterator[str]:
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
