"""Join, train with DDP and leave at different times; run by test_leaving.py.

The argument is the step before which process 1 is killed, or 0.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from crosspair.distributed import World, init_distributed
from crosspair.progress import graceful_shutdown
from crosspair.training.loop import wrap_ddp

STEPS = 3


def main(killed: int) -> None:
    torch.set_num_threads(1)
    with init_distributed() as world:
        with graceful_shutdown():
            train(world, killed)
        if world.is_main:
            time.sleep(1)
    assert not _threads_of_gloo()


def train(world: World, killed: int) -> None:
    network = wrap_ddp(nn.Linear(64, 64), world)
    for step in range(1, STEPS + 1):
        if step == killed and not world.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        network(torch.randn(4, 64)).sum().backward()
        world.sum(torch.zeros(3))


def _threads_of_gloo() -> list[str]:
    names = [each.read_text() for each in Path("/proc/self/task").glob("*/comm")]
    assert names
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    main(int(sys.argv[1]))
