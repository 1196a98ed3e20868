"""The processes that work together: ``torchrun`` and ``torch.distributed``, or just this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among its fellows.

    Attributes:
        rank: 0 to ``size`` - 1; rank 0 writes files and talks.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of every process's tensor of one shape, on every process."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Every process's (B_r, …) one after another in the order of ranks; B_r may differ."""
        if self.size == 1:
            return rows
        counts = self.counts(len(rows))
        padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def counts(self, mine: int) -> torch.Tensor:
        """(size,) int64 on the host: the number that each process gives.

        Hosts exchange it by themselves, so that none waits for its device to finish.
        """
        counts = torch.zeros(self.size, dtype=torch.long)
        counts[self.rank] = mine
        return self.sum(counts)

    def offset(self, mine: int) -> int:
        """How many the processes before this one give."""
        return int(self.counts(mine)[: self.rank].sum())

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that ``torchrun`` started; alone where there are none."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(device=torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
        # Gloo's threads outlive the group where DistributedDataParallel held it, and abort a process
        # that ends while one lets go of a tensor. They have nothing to let go of after a barrier.
        dist.barrier()
    finally:
        dist.destroy_process_group()
