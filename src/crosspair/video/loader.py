"""Training batches: random views of clips, decoded by worker processes.

The random numbers of a view depend on (seed, epoch, row) only: batches are the same whichever worker loads them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crosspair.config import Clip, ClipConfig
from crosspair.errors import RunError, VideoError
from crosspair.video.views import View, load_view, training_view
from crosspair.workers import exit_with_parent

logger = logging.getLogger(__name__)

LOADER_TIMEOUT = 600  # s without a batch: a decoder hangs
PERMUTATION, VIEW, CAPTION = 0, 1, 2  # uses of a generator, so that no two uses share their draws
PREFETCH = 4  # batches per worker
SHARED_MEMORY = Path("/dev/shm")  # where workers put batches; Linux only


@dataclass(frozen=True)
class Batch:
    """Clips that could be read, and the failures of the others."""

    epoch: int  # from 0
    rows: torch.Tensor  # (B,) int64, indices of the clips in the list that they were read from
    # V views of each clip, one after the other: (B, 3, V·T, H, W) uint8, RGB, in channels_last_3d order; or stored
    # features (B, V·F) float32.
    clips: torch.Tensor
    colors: torch.Tensor  # (B, V·4) float32: `View.colors`
    failures: list[tuple[int, str]]  # row and message of each clip that could not be read

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory; the loader calls this if there is a GPU."""
        rows, clips, colors = (values.pin_memory() for values in (self.rows, self.clips, self.colors))
        return replace(self, rows=rows, clips=clips, colors=colors)


def training_loader(
    clips: Sequence[Clip],
    order: TrainingOrder,
    config: ClipConfig,
    *,
    seed: int,
    workers: int,
    views: int = 0,
    views_per_step: int = 1,
) -> DataLoader[Any]:
    """Load a `Batch` of random views for each item of an order, without a pause between epochs.

    Args:
        clips: videos or segments of them.
        order: rows and epochs of each batch.
        config: clip format.
        seed: seed of the views.
        workers: number of decoding processes.
        views: number of different views of each clip, which epochs use in turn; 0: a new view in every epoch.
        views_per_step: number of views of each clip in a batch, V.

    Raises:
        RunError: shared memory is too small for the batches.
    """
    size = order.batch_size // order.world_size * views_per_step * 3 * config.frames * config.size**2  # bytes
    return DataLoader(
        _TrainingViews(clips, config, seed, views, views_per_step),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=_fit_prefetch(workers, size) if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        timeout=LOADER_TIMEOUT if workers else 0,
        generator=torch.Generator(),  # the default one is restored when a run resumes
    )


def free_shared_memory() -> int | None:
    """Return the free bytes of shared memory; None if the system has no limit of it."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def _fit_prefetch(workers: int, size: int) -> int:
    """Return how many batches of ``size`` bytes each worker may prefetch, at most `PREFETCH`.

    A worker for whose batch there is no shared memory never delivers it.
    """
    free = free_shared_memory()
    if free is None:
        return PREFETCH
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batches = free // processes // size - 2  # two are in use by the training
    if batches < PREFETCH * workers:
        needed = (PREFETCH * workers + 2) * size * processes
        advice = (
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, but training.workers={workers} use up to "
            f"{needed / 1e6:.0f} MB of it; start the container with --shm-size={-(-needed // 10**9)}g, or lower "
            "training.workers"
        )
        if batches < workers:
            raise RunError(f"{advice}; training.workers=0 uses none")
        logger.warning("%s. Fewer batches are prefetched.", advice)
    return min(PREFETCH, batches // workers)


@contextmanager
def explain_dead_workers(manifest: Path, advice: str = "") -> Iterator[None]:
    """Turn the RuntimeError of a dead or hanging loader process into a VideoError with advice.

    Args:
        manifest: manifest of the videos.
        advice: what to do once the video is found, appended to the message.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker", "DataLoader timed out")):
            raise
        reason = str(error).split(". ")[0].removeprefix("DataLoader ").strip()
        if "Terminated" in reason:
            raise VideoError(
                f"loading stopped ({reason}): its processes were terminated; run the command again with --resume"
            ) from error
        # The manifest must stay as it is, or a run on it could not be resumed.
        raise VideoError(
            f"loading stopped ({reason}): a video crashes its decoder or makes it hang, or memory "
            f'ran out; find the video by "crosspair check --decode {manifest} --out '
            f'checked.parquet"{advice}'
        ) from error


