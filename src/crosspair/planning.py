"""Measure some steps of a training, without writing files, and estimate the cost of all of it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.errors import RecipeError, VideoError
from crosspair.models.init import load_init_weights
from crosspair.provenance import Machine, provenance
from crosspair.training.finetune import Finetuning
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch, TrainingOrder, explain_dead_workers, training_loader

logger = logging.getLogger(__name__)

DATA_BOUND = 0.1  # minimum fraction of time spent waiting for clips
MAX_MEMORY = 0.9  # fraction of all memory that a training may use
LOADING_BATCH = 8  # clips; small batches measure loading in little time
LOG_LINE_BYTES = 12 * (30 + 64)  # 12 values, each in metrics.jsonl and in TensorBoard's file
SLOWED_DOWN = 0.9  # maximum ratio of the training's rate to that of steps alone to blame loading


_Task = Pretraining | Finetuning


@dataclass(frozen=True)
class Measurements:
    """Measured rates in clips/s, and memory in bytes."""

    seconds: float  # duration of the measurement
    by_worker: float  # loading rate of one worker
    loading: float  # loading rate of the recipe's workers, while nothing else runs
    step: float  # rate of training steps on clips in memory
    together: float  # rate of the whole training
    data_wait: float  # fraction of that time spent waiting for clips
    part: int  # clips per measured micro-batch, at most as in the recipe
    memory: int  # peak of the training process, or of the GPU; 0: unknown
    worker_memory: int  # of the largest worker, its fraction of shared pages; 0: unknown
    available: int  # memory that the training may use
    fits: bool  # whether larger micro-batches, up to the recipe's, fit into it


@dataclass(frozen=True)
class TrainingEstimate:
    """Measured rates of a training on this machine, and the cost of the whole training."""

    recipe: str  # name
    manifest: str  # path
    machine: Machine
    pairs: int  # pairs or labelled videos to train on
    clips: int  # clips that the training sees
    part: int  # clips per micro-batch according to the recipe
    measured: Measurements
    data_bound: bool  # whether the network waits for clips more than a tenth of the time
    hours: float  # duration of the training; a validation clip counts as a training clip
    checkpoints: int  # maximum bytes of all checkpoints
    model: int  # bytes of the exported model
    logs: int  # bytes
    advice: list[str]  # up to three suggested changes, a sentence each


def estimate_training(
    recipe: Recipe | FinetuneRecipe,
    manifest: Manifest,
    *,
    name: str = "recipe",
    init: str = "random",
    seconds: float = 30,
    world: World,
) -> TrainingEstimate:
    """Run a few steps of a training, and estimate the cost of the whole on this machine.

    Args:
        recipe: of a pre-training or a fine-tuning.
        manifest: pairs, or labelled videos.
        name: of the recipe.
        init: initial weights, as in the training itself.
        seconds: approximate duration of the measurement.
        world: must have one process.

    Raises:
        CrosspairError: the training cannot start, or two clips cannot be read or do not fit.
    """
    if world.size > 1:
        raise RecipeError(f"planning runs in one process, not {world.size}; do not use torchrun")
    training = recipe.training
    micro_batch = training.batch_size // training.accumulate
    # A micro-batch is measured as a whole batch.
    single = dataclasses.replace(recipe, training=dataclasses.replace(training, accumulate=1))
    task: _Task
    if isinstance(single, FinetuneRecipe):
        task = Finetuning(single, manifest, load_init_weights(init), world)
    else:
        task = Pretraining(single, manifest, world, init)
        if single.curriculum.strategy == "curriculum":  # measure the expensive second stage
            task.curriculum.stage = 2
            task.enter_stage()
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    memory = machine.memory * 2**30 or 2**60  # unknown
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
    logger.info("measuring for about %g s", seconds)
    with explain_dead_workers(manifest.path):
        measured = _measure(task, micro_batch, seconds, int(MAX_MEMORY * memory))
    steps = training.epochs * task.steps_per_epoch
    validations = math.ceil(training.epochs / training.validate_every)
    clips = steps * training.batch_size
    state = task.state_dict()
    return TrainingEstimate(
        recipe=name,
        manifest=str(manifest.path),
        machine=machine,
        pairs=len(task.clips),
        clips=clips,
        part=micro_batch,
        measured=measured,
        data_bound=measured.data_wait > DATA_BOUND,
        hours=(clips + validations * len(task.validation)) / measured.together / 3600,
        # The newest, the best on validation, and the one being written.
        checkpoints=_tensor_bytes([state, task.rank_state_dict()]) * (3 if len(task.validation) else 2),
        model=_tensor_bytes(state["model"]),
        logs=steps // training.log_every * LOG_LINE_BYTES,
        advice=list(suggest_changes(recipe, manifest, measured, machine.cores)),
    )


def suggest_changes(
    recipe: Recipe | FinetuneRecipe, manifest: Manifest, measured: Measurements, cores: int
) -> Iterator[str]:
    """Yield up to three sentences on how to make the training feasible or faster."""
    training = recipe.training
    if not measured.fits:
        yield (
            f"Raise training.accumulate, or lower training.batch_size: {measured.part} clips at a "
            f"time need {measured.memory / 1e9:.1f} GB of {measured.available / 1e9:.1f} GB, and "
            f"the recipe has {training.batch_size // training.accumulate} at a time."
        )
    side = 2 * math.ceil(recipe.clip.test_scale * recipe.clip.size / 2)
    sizes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    short_sides = [min(size) for size in sizes if all(size)] or [math.inf]  # inf: unknown
    codecs = set(manifest.column("codec")) - {None}
    small = statistics.median(short_sides) <= side and codecs <= {"h264"}
    if not small and measured.together < SLOWED_DOWN * measured.step:
        yield (
            f'Run "crosspair prepare {manifest.path} --out prepared --short-side {side}": loading '
            "slows down the training, and smaller H.264 videos load faster."
        )
    workers = min(math.ceil(measured.step / measured.by_worker), cores)
    if measured.data_wait > DATA_BOUND and training.workers < workers:
        yield (
            f"Set training.workers={workers}: a worker loads {measured.by_worker:.1f} clips/s, "
            f"and the network trains on {measured.step:.1f} clips/s."
        )


def _measure(task: _Task, micro_batch: int, seconds: float, available: int) -> Measurements:
    """Measure loading, training steps and both together for about ``seconds``; slow steps take longer."""
    start, workers = time.perf_counter(), task.recipe.training.workers
    by_worker, _, batches, _ = _run_loader(task, LOADING_BATCH, 1, 0.15 * seconds)
    loading, _, more, _ = _run_loader(task, LOADING_BATCH, workers, 0.2 * seconds)
    batches += more
    size, peak, fits = _grow_batch(task, batches, micro_batch, 0.25 * seconds, available)
    batch = _make_batch(batches, size)
    times = [_time_step(task, batch) for _ in range(2)]
    while sum(times) < 0.25 * seconds:
        times.append(_time_step(task, batch))
    together, wait, _, worker_memory = _run_loader(task, size, workers, 0.4 * seconds, train=True)
    return Measurements(
        time.perf_counter() - start, by_worker, loading, size / statistics.median(times),
        together, wait, size, peak, worker_memory, available, fits,
    )  # fmt: skip


def _run_loader(
    task: _Task, size: int, workers: int, seconds: float, *, train: bool = False
) -> tuple[float, float, list[Batch], int]:
    """Load batches of ``size`` clips, and train on them if ``train``; warm-up is not counted.

    Returns:
        Clips/s, fraction of time spent waiting for batches, the first batches (about as many clips as
        a batch of the recipe), and bytes of the largest worker; 0: unknown.
    """
    clips, config, device = task.clips, task.recipe.training, task.world.device
    order = TrainingOrder(len(clips), min(size, len(clips)), 10**6, config.seed)
    loader = training_loader(clips, order, task.recipe.clip, seed=config.seed, workers=workers)
    batches, kept = iter(loader), list[Batch]()
    warmup = 2 if train else max(2, workers)  # batches
    start, count, waited = _now(device), 0, 0.0
    for index in itertools.count(1):
        wait_start = _now(device)
        batch = next(batches)
        waited += _now(device) - wait_start
        if train and len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
        if len(kept) * size < config.batch_size:
            kept.append(batch)
        count += len(batch.rows) + len(batch.failures)
        elapsed = _now(device) - start
        if index == warmup:
            start, count, waited = _now(device), 0, 0.0
        elif index >= 2 * warmup and elapsed >= seconds:
            break
    pids = [worker.pid for worker in multiprocessing.active_children()]
    memory = max((_read_proc(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids), default=0)
    return count / elapsed, waited / elapsed, kept, memory


def _make_batch(batches: list[Batch], size: int) -> Batch:
    """Concatenate batches to one of ``size`` clips; clips are repeated if there are fewer."""
    readable = [batch for batch in batches if len(batch.rows)]
    if sum(len(batch.rows) for batch in readable) < 2:
        reason = next(message for batch in batches for _, message in batch.failures)
        raise VideoError(f"fewer than two clips can be read; the first error: {reason}")
    rows, clips, colors = (
        torch.cat([getattr(batch, column) for batch in readable]) for column in ("rows", "clips", "colors")
    )
    chosen = torch.arange(size) % len(rows)
    clips = clips[chosen].contiguous(memory_format=torch.channels_last_3d)  # as from a worker
    batch = Batch(0, rows[chosen], clips, colors[chosen], [])
    return batch.pin_memory() if torch.cuda.is_available() else batch


def _grow_batch(
    task: _Task, batches: list[Batch], max_size: int, seconds: float, available: int
) -> tuple[int, int, bool]:
    """Run training steps on 2, 4, 8, … clips, up to ``max_size``, as far as time and memory allow.

    Returns:
        The largest number of clips that ran, peak memory in bytes, and whether the next size would fit.
    """
    base = _peak_memory(task.world.device)
    size, peak, fits, spent, duration = 0, 0, True, 0.0, 0.0
    while fits and size < max_size and spent + 2 * duration <= seconds:
        larger = min(2 * size or 2, max_size)
        batch = _make_batch(batches, larger)
        try:
            if task.recipe.training.compile:
                _time_step(task, batch)  # compiles for this size
            duration = _time_step(task, batch)
            size, spent, peak = larger, spent + duration, _peak_memory(task.world.device)
            fits = peak + (peak - base) * (min(2 * size, max_size) / size - 1) < available
        except torch.OutOfMemoryError:
            fits = False
    if not size:
        raise RecipeError("two clips do not fit into memory; lower clip.size")
    # Outside the except block, the exception no longer references the step's tensors.
    task.optimizer.zero_grad()
    torch.cuda.empty_cache()
    return size, peak, fits


def _time_step(task: _Task, batch: Batch) -> float:
    """Return the seconds of a training step."""
    start = _now(task.world.device)
    task.train_step(batch, 0.0, 1.0)
    return _now(task.world.device) - start


def _now(device: torch.device) -> float:
    """Return the time in s after all work of the device is complete."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process, or of the GPU, in bytes; 0 if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _read_proc("/proc/self/status", "VmHWM")


def _read_proc(file: str, name: str) -> int:
    """Return a value of a file in Linux's /proc, in bytes; 0 if missing."""
    with suppress(OSError):
        match = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
        return 1024 * int(match[1]) if match else 0
    return 0


def _tensor_bytes(state: object) -> int:
    """Return the size of all tensors in nested dictionaries and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
