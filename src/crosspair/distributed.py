"""The processes that work together: ``torchrun`` and ``torch.distributed``, or just this one."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, Never

import torch
import torch.distributed as dist

# Its functions keep, as defaults, the group that there is when it is first imported; importing it
# is part of making a DistributedDataParallel. A group that is kept has threads that outlive it, and
# one of gloo's that lets go of a tensor while the interpreter ends aborts the process.
import torch.distributed.nn

from crosspair.errors import RunError

# A process may wait for one that decodes slower videos or writes a checkpoint; a loader that hangs
# (`crosspair.video.loader.STALLED`) is to be told by itself, and not by those that wait for it. A
# process that dies is noticed at once.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


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

    def gather_texts(self, mine: str) -> list[str]:
        """Every process's text, in the order of ranks."""
        every = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(every, mine)
        return every

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.counts(0)


@contextmanager
def init_distributed() -> Iterator[World]:
    """Join the processes that ``torchrun`` started; alone where there are none.

    Raises:
        RunError: this process has no GPU of its own where there are some, or does not know its
            place; another process died, or was not heard of for half an hour.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(device=torch.device("cuda" if cuda else "cpu"))
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if cuda else ()))
    lacking = [name for name in needed if name not in os.environ]
    if lacking:
        raise RunError(
            f"WORLD_SIZE is set, but {', '.join(lacking)} is not: begin by torchrun, or unset "
            "WORLD_SIZE to train in one process"
        )
    device = _own_gpu() if cuda else torch.device("cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    with ExitStack() as leaving:
        leaving.callback(_leave, signal.signal(signal.SIGTERM, _stop))
        try:
            yield world
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            # To leave may be to wait for the lost one, and torchrun's signal may come before the
            # line is out.
            leaving.pop_all()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]
            raise RunError(
                f"process {world.rank} of {world.size} lost another one ({reason}): why, that one "
                f"says, or torchrun; {_GO_ON}"
            ) from error


def _own_gpu() -> torch.device:
    number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= gpus:
        raise RunError(
            f"the process of LOCAL_RANK {number} has no GPU of its own, as this machine has "
            f"{gpus}: start no more processes on it (torchrun --nproc-per-node {gpus})"
        )
    device = torch.device(f"cuda:{number}")
    torch.cuda.set_device(device)
    return device


def _leave(handler: Any) -> None:
    dist.destroy_process_group()
    gc.collect()  # a DistributedDataParallel holds the group, too, and is part of a cycle
    signal.signal(signal.SIGTERM, handler)


def _stop(number: int, frame: FrameType | None) -> Never:
    del number, frame
    raise RunError(
        "asked to stop (SIGTERM), as torchrun does where another process was lost: it says which; "
        + _GO_ON
    )


_GO_ON = (
    "the same command goes on from what is done (a training with --resume, on fewer processes, too)"
)
