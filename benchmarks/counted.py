"""Count the bytes that NCE steps pass to collectives; run by benchmarks.traffic and by a test.

    torchrun --nproc-per-node 2 -m benchmarks.counted OUT.json SETTINGS BATCH DIMENSIONS SAMPLES

SETTINGS is a JSON list of objects with keys of `ObjectiveConfig`, such as ``[{}, {"noise":
"pair"}]``. OUT is a list of [settings, N, bytes by part of the step and by collective] of rank 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F

from crosspair.config import ObjectiveConfig
from crosspair.device import dtype_for
from crosspair.distributed import World, init_distributed
from crosspair.objectives import MemoryBank, build_objective

PAIRS = (10_000, 1_000_000)
COLLECTIVES = [
    name
    for name, each in vars(dist).items()
    if type(each) is FunctionType
    and name.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "send", "isend"))
]
INPUT_ARGUMENT = {"all_reduce": 0, "all_gather": 1}  # position of the input tensor


def main(out: Path, all_settings: str, batch: int, dimensions: int, samples: int) -> None:
    """Count the bytes of a step for each of the settings, with few and with many pairs."""
    torch.set_num_threads(1)
    with init_distributed() as world:
        rows = []
        for settings in json.loads(all_settings):
            config = ObjectiveConfig(noise_samples=samples, **settings)
            for pairs in PAIRS:
                rows.append([settings, pairs, measure_step(config, pairs, batch, dimensions, world)])
        if world.is_main:
            out.write_text(json.dumps(rows))


def measure_step(
    config: ObjectiveConfig, pairs: int, batch: int, dimensions: int, world: World
) -> dict[str, dict[str, int]]:
    """Count the bytes that this process passes to collectives in the loss and the bank update."""
    dtype = dtype_for(world.device, config.bank_precision)
    bank = MemoryBank(pairs, dimensions, 0.5, 0, world, dtype)
    objective = build_objective(config, pairs, dimensions, 1, world)
    local = batch // world.size
    index = torch.arange(local) + local * world.rank
    video, text = F.normalize(torch.randn(2, local, dimensions), dim=2).requires_grad_()
    with count_bytes() as loss_bytes:
        loss, _ = objective(video, text, index, bank)
        loss.backward()
    with count_bytes() as update_bytes:
        bank.update(index, video.detach(), text.detach())
    return {"loss": loss_bytes, "update": update_bytes}


@contextmanager
def count_bytes() -> Iterator[dict[str, int]]:
    """Count input bytes by collective. Output buffers are not counted."""
    counts = dict.fromkeys(INPUT_ARGUMENT, 0)

    def counting(name: str) -> Callable[..., Any]:
        collective = getattr(dist, name)

        def call(*arguments: Any) -> Any:
            counts[name] += arguments[INPUT_ARGUMENT[name]].nbytes  # KeyError for other collectives
            return collective(*arguments)

        return call

    with ExitStack() as patches:
        for name in COLLECTIVES:
            patches.enter_context(mock.patch.object(dist, name, counting(name)))
        yield counts


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
