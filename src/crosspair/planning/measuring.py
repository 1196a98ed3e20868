"""Measuring a training on this machine: loading alone, the step alone, and both together.

Nothing is written anywhere; the weights that the steps move are thrown away.
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

LOADED = 8  # clips a batch while loading alone is measured: small, so that little time is a lot
SHARES = {"one worker": 0.15, "all workers": 0.2, "step": 0.25, "together": 0.35, "forward": 0.05}


@dataclass(frozen=True)
class Measurements:
    """Clips a second, and bytes.

    Attributes:
        seconds: that all the measuring took.
        by_worker: clips/s that one worker loads.
        loading: clips/s that the recipe's workers load while nothing else is done.
        step: clips/s of training steps on clips in memory.
        together: clips/s of the training as it will be.
        data_wait: share of that time in which the network waits for clips.
        forward: clips/s of the network in validation.
        part: clips that went through the network at a time; as many as the recipe says, or fewer
            where those take too long or too much memory.
        memory: peak of the training process with such a part; on a GPU what it takes there.
        by_clip: how much more each further clip of a part takes; 0 where only one size did.
        worker_memory: of one worker; 0 where the system does not tell.
        available: nine tenths of all the memory that there is.
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
        """The peak with so many clips at a time; computed, where they are not those measured."""
        return int(self.memory + self.by_clip * (clips - self.part))


def measure(task: Pretraining | Finetuning, whole: int, seconds: float) -> Measurements:
    """Measure a training by doing some of it.

    Args:
        task: whose weights will not be used any more.
        whole: clips that go through the network at a time, by the recipe.
        seconds: to measure for; a step that takes long takes longer than that.

    Raises:
        VideoError: hardly any clip can be read.
    """
    begun = time.perf_counter()
    memory = Memory(task.world.device)
    with progress("measuring", len(SHARES), "figures") as bar:
        by_worker, clips = _loading(task, 1, SHARES["one worker"] * seconds)
        bar.advance(1, "loading")
        workers = task.recipe.training.workers
        loading = by_worker
        if workers != 1:
            loading, more = _loading(task, workers, SHARES["all workers"] * seconds, memory)
            clips = clips + more
        bar.advance(2, "steps")
        batch = _gathered(clips, whole)
        batch, by_clip = _grown(task, batch, whole, SHARES["step"] * seconds, memory)
        times = _steps(task, batch, SHARES["step"] * seconds)
        bar.advance(3, "loading and steps")
        part = len(batch.rows)
        together, wait = _together(task, part, SHARES["together"] * seconds)
        bar.advance(4, "validation")
        forward = _forward(task, batch, SHARES["forward"] * seconds)
        bar.advance(5)
    return Measurements(
        time.perf_counter() - begun, by_worker, loading, part / statistics.median(times), together,
        wait, forward, part, memory.peak, by_clip, memory.of_a_worker, memory.available,
    )  # fmt: skip


def _batches(task: Pretraining | Finetuning, size: int, workers: int) -> Iterator[Batch]:
    """Training batches of a given size, epoch after epoch."""
    clips, training = task.clips, task.recipe.training
    order = TrainingOrder(len(clips), min(size, len(clips)), 10**6, training.seed)
    return iter(
        training_loader(clips, order, task.recipe.clip, seed=training.seed, workers=workers)
    )


def _loading(
    task: Pretraining | Finetuning, workers: int, seconds: float, memory: Memory | None = None
) -> tuple[float, list[Batch]]:
    """Clips/s that are loaded, from each worker's second batch on; and some of them."""
    batches = _batches(task, LOADED, workers)
    kept = [next(batches) for _ in range(max(1, workers))]
    begun, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch.rows) + len(batch.failures)
        if len(kept) * LOADED < task.recipe.training.batch_size:
            kept.append(batch)
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds and count >= LOADED * max(2, workers):
            break
    if memory:
        memory.look_at_workers()
    return count / elapsed, kept


def _gathered(batches: list[Batch], size: int) -> Batch:
    """One batch of ``size`` clips; where fewer were loaded, some stand in it more than once."""
    readable = [batch for batch in batches if len(batch.rows)]
    if sum(len(batch.rows) for batch in readable) < 2:
        reason = next(message for batch in batches for _, message in batch.failures)
        raise VideoError(f"hardly any clip can be read; the first fault: {reason}")
    rows, clips, colors = (
        torch.cat([getattr(batch, column) for batch in readable])
        for column in ("rows", "clips", "colors")
    )
    return _some(Batch(0, rows, clips, colors, []), size)


def _some(batch: Batch, size: int) -> Batch:
    rows = torch.arange(size) % len(batch.rows)
    clips = batch.clips[rows].contiguous(memory_format=torch.channels_last_3d)  # as workers give
    some = Batch(0, batch.rows[rows], clips, batch.colors[rows], [])
    return some.pin_memory() if torch.cuda.is_available() else some


