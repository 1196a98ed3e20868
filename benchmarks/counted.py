"""Steps of NCE whose collectives are weighed: run by benchmarks.traffic, and by a test.

    torchrun --nproc-per-node 2 -m benchmarks.counted OUT.json SETTINGS BATCH DIMENSIONS SAMPLES

SETTINGS is a JSON list of objects, as ``[{}, {"noise": "pair"}]``, keys of `ObjectiveConfig`; OUT
is a list of [settings, N, bytes by part of the step and by collective] of the first process.
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
from crosspair.distributed import World, joined
from crosspair.objectives import MemoryBank, build
from crosspair.precision import dtype_for

PAIRS = (10_000, 1_000_000)
COLLECTIVES = [
    name
    for name, each in vars(dist).items()
    if type(each) is FunctionType
    and name.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "send", "isend"))
]
GIVEN = {"all_reduce": 0, "all_gather": 1}  # which argument a process hands over


def main(out: Path, every: str, batch: int, dimensions: int, samples: int) -> None:
    """Weigh a step of each of the settings, with few pairs and with many."""
    torch.set_num_threads(1)
    with joined() as world:
        found = []
        for settings in json.loads(every):
            config = ObjectiveConfig(noise_samples=samples, **settings)
            for pairs in PAIRS:
                found.append([settings, pairs, weighed(config, pairs, batch, dimensions, world)])
        if world.is_main:
            out.write_text(json.dumps(found))


def weighed(
    config: ObjectiveConfig, pairs: int, batch: int, dimensions: int, world: World
) -> dict[str, dict[str, int]]:
    """Bytes that this process hands over in a step, in the loss and in the bank's update."""
    dtype = dtype_for(world.device, config.bank_precision)
    bank = MemoryBank(pairs, dimensions, 0.5, 0, world, dtype)
    objective = build(config, pairs, dimensions, 1, world)
    own = batch // world.size
    index = torch.arange(own) + own * world.rank
    video, text = F.normalize(torch.randn(2, own, dimensions), dim=2).requires_grad_()
    with weighing() as of_loss:
        loss, _ = objective(video, text, index, bank)
        loss.backward()
    with weighing() as of_update:
        bank.update(index, video.detach(), text.detach())
    return {"loss": of_loss, "update": of_update}


@contextmanager
def weighing() -> Iterator[dict[str, int]]:
    """Bytes by collective, of what it is given; what is there to be filled does not count."""
    found = dict.fromkeys(GIVEN, 0)

    def watched(name: str) -> Callable[..., Any]:
        collective = getattr(dist, name)

        def call(*arguments: Any) -> Any:
            found[name] += arguments[GIVEN[name]].nbytes  # another one has no formula: KeyError
            return collective(*arguments)

        return call

    with ExitStack() as patches:
        for name in COLLECTIVES:
            patches.enter_context(mock.patch.object(dist, name, watched(name)))
        yield found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
