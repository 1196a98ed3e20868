"""Measure rates and memory of a training: loading alone, steps alone, and both together.

No file is written, and the updated weights are discarded.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crosspair.device import autocast
from crosspair.errors import RecipeError, VideoError
from crosspair.models.inference import inference
from crosspair.progress import progress
from crosspair.training.finetune import Finetuning
from crosspair.training.loop import force_eager
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch, TrainingOrder, training_loader

logger = logging.getLogger(__name__)

LOADING_BATCH = 8  # clips; small batches measure loading in little time
# Fraction of the time for each phase.
PHASES = {"one worker": 0.15, "all workers": 0.2, "step": 0.25, "together": 0.35, "forward": 0.05}
MAX_MEMORY = 0.9  # fraction of all memory to plan with


@dataclass(frozen=True)
class Measurements:
    """Measured rates in clips/s, and memory in bytes.

    Attributes:
        seconds: duration of the measurement.
        by_worker: loading rate of one worker.
        loading: loading rate of the recipe's workers, while nothing else runs.
        step: rate of training steps on clips in memory.
        together: rate of the whole training.
        data_wait: fraction of that time spent waiting for clips.
        forward: rate of the network in validation.
        part: clips per measured micro-batch; fewer than the recipe's if those take too long or too
            much memory.
        memory: peak memory of the training process with that micro-batch; on a GPU, of the GPU.
        by_clip: additional memory per clip of a micro-batch; 0 if only one size was measured.
        worker_memory: memory of the largest worker; 0 if unknown.
        available: memory to plan with, 90 % of the total.
    """

    seconds: float
    by_worker: float
    loading: float
    step: float
    together: float
    data_wait: float
    forward: float
    part: int
    memory: int
    by_clip: float
    worker_memory: int
    available: int

    def memory_of(self, clips: int) -> int:
        """Extrapolate the peak memory to a micro-batch of ``clips``."""
        return int(self.memory + self.by_clip * (clips - self.part))


def measure(task: Pretraining | Finetuning, micro_batch: int, seconds: float) -> Measurements:
    """Measure a training by running parts of it.

    Args:
        task: training to measure; its weights change.
        micro_batch: clips per micro-batch according to the recipe.
        seconds: approximate duration; slow steps take longer.

    Raises:
        VideoError: fewer than two clips could be read.
        RecipeError: two clips do not fit into GPU memory.
    """
    start = time.perf_counter()
    memory = MemoryMonitor(task.world.device)
    limits = {phase: fraction * seconds for phase, fraction in PHASES.items()}
    with progress("measuring", len(PHASES), "phases") as bar:
        by_worker, clips = _measure_loading(task, 1, limits["one worker"])
        bar.advance(1, "loading")
        workers = task.recipe.training.workers
        loading = by_worker
        if workers != 1:
            loading, more = _measure_loading(task, workers, limits["all workers"], memory)
            clips = clips + more
        bar.advance(2, "steps")
        batch = _concatenate(clips, micro_batch)
        batch, by_clip = _grow_batch(task, batch, micro_batch, limits["step"], memory)
        times = _time_steps(task, batch, limits["step"])
        bar.advance(3, "loading and steps")
        size = len(batch.rows)
        together, wait = _measure_training(task, size, limits["together"])
        bar.advance(4, "validation")
        forward = _measure_forward(task, batch, limits["forward"])
        bar.advance(5)
    return Measurements(
        time.perf_counter() - start, by_worker, loading, size / statistics.median(times), together,
        wait, forward, size, memory.peak, by_clip, memory.worker_peak, memory.available,
    )  # fmt: skip


def _training_batches(task: Pretraining | Finetuning, size: int, workers: int) -> Iterator[Batch]:
    """Iterate over training batches of ``size`` clips, over many epochs."""
    clips, training = task.clips, task.recipe.training
    order = TrainingOrder(len(clips), min(size, len(clips)), 10**6, training.seed)
    return iter(
        training_loader(clips, order, task.recipe.clip, seed=training.seed, workers=workers)
    )


def _measure_loading(
    task: Pretraining | Finetuning,
    workers: int,
    seconds: float,
    memory: MemoryMonitor | None = None,
) -> tuple[float, list[Batch]]:
    """Return the loading rate, without each worker's first batch, and some of the batches."""
    batches = _training_batches(task, LOADING_BATCH, workers)
    kept = [next(batches) for _ in range(max(1, workers))]
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.rows) + len(batch.failures)
        if len(kept) * LOADING_BATCH < task.recipe.training.batch_size:
            kept.append(batch)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds and count >= LOADING_BATCH * max(2, workers):
            break
    if memory:
        memory.record_workers()
    return count / elapsed, kept


def _concatenate(batches: list[Batch], size: int) -> Batch:
    """Concatenate batches to one of ``size`` clips; clips are repeated if there are fewer."""
    readable = [batch for batch in batches if len(batch.rows)]
    if sum(len(batch.rows) for batch in readable) < 2:
        reason = next(message for batch in batches for _, message in batch.failures)
        raise VideoError(f"fewer than two clips can be read; the first error: {reason}")
    rows, clips, colors = (
        torch.cat([getattr(batch, column) for batch in readable])
        for column in ("rows", "clips", "colors")
    )
    return _resize_batch(Batch(0, rows, clips, colors, []), size)


