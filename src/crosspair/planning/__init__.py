"""Estimate time, memory and disk of a training from a short measurement."""

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

DATA_BOUND = 0.1  # minimum fraction of time spent waiting for clips
LOG_VALUES = 12  # in a line of metrics.jsonl
LOG_VALUE_BYTES = 30 + 64  # of a value in metrics.jsonl and in TensorBoard's file


@dataclass(frozen=True)
class TrainingEstimate:
    """Estimated cost of a training.

    Attributes:
        recipe: name of the recipe.
        manifest: path of the manifest.
        machine: the machine that was measured.
        pairs: number of pairs or labelled videos to train on.
        clips: number of clips that the training sees.
        part: clips per micro-batch according to the recipe.
        measured: measured rates and memory.
        data_bound: whether the network waits for clips more than a tenth of the time.
        projections: the first one is this machine as measured.
        checkpoints: maximum size of all checkpoints in bytes.
        model: size of the exported model in bytes.
        logs: size of the logs in bytes.
        advice: suggested changes, a sentence each.
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
    """Run a few steps of a training, and estimate the cost of the whole. No file is written.

    Args:
        recipe: of a pre-training or a fine-tuning.
        manifest: pairs, or labelled videos.
        name: of the recipe.
        init: initial weights, as in the training itself.
        processes: numbers of GPUs to project to, in addition to one (of machines, if there is no
            GPU).
        seconds: approximate duration of the measurement.
        world: must have one process; None uses the CPU.

    Raises:
        CrosspairError: the training could not start, or the batch cannot be divided evenly among
            one of ``processes``.
    """
    world = world or World()
    training = recipe.training
    if world.size > 1:
        raise RecipeError(
            f"planning runs in one process, not {world.size}; run the command without torchrun"
        )
    for number in processes:
        check_batch_size(training, World(size=number))
    # A micro-batch is measured as a whole batch.
    measured_training = dataclasses.replace(training, accumulate=1)
    task = _build_task(
        dataclasses.replace(recipe, training=measured_training), manifest, init, world
    )
    micro_batch = training.batch_size // training.accumulate
    with explain_dead_workers(manifest.path):
        measured = measure(task, micro_batch, seconds)
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    size = TrainingSize(
        clips=training.epochs * task.steps_per_epoch * training.batch_size,
        validated=-(-training.epochs // training.validate_every) * len(task.validation),
        batch=training.batch_size,
        parts=training.accumulate,
        bank=_tensor_bytes(task.rank_state_dict()),
        gradients=_tensor_bytes([p for p in task.model.parameters() if p.requires_grad]),
        cores=0 if world.device.type == "cpu" else machine.cores,
    )
    log_lines = size.clips // training.batch_size // training.log_every
    state = task.state_dict()
    data_bound = measured.data_wait > DATA_BOUND
    return TrainingEstimate(
        recipe=name,
        manifest=str(manifest.path),
        machine=machine,
        pairs=len(task.clips),
        clips=size.clips,
        part=micro_batch,
        measured=measured,
        data_bound=data_bound,
        projections=[project(size, measured, number) for number in sorted({1, *processes})],
        # The newest, the best on validation, and the one being written.
        checkpoints=(_tensor_bytes(state) + size.bank) * (3 if len(task.validation) else 2),
        model=_tensor_bytes(state["model"]),
        logs=log_lines * LOG_VALUES * LOG_VALUE_BYTES,
        advice=suggest_changes(
            recipe, manifest, measured, machine.cores, data_bound=data_bound, device=world.device
        ),
    )


def _build_task(
    recipe: Recipe | FinetuneRecipe, manifest: Manifest, init: str, world: World
) -> Pretraining | Finetuning:
    """Build the training in its most expensive stage."""
    if isinstance(recipe, FinetuneRecipe):
        return Finetuning(recipe, manifest, load_init_weights(init), world)
    task = Pretraining(recipe, manifest, world, init)
    if recipe.curriculum.strategy == "curriculum":
        task.curriculum.stage = 2
        task.enter_stage()
    return task


def _tensor_bytes(state: Any) -> int:
    """Return the size of all tensors in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_tensor_bytes, state.values()))
    return sum(map(_tensor_bytes, state)) if isinstance(state, list | tuple) else 0


@dataclass(frozen=True)
class Projection:
    """Estimate for a number of GPUs of a machine, or of machines without a GPU.

    Attributes:
        processes: number of processes, one per GPU or per machine.
        measured: whether this is the measurement itself, rather than computed from it.
        clips_per_second: of all processes together.
        hours: duration of the training, including validation.
        memory: peak memory of each process in bytes.
        all_reduce: bytes of gradients that each process sends, and receives, per step.
    """

    processes: int
    measured: bool
    clips_per_second: float
    hours: float
    memory: int
    all_reduce: int


@dataclass(frozen=True)
class TrainingSize:
    """Amounts of work and data of a training.

    Attributes:
        clips: number of clips that the training sees.
        validated: number of clips of all validations.
        batch: clips per step, over all processes.
        parts: micro-batches per step.
        bank: size of the memory bank in bytes.
        gradients: size of all gradients in bytes.
        cores: cores of the machine, used by all its GPUs; 0 if each process has its own machine.
    """

    clips: int
    validated: int
    batch: int
    parts: int
    bank: int
    gradients: int
    cores: int


