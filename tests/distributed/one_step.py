"""Pre-train for two steps on random clips, with any number of processes."""

import sys
from pathlib import Path

import torch
from torch import nn

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import init_distributed
from crosspair.recipes import load_recipe
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch

PAIRS, BATCH, STEPS = 40, 8, 2


SETTINGS = (
    "clip.size=32", "clip.frames=2", "video.width=4", "text.dimensions=8", "head.hidden=8",
    "head.embedding=8", "training.batch_size=8", "training.precision=fp32",
    "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.warmup_epochs=0",
    "objective.noise_samples=12",
    "curriculum.strategy=joint",
)  # fmt: skip


def some_pairs() -> Manifest:
    """Return pairs without videos."""
    words = ["ball", "dog", "runs", "cat", "playing"]
    titles = [f"{words[i % 5]} {words[i % 3]}" for i in range(PAIRS)]
    rows = [{"pair_id": str(i), "path": "x", "title": title} for i, title in enumerate(titles)]
    return manifest_from_rows(rows, "m.parquet")


def main(out: Path, unreadable: int, *settings: str) -> None:
    """Train on batches of which ``unreadable`` clips of the last process are missing."""
    clips_read = BATCH - unreadable
    with init_distributed() as world:
        recipe = load_recipe("laptop", [*SETTINGS, *settings])
        task = Pretraining(recipe, some_pairs(), world)
        for module in task.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        gradients = []
        every = (*task.model.parameters(), *task.objective.parameters())
        parameters = [each for each in every if each.requires_grad]
        task.optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone() for p in parameters]))
        losses = []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            rows_of_step = torch.randperm(PAIRS, generator=generator)[:clips_read]
            clips = torch.randint(0, 256, (clips_read, 3, 2, 32, 32), generator=generator)
            mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
            batch = Batch(
                epoch=0,
                rows=rows_of_step[mine],
                clips=clips[mine].to(torch.uint8),
                colors=torch.ones(clips_read, 3)[mine],
                failures=[],
            )
            loss_scale = len(batch.rows) * world.size / clips_read
            scalars = task.train_step(batch, 0.0, loss_scale)
            losses.append(world.sum(scalars["loss"] * loss_scale) / world.size)
        bank = torch.zeros(2, PAIRS, 8)
        bank[:, world.rank :: world.size] = torch.stack([task.bank.video, task.bank.text])
        bank = world.sum(bank)
        seeds = world.gather_rows(torch.tensor([torch.initial_seed()]))
        if world.is_main:
            result = {
                "losses": torch.stack(losses),
                "gradients": gradients,
                "bank": bank,
                "seeds": seeds,
                "log_z": task.objective.state_dict().get("log_z", torch.empty(0)),
                "weights": [p.detach() for p in parameters],
            }
            torch.save(result, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
