"""Measure some steps of a training on this machine: clips/s, time in parts, hours, memory, disk and advice."""

from __future__ import annotations

import dataclasses
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
from crosspair.distributed import World, init_distributed
from crosspair.errors import RecipeError, VideoError
from crosspair.models.init import load_init_weights
from crosspair.provenance import Machine, current_machine
from crosspair.training.finetune import Finetuning
from crosspair.training.pretrain import Pretraining
from crosspair.training.profile import SectionTimer, record_section, section_rows
from crosspair.video.loader import Batch, TrainingOrder, explain_dead_workers, training_loader

DATA_BOUND = 0.1  # minimum fraction of time spent waiting for clips
MAX_MEMORY = 0.9  # fraction of all memory that a training may use
SLOWED_DOWN = 0.9  # maximum ratio of the training's rate to that of steps alone to blame loading
LOADING_BATCH = 8  # clips; small batches measure loading in little time

_Task = Pretraining | Finetuning


@dataclass(frozen=True)
class BenchmarkResult:
    """Measured rates of a training, and the cost of the whole training on this machine."""

    machine: Machine
    seconds: float  # duration of the measurement
    pairs: int  # pairs, or labelled videos, to train on
    clips: int  # clips that the whole training sees
    workers: int  # loading processes
    micro_batch: int  # clips per micro-batch according to the recipe
    measured_batch: int  # fewer if those of the recipe take too long or too much memory
    loading: float  # clips/s of the workers, while nothing else runs
    step: float  # clips/s of training steps on clips in memory
    training: float  # clips/s of the whole training: loading and steps
    sections: dict[str, float]  # ms of its steps in each section of `crosspair.training.profile`
    hours: float  # duration of the whole training; a validation clip counts as a training clip
    memory: int  # peak bytes of the training process, or of the GPU; 0: unknown
    available: int  # bytes that it may use
    fits: bool  # whether larger micro-batches, up to the recipe's, fit into it
    worker_memory: int  # bytes of the largest worker, with its fraction of shared pages; 0: unknown
    checkpoint_bytes: int  # maximum size of all checkpoints together
    model_bytes: int  # size of the exported model
    advice: tuple[str, ...] = ()  # suggested changes, a sentence each

    @property
    def data_wait(self) -> float:
        """Fraction of the training's time spent waiting for clips."""
        return self.sections["data wait"] / sum(self.sections.values())

    def __str__(self) -> str:
        """Return a report of several lines."""
        fewer = f" (the recipe's {self.micro_batch} take too long or too much memory)"
        return "\n".join([
            f"{self.pairs:,} pairs, {self.clips:,} training clips",
            f"measured in {self.seconds:.0f} s on {self.machine}",
            f"  {f'loading, {self.workers} workers':<22}{self.loading:>10.1f} clips/s",
            f"  {f'steps of {self.measured_batch} clips':<22}{self.step:>10.1f} clips/s"
            f"{fewer if self.measured_batch < self.micro_batch else ''}",
            f"  {'loading and steps':<22}{self.training:>10.1f} clips/s, "
            f"{'data' if self.data_wait > DATA_BOUND else 'compute'}-bound",
            "ms per step of loading and steps:",
            *(f"  {name:<22}{ms:>10}{fraction:>8}" for name, ms, fraction in section_rows(self.sections)),
            f"duration: {self.hours:.{1 if self.hours >= 1 else 2}f} hours",
            f"memory: {_format_bytes(self.memory)} with {self.measured_batch} clips, and "
            f"{_format_bytes(self.worker_memory)} for each worker",
            f"disk space: up to {_format_bytes(self.checkpoint_bytes)} for checkpoints, and "
            f"{_format_bytes(self.model_bytes)} for the model",
            *(f"advice: {sentence}" for sentence in self.advice),
        ])  # fmt: skip


def benchmark(
    recipe: Recipe | FinetuneRecipe, manifest: Manifest, init: str | None = None, seconds: float = 30
) -> BenchmarkResult:
    """Run some steps of a pre-training or fine-tuning, write no files, and estimate the cost of the whole training.

    Args:
        recipe: all settings.
        manifest: pairs, or labelled videos.
        init: initial weights, as in the training itself; None: random.
        seconds: approximate duration of the measurement; slow steps take longer.

    Raises:
        CrosspairError: the training cannot start, two clips cannot be read or do not fit into memory,
            or ``torchrun`` started several processes.
    """
    machine, config, start = current_machine(), recipe.training, time.perf_counter()
    micro_batch = config.batch_size // config.accumulate
    with init_distributed() as world, explain_dead_workers(manifest.path):
        if world.size > 1:
            raise RecipeError(f"the benchmark runs in one process, not in {world.size}; do not use torchrun")
        task = _build_task(recipe, manifest, init or "random", world)
        memory = machine.memory * 2**30 or 2**60  # unknown
        if world.device.type == "cuda":
            memory = torch.cuda.get_device_properties(world.device).total_memory
        available = int(MAX_MEMORY * memory)
        loading, _, batches, _ = _run_loader(task, LOADING_BATCH, 0.25 * seconds)
        size, peak, fits = _grow_batch(task, batches, micro_batch, 0.25 * seconds, available)
        batch, times = _make_batch(batches, size), list[float]()
        while len(times) < 2 or sum(times) < 0.25 * seconds:
            times.append(_time_step(task, batch))
        training, sections, _, worker_memory = _run_loader(task, size, 0.5 * seconds, train=True)
    clips = config.epochs * task.steps_per_epoch * config.batch_size
    validation_clips = math.ceil(config.epochs / config.validate_every) * len(task.validation)
    if isinstance(task, Pretraining) and task.stores_features:  # each view is read once
        clips, validation_clips = task.views * len(task.clips), len(task.validation)
    state = task.state_dict()
    result = BenchmarkResult(
        machine=machine,
        seconds=time.perf_counter() - start,
        pairs=len(task.clips),
        clips=clips,
        workers=config.workers,
        micro_batch=micro_batch,
        measured_batch=size,
        loading=loading,
        step=size / statistics.median(times),
        training=training,
        sections=sections,
        hours=(clips + validation_clips) / training / 3600,
        memory=peak,
        available=available,
        fits=fits,
        worker_memory=worker_memory,
        # The newest, the previous, and the one being written.
        checkpoint_bytes=_tensor_bytes([state, task.rank_state_dict()]) * 3,
        model_bytes=_tensor_bytes(state["model"]),
    )
    return dataclasses.replace(result, advice=tuple(suggest_changes(result, recipe, manifest)))


