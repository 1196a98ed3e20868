"""Run two steps of every objective on random features, on one or two processes."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World, init_distributed
from crosspair.objectives import MemoryBank, build_objective, softmax

OBJECTIVES = {
    "cross_pair, nce": {},
    "cross_pair, nce of each pair": {"noise": "pair"},
    "cross_pair, softmax": {"estimate": "softmax"},
    "self_instance, nce": {"name": "self_instance"},
    "self_instance, nce of each pair": {"name": "self_instance", "noise": "pair"},
    "self_instance, softmax": {"name": "self_instance", "estimate": "softmax"},
    "weights, nce": {"name": "self_instance", "instances": "weights"},
    "weights, nce of each pair": {
        "name": "self_instance", "instances": "weights", "noise": "pair",
    },
    "weights, softmax": {"name": "self_instance", "instances": "weights", "estimate": "softmax"},
    "ranking": {"name": "ranking", "margin": 0.5},
    "in_batch": {"name": "in_batch"},
    "nce, merged titles": {"merge_titles": True},
    "nce of each pair, merged titles": {"noise": "pair", "merge_titles": True},
    "softmax, merged titles": {"estimate": "softmax", "merge_titles": True},
    "ranking, merged titles": {"name": "ranking", "margin": 0.5, "merge_titles": True},
    "in_batch, merged titles": {"name": "in_batch", "merge_titles": True},
    "in_batch, learned": {"name": "in_batch", "learnable_temperature": True},
    "cross_pair, learned": {"estimate": "softmax", "learnable_temperature": True},
    "siglip": {"name": "siglip"},
}  # fmt: skip
PAIRS, DIMENSIONS, STEPS = 23, 5, 2
BATCH_SIZES = {1: (6,), 2: (2, 4)}  # per process; they differ if clips fail to decode


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.video, self.text = nn.Linear(4, DIMENSIONS), nn.Linear(3, DIMENSIONS)

    def forward(self, video: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.video(video), dim=1), F.normalize(self.text(text), dim=1)


def main(out: Path) -> None:
    softmax.CHUNK = 4  # several chunks for each process
    with init_distributed() as world:
        found = {name: trained(ObjectiveConfig(noise_samples=9, temperature=0.2, **settings), world)
                 for name, settings in OBJECTIVES.items()}  # fmt: skip
        if world.is_main:
            torch.save(found, out)


def trained(config: ObjectiveConfig, world: World) -> dict[str, list[torch.Tensor]]:
    """Return losses over all processes, gradients of towers and class weights, and the bank."""
    towers, bank = Towers(), MemoryBank(PAIRS, DIMENSIONS, 0.5, 0, world)
    if config.merge_titles:
        bank.titles = torch.arange(PAIRS) % 7
    objective = build_objective(config, PAIRS, DIMENSIONS, 1, world)
    network = DistributedDataParallel(towers) if world.size > 1 else towers
    parameters = [*towers.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    losses, gradients = [], []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        everything = (
            torch.randn(6, 4, generator=generator),
            torch.randn(6, 3, generator=generator),
            torch.randperm(PAIRS, generator=generator)[:6],
        )
        mine = [each.split(BATCH_SIZES[world.size])[world.rank] for each in everything]
        scale = len(mine[0]) * world.size / 6
        video, text = network(*mine[:2])
        loss, _ = objective(video, text, mine[2], bank)
        optimizer.zero_grad()
        (loss * scale).backward()
        for weights in objective.parameters():
            weights.grad = world.sum(weights.grad) / world.size
        losses.append(world.sum(loss.detach() * scale) / world.size)
        gradients += [parameter.grad.clone() for parameter in parameters]
        optimizer.step()
        bank.update(mine[2], video.detach(), text.detach())
    whole = torch.zeros(2, PAIRS, DIMENSIONS)
    whole[:, world.rank :: world.size] = torch.stack([bank.video, bank.text])
    return {"losses": losses, "gradients": gradients, "bank": [world.sum(whole)]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
