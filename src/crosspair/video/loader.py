"""From a manifest to batches of clips, by worker processes.

Everything random about a clip is drawn from (seed, epoch, row), so that a batch is the same
whichever worker makes it, and a resumed run goes on with the very batch it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crosspair.corpora.manifest import Clip
from crosspair.errors import VideoError
from crosspair.video.views import View, centre_view, load_view, training_view

PERMUTATION, VIEW = 0, 1  # what a generator is for, so that no two uses share their draws


@dataclass(frozen=True)
class ClipFormat:
    """The tensor that a clip becomes: (3, frames, size, size) uint8, ``stride``/30 s apart."""

    size: int
    frames: int
    stride: int


@dataclass(frozen=True)
class Batch:
    """Clips that could be read, and what was wrong with the others.

    Attributes:
        epoch: counted from 0 (0 outside training).
        rows: (B,) int64, rows of the clips in the list they were read from.
        clips: (B, 3, T, H, W) uint8, RGB, in channels_last_3d order.
        failures: (row, message) of each clip left out.
    """

    epoch: int
    rows: torch.Tensor
    clips: torch.Tensor
    failures: list[tuple[int, str]]


def training_loader(
    clips: Sequence[Clip],
    order: TrainingOrder,
    clip_format: ClipFormat,
    *,
    seed: int,
    scale: tuple[float, float],
    flip: bool,
    workers: int,
) -> DataLoader[Any]:
    """Batches for all the rest of a training, epoch after epoch, without a pause between epochs.

    Yields:
        `Batch`: random views (see `training_view`) in the order that ``order`` gives.
    """
    dataset = _TrainingViews(clips, clip_format, seed, scale, flip)
    return _loader(dataset, order, workers)


def test_loader(
    clips: Sequence[Clip],
    rows: Sequence[int],
    positions: Sequence[float],
    clip_format: ClipFormat,
    *,
    scale: float,
    batch_size: int,
    workers: int,
) -> DataLoader[Any]:
    """Centre views of the given rows, at each of ``positions`` (0 to 1) of the video.

    Yields:
        `Batch`: the views of one video are neighbours; a row that fails does so at each position.
    """
    jobs = [(row, position) for row in rows for position in positions]
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    return _loader(_TestViews(clips, clip_format, scale), batches, workers)


class TrainingOrder:
    """The order of pairs over a whole training: a fresh permutation for each epoch.

    Args:
        pairs: how many pairs there are; the remainder that fills no batch waits for a later epoch.
        batch_size: pairs in a batch over all processes.
        epochs: when to end.
        seed: the permutations' seed.
        rank, world_size: which share of each batch is this process's (every ``world_size``-th).
        start: batches, counted over the whole training, that are already done.
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
        first, skip = divmod(self.start, self.batches_per_epoch)
        for epoch in range(first, self.epochs):
            rows = np.random.default_rng((self.seed, PERMUTATION, epoch)).permutation(self.pairs)
            for batch in range(skip if epoch == first else 0, self.batches_per_epoch):
                mine = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [(int(row), epoch) for row in mine[self.rank :: self.world_size]]


@dataclass(frozen=True)
class _Loaded:
    row: int
    epoch: int
    pixels: np.ndarray | None
    failure: str = ""


class _TrainingViews(Dataset[_Loaded]):
    def __init__(
        self,
        clips: Sequence[Clip],
        clip_format: ClipFormat,
        seed: int,
        scale: tuple[float, float],
        flip: bool,
    ) -> None:
        self.clips, self.format = clips, clip_format
        self.seed, self.scale, self.flip = seed, scale, flip

    def __getitem__(self, job: tuple[int, int]) -> _Loaded:
        row, epoch = job
        generator = np.random.default_rng((self.seed, VIEW, epoch, row))
        view = training_view(generator, self.format.size, self.scale, self.flip)
        return _load(self.clips[row], row, epoch, view, self.format)


class _TestViews(Dataset[_Loaded]):
    def __init__(self, clips: Sequence[Clip], clip_format: ClipFormat, scale: float) -> None:
        self.clips, self.format, self.scale = clips, clip_format, scale

    def __getitem__(self, job: tuple[int, float]) -> _Loaded:
        row, position = job
        view = centre_view(position, self.format.size, self.scale)
        return _load(self.clips[row], row, 0, view, self.format)


def _load(clip: Clip, row: int, epoch: int, view: View, form: ClipFormat) -> _Loaded:
    try:
        pixels = load_view(clip, view, form.size, form.frames, form.stride)
    except VideoError as error:
        return _Loaded(row, epoch, None, str(error))
    return _Loaded(row, epoch, pixels)


def _loader(dataset: Dataset[_Loaded], batches: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def _collate(items: list[_Loaded]) -> Batch:
    good = [item.pixels for item in items if item.pixels is not None]
    # (B, T, H, W, C) in memory, seen as (B, C, T, H, W): channels_last_3d without a copy.
    clips = torch.from_numpy(np.stack(good)).permute(0, 4, 1, 2, 3) if good else torch.empty(0)
    return Batch(
        epoch=items[0].epoch,
        rows=torch.tensor([item.row for item in items if item.pixels is not None]),
        clips=clips,
        failures=[(item.row, item.failure) for item in items if item.pixels is None],
    )


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
