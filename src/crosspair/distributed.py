"""Distributed training with ``torchrun`` and ``torch.distributed``, or a single process."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Never

import torch
import torch.distributed as dist

# Its functions hold, as default arguments, the process group that exists at the first import, and
# DistributedDataParallel imports it. Import it before a group exists: the threads of a group that
# is kept alive outlive it, and a gloo thread that frees a tensor at exit aborts the process.
import torch.distributed.nn

from crosspair.errors import RunError

# Long enough for slow decoding or a checkpoint on another process. A loader that hangs is reported
# earlier, by its own process (`crosspair.video.loader.LOADER_TIMEOUT`); a process that dies, at once.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

_CPU = torch.device("cpu")
_RESUME_HINT = "Run the same command again to resume (add --resume for a training; fewer processes are fine)"


@dataclass(frozen=True)
class World:
    """The process's rank, the number of processes, and collective operations on them."""

    rank: int = 0  # rank 0 writes files and logs
    size: int = 1  # number of processes
    device: torch.device = _CPU  # of this process

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum tensors of the same shape over processes (all-reduce)."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate (B_r, …) tensors in the order of ranks (all-gather); B_r may differ."""
        if self.size == 1:
            return rows
        counts = self.gather_counts(len(rows))
        padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def gather_counts(self, mine: int) -> torch.Tensor:
        """Gather one number per process, as (size,) int64 on the CPU, without waiting for devices."""
        counts = torch.zeros(self.size, dtype=torch.long)
        counts[self.rank] = mine
        return self.sum(counts)

    def offset(self, mine: int) -> int:
        """Gather ``mine`` of all processes, and return the sum over the ranks below this one; 0 for rank 0."""
        return int(self.gather_counts(mine)[: self.rank].sum())

    def gather_texts(self, mine: str) -> list[str]:
        """Gather one string per process, in the order of ranks."""
        texts = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(texts, mine)
        return texts

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather_counts(0)


@contextmanager
def init_distributed() -> Iterator[World]:
    """Initialise the process group of ``torchrun`` for a ``with`` block; without it, use one process.

    Raises:
        RunError: an environment variable of ``torchrun`` is missing; there are more processes than
            GPUs on a machine that has GPUs; or another process died or timed out.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(device=torch.device("cuda" if cuda else "cpu"))
        return
    required = ("RANK", "MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if cuda else ()))
    missing = [name for name in required if name not in os.environ]
    if missing:
        raise RunError(
            f"WORLD_SIZE is set, but {', '.join(missing)} is not; start with torchrun, or unset "
            "WORLD_SIZE to use one process"
        )
    device = torch.device("cpu")
    if cuda:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise RunError(
                f"LOCAL_RANK {local_rank} has no GPU: this machine has {gpus}; start one process per GPU "
                f"(torchrun --nproc-per-node {gpus})"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    with ExitStack() as cleanup:
        cleanup.callback(_shut_down, signal.signal(signal.SIGTERM, _raise_terminated))
        try:
            yield world
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            # Destroying the group may wait for the lost process, and torchrun's SIGTERM may arrive
            # before the error is printed.
            cleanup.pop_all()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
            raise RunError(
                f"process {world.rank} of {world.size} lost another process ({reason}). See the "
                f"error of that process, or torchrun's. {_RESUME_HINT}"
            ) from error


def _shut_down(sigterm_handler: Any) -> None:
    """Destroy the process group, and restore the given SIGTERM handler."""
    dist.destroy_process_group()
    gc.collect()  # a DistributedDataParallel holds the group, too, and is part of a cycle
    signal.signal(signal.SIGTERM, sigterm_handler)


def _raise_terminated(number: int, frame: FrameType | None) -> Never:
    del number, frame
    raise RunError(
        f"terminated (SIGTERM). torchrun terminates all processes if it loses one, and reports which. {_RESUME_HINT}"
    )