def project(size: TrainingSize, measured: Measurements, processes: int) -> Projection:
    """Extrapolate the measurement to a number of processes.

    The projection is optimistic: communication is free, and a smaller micro-batch costs as much
    per clip. Loading is limited by the cores of the machine.
    """
    loading = _loading_rate(size, measured, processes)
    speedup = _max_rate(size, measured, processes) / _max_rate(size, measured, 1)
    rate = measured.together * speedup
    validation = size.validated / min(processes * measured.forward, loading)
    micro_batch = size.batch // processes // size.parts
    # Each process holds its shard of the bank only.
    memory = measured.memory_of(micro_batch) - size.bank * (1 - 1 / processes)
    return Projection(
        processes=processes,
        measured=processes == 1,
        clips_per_second=rate,
        hours=(size.clips / rate + validation) / 3600,
        memory=int(memory),
        all_reduce=int(2 * (processes - 1) / processes * size.gradients),  # ring all-reduce
    )


def _max_rate(size: TrainingSize, measured: Measurements, processes: int) -> float:
    """Clips/s if steps and loading overlap perfectly."""
    return min(processes * measured.step, _loading_rate(size, measured, processes))


def _loading_rate(size: TrainingSize, measured: Measurements, processes: int) -> float:
    rate = processes * measured.loading
    if size.cores:
        return min(rate, max(measured.loading, size.cores * measured.by_worker))
    return rate


LARGE_VIDEO = 1.25  # minimum short side of a large video, relative to the recipe's
SLOWED_DOWN = 0.9  # maximum ratio of the training's rate to that of steps alone to blame loading
WHOLE_BATCH = {"ranking", "in_batch"}  # objectives that do not support gradient accumulation


def suggest_changes(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    measured: Measurements,
    cores: int,
    *,
    data_bound: bool,
    device: torch.device,
) -> list[str]:
    """Suggest changes that make the training feasible or faster.

    Returns:
        Sentences, the most urgent first.
    """
    suggestions = list(_suggest_batch(recipe, measured))
    # The network waits for clips, or the workers use its cores.
    if measured.together < SLOWED_DOWN * measured.step:
        suggestions += _suggest_preparation(recipe, manifest)
    if data_bound:
        suggestions += _suggest_workers(recipe, measured, cores)
    if recipe.training.precision == "fp32" and dtype_for(device, "auto") != torch.float32:
        suggestions.append("Set training.precision=auto: this device supports bfloat16.")
    return suggestions


def _suggest_batch(recipe: Recipe | FinetuneRecipe, measured: Measurements) -> Iterator[str]:
    training = recipe.training
    fitting = (
        parts
        for parts in range(training.accumulate, training.batch_size // 2 + 1)
        if training.batch_size % parts == 0
        and measured.memory_of(training.batch_size // parts) <= measured.available
    )
    accumulate = next(fitting, training.accumulate)
    if accumulate == training.accumulate:
        return
    clips = training.batch_size // training.accumulate
    if isinstance(recipe, Recipe) and recipe.objective.name in WHOLE_BATCH:
        change = f"training.batch_size={training.batch_size // accumulate}"
    else:
        change = f"training.accumulate={accumulate}"
    yield (
        f"Set {change}: {clips} clips at a time need {measured.memory_of(clips) / 1e9:.1f} GB, and "
        f"{measured.available / 1e9:.1f} GB are available."
    )


def _suggest_preparation(recipe: Recipe | FinetuneRecipe, manifest: Manifest) -> Iterator[str]:
    side = 2 * math.ceil(recipe.clip.test_scale * recipe.clip.size / 2)
    sizes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    short_sides = [min(size) for size in sizes if all(size)]
    codecs = set(manifest.column("codec")) - {None}
    if not short_sides:
        yield (
            f'Run "crosspair check {manifest.path}" to record the resolutions of the videos: '
            "loading slows down the training, and large videos may be the cause."
        )
    elif statistics.median(short_sides) > LARGE_VIDEO * side or codecs - {"h264"}:
        yield (
            f'Prepare the videos with "crosspair prepare {manifest.path} --out prepared '
            f'--short-side {side}": their median short side is '
            f"{statistics.median(short_sides):g} pixels, and their codecs are "
            f"{', '.join(sorted(codecs))}."
        )


def _suggest_workers(
    recipe: Recipe | FinetuneRecipe, measured: Measurements, cores: int
) -> Iterator[str]:
    required, workers = math.ceil(measured.step / measured.by_worker), recipe.training.workers
    if workers < min(required, cores):
        yield (
            f"Set training.workers={min(required, cores)}: a worker loads "
            f"{measured.by_worker:.1f} clips/s, and the network can train on "
            f"{measured.step:.1f} clips/s."
        )
    if required > cores:
        yield f"Use more cores: {required} would match the network, and this machine has {cores}."