def suggest_changes(result: BenchmarkResult, recipe: Recipe | FinetuneRecipe, manifest: Manifest) -> Iterator[str]:
    """Yield up to three sentences on how to make the training feasible or faster."""
    if not result.fits:
        yield (
            f"Raise training.accumulate or lower training.batch_size: {result.measured_batch} clips at a time need "
            f"{_format_bytes(result.memory)} of {_format_bytes(result.available)}, and the recipe has "
            f"{result.micro_batch} at a time."
        )
    by_worker = result.loading / max(result.workers, 1)
    workers = min(math.ceil(result.step / by_worker), result.machine.cores)
    if result.data_wait > DATA_BOUND and result.workers < workers:
        yield (
            f"Set training.workers={workers}: a worker loads {by_worker:.1f} clips/s, and the network trains on "
            f"{result.step:.1f} clips/s."
        )
    side = 2 * math.ceil(recipe.clip.test_scale * recipe.clip.size / 2)
    sizes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    short_sides = [min(size) for size in sizes if all(size)] or [math.inf]  # inf: unknown
    prepared = statistics.median(short_sides) <= side and set(manifest.column("codec")) <= {"h264", None}
    if not prepared and result.training < SLOWED_DOWN * result.step:
        yield (
            f'Run "crosspair prepare {manifest.path} --out prepared --short-side {side}": loading slows down the '
            "training, and smaller H.264 videos load faster."
        )


def _build_task(recipe: Recipe | FinetuneRecipe, manifest: Manifest, init: str, world: World) -> _Task:
    """Build a training whose batches are micro-batches; a curriculum is in its expensive second stage."""
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, accumulate=1))
    if isinstance(recipe, FinetuneRecipe):
        return Finetuning(recipe, manifest, load_init_weights(init), world)
    task = Pretraining(recipe, manifest, world, init)
    if recipe.curriculum.strategy == "curriculum":
        task.curriculum.stage = 2
        task.enter_stage()
    return task


def _run_loader(
    task: _Task, size: int, seconds: float, *, train: bool = False
) -> tuple[float, dict[str, float], list[Batch], int]:
    """Load batches of ``size`` clips, and train on them if ``train``; warm-up is not counted.

    Returns:
        Clips/s, ms per step in each section, the first batches (about as many clips as a batch of
        the recipe), and bytes of the largest worker; 0: unknown.
    """
    clips, config, device = task.clips, task.recipe.training, task.world.device
    order = TrainingOrder(len(clips), min(size, len(clips)), 10**6, config.seed)
    loader = iter(
        training_loader(
            clips, order, task.recipe.clip, seed=config.seed, workers=config.workers,
            views_per_step=task.views_per_step,
        )
    )  # fmt: skip

    def step() -> Batch:
        with record_section("data wait"):
            batch: Batch = next(loader)
        if train and len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
        return batch

    batches = [step() for _ in range(2 if train else max(2, config.workers))]
    warmup, steps, loaded, start = len(batches), 0, 0, _now(device)
    with SectionTimer(device) as timer:
        while steps < warmup or time.perf_counter() - start < seconds:
            batch = step()
            steps += 1
            loaded += len(batch.rows) + len(batch.failures)
            if len(batches) * size < config.batch_size:
                batches.append(batch)
    rate = loaded / (_now(device) - start)
    pids = [worker.pid for worker in multiprocessing.active_children()]
    memory = max((_read_proc(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids), default=0)
    return rate, timer.milliseconds(steps), batches, memory


def _make_batch(batches: list[Batch], size: int) -> Batch:
    """Concatenate batches to one of ``size`` clips; clips are repeated if there are fewer."""
    readable = [batch for batch in batches if len(batch.rows)]
    if sum(len(batch.rows) for batch in readable) < 2:
        reason = next(message for batch in batches for _, message in batch.failures)
        raise VideoError(f"fewer than two clips can be read; the first error: {reason}")
    rows, clips, colors = (
        torch.cat([getattr(each, name) for each in readable]) for name in ("rows", "clips", "colors")
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


def _format_bytes(size: int) -> str:
    if not size:
        return "an unknown amount"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
