"""From a manifest to batches of clips, by worker processes.

Everything random about a clip is drawn from (seed, epoch, row), so that a batch is the same
whichever worker makes it, and a resumed run goes on with the very batch it would have had.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crosspair.config import Clip, ClipConfig
from crosspair.errors import VideoError
from crosspair.video.views import View, centre_view, load_frames, load_view, training_view

STALLED = 600  # s without a batch: a decoder hangs
PERMUTATION, VIEW = 0, 1  # what a generator is for, so that no two uses share their draws

Decode = Callable[[Clip, View, ClipConfig], np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Clips that could be read, and what was wrong with the others.

    Attributes:
        epoch: counted from 0 (0 outside training).
        rows: (B,) int64, rows of the clips in the list they were read from.
        clips: (B, 3, T, H, W) uint8, RGB, in channels_last_3d order.
        colors: (B, 3) float32, factors for `crosspair.video.pixels.jitter_colors`.
        failures: (row, message) of each clip left out.
    """

    epoch: int
    rows: torch.Tensor
    clips: torch.Tensor
    colors: torch.Tensor
    failures: list[tuple[int, str]]

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU reads by itself; the loader asks for it where one is."""
        rows, clips, colors = (each.pin_memory() for each in (self.rows, self.clips, self.colors))
        return replace(self, rows=rows, clips=clips, colors=colors)


def training_loader(
    clips: Sequence[Clip],
    order: TrainingOrder,
    config: ClipConfig,
    *,
    seed: int,
    workers: int,
) -> DataLoader[Any]:
    """Batches for all the rest of a training, epoch after epoch, without a pause between epochs.

    Yields:
        `Batch`: random views (see `training_view`) in the order that ``order`` gives.
    """
    dataset = _TrainingViews(clips, config, seed)
    return _loader(dataset, order, workers)


def centre_loader(
    clips: Sequence[Clip],
    rows: Sequence[int],
    positions: Sequence[float],
    config: ClipConfig,
    *,
    batch_size: int,
    workers: int,
) -> DataLoader[Any]:
    """Centre views of the given rows, at each of ``positions`` (0 to 1) of the video.

    Yields:
        `Batch`: the views of one video are neighbours; a row that fails does so at each position.
    """
    jobs = [(row, position) for row in rows for position in positions]
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    return _loader(_TestViews(clips, config, load_view), batches, workers)


def video_loader(
    clips: Sequence[Clip],
    rows: Sequence[int],
    positions: Sequence[float],
    config: ClipConfig,
    *,
    batch_size: int,
    workers: int,
) -> DataLoader[Any]:
    """Whole frames at the test's scale, at each of ``positions`` (0 to 1) of the given rows.

    What is in a batch depends on nothing but the video, so that its numbers come out the same to
    the last bit whichever process computes them.

    Args:
        batch_size: clips in a batch at most.

    Yields:
        `Batch`: of clips of one video, uncropped.
    """
    chunks = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
    batches = [[(row, position) for position in chunk] for row in rows for chunk in chunks]
    return _loader(_TestViews(clips, config, load_frames), batches, workers, prefetch=2)


@contextmanager
def explain_dead_workers(manifest: Path, then: str = "") -> Iterator[None]:
    """Tell in one line of a decoding process that died, or that gives nothing any more.

    Args:
        manifest: whose videos are decoded.
        then: what to do when the video is found, if there is more to say.

    Raises:
        VideoError: it did so.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker", "DataLoader timed out")):
            raise
        reason = str(error).split(". ")[0].removeprefix("DataLoader ").strip()
        if "Terminated" in reason:
            raise VideoError(
                f"decoding ended ({reason}): its processes were asked to stop; the same command "
                "again, of a training with --resume, goes on"
            ) from error
        # The manifest stays as it is, or a training on it could not go on.
        raise VideoError(
            f"decoding ended ({reason}): a video crashes its decoder or makes it hang, or memory "
            f'ran out; find it by "crosspair check --decode {manifest} --out checked.parquet"{then}'
        ) from error


class TrainingOrder:
    """The order of pairs over a whole training: a fresh permutation for each epoch.

    Args:
        pairs: how many pairs there are; the remainder that fills no batch waits for a later epoch.
        batch_size: pairs in a batch over all processes.
        epochs: when to end.
        seed: the permutations' seed.
        rank, world_size: which share of each batch is this process's; the shares one after
            another are the batch, in its order, for any number of processes.
        start: batches, counted over the whole training, that are already done, by however many.
    """

    def __init__(
        self,
        pairs: int,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.pairs, self.batch_size, self.epochs, self.seed = pairs, batch_size, epochs, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.batches_per_epoch = pairs // batch_size

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, skip = divmod(self.start, max(1, self.batches_per_epoch))
        for epoch in range(first, self.epochs):
            rows = np.random.default_rng((self.seed, PERMUTATION, epoch)).permutation(self.pairs)
            for batch in range(skip if epoch == first else 0, self.batches_per_epoch):
                whole = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
                mine = np.array_split(whole, self.world_size)[self.rank]
                yield [(int(row), epoch) for row in mine]


@dataclass(frozen=True)
class _Loaded:
    row: int
    epoch: int
    view: View
    pixels: np.ndarray | None = None
    failure: str = ""


class _TrainingViews(Dataset[_Loaded]):
    def __init__(self, clips: Sequence[Clip], config: ClipConfig, seed: int) -> None:
        self.clips, self.config, self.seed = clips, config, seed

    def __getitem__(self, job: tuple[int, int]) -> _Loaded:
        row, epoch = job
        view = training_view(np.random.default_rng((self.seed, VIEW, epoch, row)), self.config)
        return _loaded(row, epoch, view, lambda: load_view(self.clips[row], view, self.config))


class _TestViews(Dataset[_Loaded]):
    def __init__(self, clips: Sequence[Clip], config: ClipConfig, decode: Decode) -> None:
        self.clips, self.config, self.decode = clips, config, decode

    def __getitem__(self, job: tuple[int, float]) -> _Loaded:
        row, position = job
        view = centre_view(position, self.config)
        return _loaded(row, 0, view, lambda: self.decode(self.clips[row], view, self.config))


def _loaded(row: int, epoch: int, view: View, decode: Callable[[], np.ndarray]) -> _Loaded:
    try:
        return _Loaded(row, epoch, view, decode())
    except VideoError as error:
        return _Loaded(row, epoch, view, failure=str(error))


def _loader(
    dataset: Dataset[_Loaded], batches: Any, workers: int, prefetch: int = 4
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin_worker,
        timeout=STALLED if workers else 0,
        generator=torch.Generator(),  # or each start draws from the one that a resumed run restores
    )


def _collate(items: list[_Loaded]) -> Batch:
    good = [item for item in items if item.pixels is not None]
    pixels = [item.pixels for item in good if item.pixels is not None]
    # (B, T, H, W, C) in memory, seen as (B, C, T, H, W): channels_last_3d without a copy.
    clips = torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3) if good else torch.empty(0)
    return Batch(
        epoch=items[0].epoch,
        rows=torch.tensor([item.row for item in good], dtype=torch.long),
        clips=clips,
        colors=torch.tensor([item.view.colors for item in good], dtype=torch.float32).view(-1, 3),
        failures=[(item.row, item.failure) for item in items if item.pixels is None],
    )


def _begin_worker(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
    # Ctrl-C and batch systems signal whole groups of processes: a training that is asked to stop
    # needs its workers until it has saved.
    os.setpgrp()