def _resize_batch(batch: Batch, size: int) -> Batch:
    """Return the first ``size`` clips in the memory format of the workers, repeated if needed."""
    rows = torch.arange(size) % len(batch.rows)
    clips = batch.clips[rows].contiguous(memory_format=torch.channels_last_3d)
    resized = Batch(0, batch.rows[rows], clips, batch.colors[rows], [])
    return resized.pin_memory() if torch.cuda.is_available() else resized


def _grow_batch(
    task: Pretraining | Finetuning,
    batch: Batch,
    max_size: int,
    seconds: float,
    memory: MemoryMonitor,
) -> tuple[Batch, float]:
    """Double the batch size up to ``max_size``, as far as time and memory allow.

    Returns:
        The largest batch, and the memory per clip in bytes (0: unknown).
    """
    size, previous, by_clip, spent = min(2, max_size), 0, 0.0, 0.0
    previous_peak = 0
    while True:
        memory.reset_peak()
        duration = _time_first_step(task, _resize_batch(batch, size))
        if duration is None:
            if not previous:
                raise RecipeError(f"{size} clips do not fit into memory; lower clip.size")
            return _resize_batch(batch, previous), by_clip
        spent += duration
        peak = memory.read_peak()
        if previous:
            by_clip = max(0.0, (peak - previous_peak) / (size - previous))
        next_size = min(2 * size, max_size)
        fits = peak + by_clip * (next_size - size) < memory.available
        in_time = spent + 2 * duration < seconds or not previous
        if size == max_size or not (fits and in_time):
            return _resize_batch(batch, size), by_clip
        size, previous, previous_peak = next_size, size, peak


def _time_first_step(task: Pretraining | Finetuning, batch: Batch) -> float | None:
    """Return the seconds of a step; None if it does not fit into GPU memory."""
    try:
        if task.recipe.training.compile:
            _time_step(task, batch)  # compiles for this size
        return _time_step(task, batch)
    except torch.OutOfMemoryError:
        logger.info("%d clips at a time do not fit into memory", len(batch.rows))
    # Outside the except block, the exception no longer references the step's tensors.
    task.optimizer.zero_grad()
    torch.cuda.empty_cache()
    return None


def _time_steps(task: Pretraining | Finetuning, batch: Batch, seconds: float) -> list[float]:
    """Return the seconds of each of at least two steps on a batch."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        times.append(_time_step(task, batch))
    return times


def _time_step(task: Pretraining | Finetuning, batch: Batch) -> float:
    device = task.world.device
    start = _now(device)
    task.train_step(batch, 0.0, 1.0)
    return _now(device) - start


def _measure_training(
    task: Pretraining | Finetuning, size: int, seconds: float
) -> tuple[float, float]:
    """Return the rate of the training, and the fraction of time it waits for clips."""
    workers, device = task.recipe.training.workers, task.world.device
    batches = _training_batches(task, size, workers)
    for _ in range(2):  # warm up workers and memory
        batch = next(batches)
        if len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
    start, count, waited, steps = _now(device), 0, 0.0, 0
    while True:
        step_start = _now(device)
        batch = next(batches)
        waited += _now(device) - step_start
        if len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
        count, steps = count + len(batch.rows) + len(batch.failures), steps + 1
        elapsed = _now(device) - start
        if elapsed >= seconds and steps > 1:
            return count / elapsed, waited / elapsed


@torch.no_grad()
def _measure_forward(task: Pretraining | Finetuning, batch: Batch, seconds: float) -> float:
    """Return the rate of the video network in validation."""
    device, precision = task.world.device, task.recipe.training.precision
    network: Any = task.model.eval()
    if isinstance(task, Pretraining):
        network = task.model.encode_video
    clips, count, start = batch.clips.to(device), 0, _now(device)
    with (
        inference(task.model.video_encoder, device, precision),
        force_eager(task.recipe.training),
        autocast(device, precision),
    ):
        while count == 0 or _now(device) - start < seconds:
            network(clips)
            count += len(clips)
    return count / (_now(device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MemoryMonitor:
    """Peak memory of the training process and its workers.

    Args:
        device: of the training; on a GPU, its memory is measured.

    Attributes:
        peak: maximum of all `read_peak`, bytes.
        available: memory to plan with, bytes.
        worker_peak: memory of the largest worker in bytes, with shared pages divided among the
            processes that map them; 0 if unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak, self.worker_peak = 0, 0
        self.available = int(MAX_MEMORY * self._total())

    def reset_peak(self) -> None:
        """Start a new peak; only Linux and CUDA support it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def read_peak(self) -> int:
        """Return the peak since `reset_peak`, in bytes."""
        if self.device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self.device))
        else:
            peak = _read_proc("/proc/self/status", "VmHWM") or _lifetime_peak()
        self.peak = max(self.peak, peak)
        return peak

    def record_workers(self) -> None:
        """Update `worker_peak` with the running child processes."""
        for worker in multiprocessing.active_children():
            memory = _read_proc(f"/proc/{worker.pid}/smaps_rollup", "Pss")
            self.worker_peak = max(self.worker_peak, memory)

    def _total(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        with suppress(ValueError, OSError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return sys.maxsize


def _read_proc(file: str, name: str) -> int:
    """Return a value of a file in Linux's /proc, in bytes; 0 if missing."""
    with suppress(OSError):
        match = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
        if match:
            return 1024 * int(match[1])
    return 0


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
