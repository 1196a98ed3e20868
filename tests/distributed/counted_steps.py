"""Steps of NCE whose collectives are weighed: run by the test beside it, on two processes.

The argument is a file for a list of [settings, N, bytes by what they are for].
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World, joined
from crosspair.objectives import MemoryBank, build
from crosspair.precision import dtype_for

BATCH, DIMENSIONS, SAMPLES = 8, 16, 64
PAIRS = (10_000, 1_000_000)
SETTINGS = [
    {},
    {"noise": "pair"},
    {"bank_precision": "bf16"},
    {"name": "self_instance"},
]
COLLECTIVES = [
    name
    for name, each in vars(dist).items()
    if inspect.isfunction(each)
    and name.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "send", "isend"))
]
GIVEN = {"all_reduce": 0, "all_gather": 1}  # which argument a process hands over


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with joined() as world:
        found = [[s, pairs, weighed(s, pairs, world)] for s in SETTINGS for pairs in PAIRS]
        if world.is_main:
            out.write_text(json.dumps(found))


def weighed(settings: dict[str, Any], pairs: int, world: World) -> dict[str, dict[str, int]]:
    """Bytes that this process hands over in a step, in the loss and in the bank's update."""
    config = ObjectiveConfig(noise_samples=SAMPLES, **settings)
    dtype = dtype_for(world.device, config.bank_precision)
    bank = MemoryBank(pairs, DIMENSIONS, 0.5, 0, world, dtype)
    objective = build(config, pairs, DIMENSIONS, 1, world)
    own = BATCH // world.size
    index = torch.arange(own) + own * world.rank
    video, text = F.normalize(torch.randn(2, own, DIMENSIONS), dim=2).requires_grad_()
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

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, watched(name))
        yield found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
