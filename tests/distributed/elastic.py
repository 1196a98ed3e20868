"""Train on random clips, resuming if possible; run by test_elastic.py.

Arguments: the run folder, the step before which the last process is killed (0: none), and whether
batch normalisation uses fixed statistics (1) or the statistics of each process (0).
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from crosspair.distributed import World, init_distributed
from crosspair.objectives import MemoryBank
from crosspair.recipes import load_recipe
from crosspair.training import loop
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch, TrainingOrder
from tests.distributed.train_steps import SETTINGS, some_pairs

BROKEN = 3  # the row of a pair whose video fails
# Epochs of five steps.
CONFIG = ("training.epochs=2", "training.checkpoint_steps=2", "training.ema=0.8", "objective.bank_init=towers")


class FixedStatistics(Pretraining):
    """Batch normalisation is in eval mode, since statistics differ between processes."""

    def enter_stage(self) -> None:
        super().enter_stage()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def initial_features(batches: Sequence[Sequence[int]]) -> Iterator[list[torch.Tensor | None]]:
    """Yield visual features that depend on the pair only."""
    for rows in batches:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        features = [torch.randn(1, 32, generator=each) for each in generators]
        yield [None if row == BROKEN else each for row, each in zip(rows, features, strict=True)]


def main(folder: Path, killed: int, fixed: int) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("laptop", [*SETTINGS, *CONFIG])
    with init_distributed() as world:
        task = (FixedStatistics if fixed else Pretraining)(recipe, some_pairs(), world)
        loop.training_loader = lambda _, order, *__, **___: batches(order, killed, world)
        task._iter_visual_features = initial_features
        task.train(folder, resume=True)
        other = Pretraining(load_recipe("laptop", [*SETTINGS, *CONFIG, "head.video_hidden=8"]), some_pairs(), world)
        other._iter_visual_features = initial_features
        other.fill_bank()  # with the statistics of each batch
        result = {
            "seeds": world.gather_rows(torch.tensor([torch.initial_seed()])),
            "bank": gather_bank(task.bank, world),
            "initial bank": gather_bank(other.bank, world),
            "log_z": task.objective.state_dict()["log_z"],
            "weights": [each.detach() for each in task.model.parameters()],
            "statistics": [each for each in task.model.buffers() if each.is_floating_point()],
            "average": task.average.values,
            "velocities": [each["momentum_buffer"] for each in task.optimizer.state.values()],
        }
        if world.is_main:
            torch.save(result, folder / "found.pt")


def gather_bank(bank: MemoryBank, world: World) -> torch.Tensor:
    """Return all entries (2, N, D)."""
    entries = torch.zeros(2, bank.pairs, bank.video.shape[1])
    entries[:, world.rank :: world.size] = torch.stack([bank.video, bank.text])
    return world.sum(entries)


def batches(order: TrainingOrder, killed: int, world: World) -> Iterator[Batch]:
    """Yield clips that depend on pair and epoch only."""
    for step, jobs in enumerate(order, order.start + 1):
        if step == killed and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        good = [(row, epoch) for row, epoch in jobs if row != BROKEN]
        generators = [torch.Generator().manual_seed(1000 * epoch + row) for row, epoch in good]
        clips = [torch.randint(0, 256, (3, 2, 32, 32), generator=each) for each in generators]
        yield Batch(
            epoch=jobs[0][1],
            rows=torch.tensor([row for row, _ in good]),
            clips=torch.stack(clips).to(torch.uint8),
            colors=torch.ones(len(good), 4),
            failures=[(BROKEN, "it is broken")] if len(good) < len(jobs) else [],
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