class TrainingOrder:
    """The order of pairs over a whole training: a new permutation for each epoch, without the rest that fills no batch.

    Args:
        pairs, batch_size, epochs: their numbers; the batch is over all processes.
        seed: seed of the permutations.
        rank, world_size: which part of each batch this process loads; concatenated, the parts are the batch.
        start: number of batches of the whole training that are already done.
    """

    def __init__(
        self, pairs: int, batch_size: int, epochs: int, seed: int, *, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        self.pairs, self.batch_size, self.epochs, self.seed = pairs, batch_size, epochs, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.batches_per_epoch = pairs // batch_size

    def __len__(self) -> int:
        """Number of batches that are left."""
        return self.epochs * self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield for each batch that is left the (row, epoch) of the pairs that this process loads."""
        first, skip = divmod(self.start, max(1, self.batches_per_epoch))
        for epoch in range(first, self.epochs):
            rows = np.random.default_rng((self.seed, PERMUTATION, epoch)).permutation(self.pairs)
            for batch in range(skip if epoch == first else 0, self.batches_per_epoch):
                whole = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
                part = np.array_split(whole, self.world_size)[self.rank]
                yield [(int(row), epoch) for row in part]


def view_numbers(epoch: int, views: int, per_step: int) -> list[int]:
    """Return the numbers of the views that each clip of an epoch is seen in.

    Args:
        epoch: from 0.
        views: number of different views, which epochs use in turn, at least ``per_step``; 0: no limit.
        per_step: number of views per clip, 1 or 2. All combinations of two occur over time.
    """
    if not views:
        return [epoch * per_step + i for i in range(per_step)]
    distance = 1 + epoch // views % max(views - 1, 1)
    return [(epoch + i * distance) % views for i in range(per_step)]


@dataclass(frozen=True)
class _LoadedViews:
    row: int
    epoch: int
    views: list[View]
    pixels: np.ndarray | None = None  # (V·T, H, W, 3)
    failure: str = ""


class _TrainingViews(Dataset[_LoadedViews]):
    def __init__(self, clips: Sequence[Clip], config: ClipConfig, seed: int, views: int, per_step: int) -> None:
        self.clips, self.config, self.seed, self.views, self.per_step = clips, config, seed, views, per_step

    def __getitem__(self, job: tuple[int, int]) -> _LoadedViews:
        """Load the random views of a (row, epoch); a VideoError is returned as `failure`."""
        row, epoch = job
        views = [
            training_view(np.random.default_rng((self.seed, VIEW, number, row)), self.config)
            for number in view_numbers(epoch, self.views, self.per_step)
        ]
        try:
            pixels = [load_view(self.clips[row], view, self.config) for view in views]
        except VideoError as error:
            return _LoadedViews(row, epoch, views, failure=str(error))
        return _LoadedViews(row, epoch, views, np.concatenate(pixels))


def _collate(items: list[_LoadedViews]) -> Batch:
    """Combine loaded views to a batch; those that failed are only in its `failures`."""
    good = [item for item in items if item.pixels is not None]
    pixels = [item.pixels for item in good if item.pixels is not None]
    colors = [[view.colors for view in item.views] for item in good]
    # (B, T, H, W, C) in memory, seen as (B, C, T, H, W): channels_last_3d without a copy.
    clips = torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3) if good else torch.empty(0)
    return Batch(
        epoch=items[0].epoch,
        rows=torch.tensor([item.row for item in good], dtype=torch.long),
        clips=clips,
        colors=torch.tensor(colors, dtype=torch.float32).view(len(good), 4 * len(items[0].views)),
        failures=[(item.row, item.failure) for item in items if item.pixels is None],
    )


def _start_worker(worker: int) -> None:
    """Limit torch to one thread, exit with the parent, but leave its process group, so as not to get its signals."""
    del worker
    exit_with_parent()  # PyTorch's own watch misses a parent that ended before it began
    torch.set_num_threads(1)
    # Ctrl-C and batch systems signal whole process groups: a training that is stopping needs its
    # workers until it has saved.
    os.setpgrp()