def _grown(
    task: Pretraining | Finetuning, batch: Batch, whole: int, seconds: float, memory: Memory
) -> tuple[Batch, float]:
    """The largest part of a batch that time and memory allow, up to ``whole`` clips.

    Returns:
        The part, and the bytes that each of its clips takes (0: not known).
    """
    by_clip, size, peaks, spent = 0.0, min(2, whole), [(0, 0)], 0.0
    while True:
        memory.begin()
        took = _first_step(task, _some(batch, size))
        before, peak_before = peaks[-1]
        if took is None:
            if not before:
                raise RecipeError(f"{size} clips do not fit into memory; lower clip.size")
            return _some(batch, before), by_clip
        spent += took
        peaks.append((size, memory.end()))
        if before:
            by_clip = max(0.0, (peaks[-1][1] - peak_before) / (size - before))
        following = min(2 * size, whole)
        fits = peaks[-1][1] + by_clip * (following - size) < memory.available
        in_time = spent + 2 * took < seconds or not before
        if size == whole or not (fits and in_time):
            return _some(batch, size), by_clip
        size = following


def _first_step(task: Pretraining | Finetuning, batch: Batch) -> float | None:
    """Seconds of a step; None where a GPU's memory does not do for it."""
    try:
        if task.recipe.training.compile:
            _step(task, batch)  # takes minutes where passes for this size are made first
        return _step(task, batch)
    except torch.OutOfMemoryError:
        logger.info("%d clips at a time do not fit into memory", len(batch.rows))
    # Only now, that the exception holds it no more, can what the step had so far be let go.
    task.optimizer.zero_grad()
    torch.cuda.empty_cache()
    return None


def _steps(task: Pretraining | Finetuning, batch: Batch, seconds: float) -> list[float]:
    """Seconds of each of some steps on one batch; two at least."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        times.append(_step(task, batch))
    return times


def _step(task: Pretraining | Finetuning, batch: Batch) -> float:
    device = task.world.device
    begun = _now(device)
    task.train_step(batch, 0.0, 1.0)
    return _now(device) - begun


def _together(task: Pretraining | Finetuning, part: int, seconds: float) -> tuple[float, float]:
    """Clips/s of the training as it will be, and the share of it that waits for clips."""
    workers, device = task.recipe.training.workers, task.world.device
    batches = _batches(task, part, workers)
    for _ in range(2):  # workers start, and a first step makes room
        batch = next(batches)
        if len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
    begun, count, waited, steps = _now(device), 0, 0.0, 0
    while True:
        mark = _now(device)
        batch = next(batches)
        waited += _now(device) - mark
        if len(batch.rows) > 1:
            task.train_step(batch, 0.0, 1.0)
        count, steps = count + len(batch.rows) + len(batch.failures), steps + 1
        elapsed = _now(device) - begun
        if elapsed >= seconds and steps > 1:
            return count / elapsed, waited / elapsed


@torch.no_grad()
def _forward(task: Pretraining | Finetuning, batch: Batch, seconds: float) -> float:
    """Clips/s of the video network alone."""
    device, precision = task.world.device, task.recipe.training.precision
    network: Any = task.model.eval()
    if isinstance(task, Pretraining):
        network = task.model.encode_video
    clips, count, begun = batch.clips.to(device), 0, _now(device)
    with (
        inference(task.model.video_encoder, device, precision),
        force_eager(task.recipe.training),
        autocast(device, precision),
    ):
        while count == 0 or _now(device) - begun < seconds:
            network(clips)
            count += len(clips)
    return count / (_now(device) - begun)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


MUCH = 0.9  # of all memory, that a plan may take


class Memory:
    """Peak memory of a process that trains.

    Args:
        device: where it computes; on a GPU the GPU's memory is looked at.

    Attributes:
        peak: highest of all `end`, bytes.
        available: bytes that may be taken.
        of_a_worker: bytes of the largest worker, shared pages by their share; 0 where the system
            does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak, self.of_a_worker = 0, 0
        self.available = int(MUCH * self._all())

    def begin(self) -> None:
        """From here on peaks count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # elsewhere the peak is that of the whole life of the process
                Path("/proc/self/clear_refs").write_text("5")

    def end(self) -> int:
        """The peak since `begin`."""
        if self.device.type == "cuda":
            now = int(torch.cuda.max_memory_allocated(self.device))
        else:
            now = _told("/proc/self/status", "VmHWM") or _of_the_whole_life()
        self.peak = max(self.peak, now)
        return now

    def look_at_workers(self) -> None:
        """Take in what the processes that this one has started hold."""
        for worker in multiprocessing.active_children():
            held = _told(f"/proc/{worker.pid}/smaps_rollup", "Pss")
            self.of_a_worker = max(self.of_a_worker, held)

    def _all(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        with suppress(ValueError, OSError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return sys.maxsize


def _told(file: str, name: str) -> int:
    """A line of one of Linux's files about processes, in bytes; 0 where there is none."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    return 0


def _of_the_whole_life() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
