"""Train for two steps on random clips, with any number of processes; run by test_processes.py."""

import sys
from pathlib import Path

import torch
from torch import nn

from crosspair.config import FinetuneRecipe, VideoConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World, init_distributed
from crosspair.models import InitWeights, ResNet3d
from crosspair.recipes import load_recipe, make_recipe
from crosspair.training.finetune import Finetuning
from crosspair.training.loop import Trainer
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch

PAIRS, BATCH, STEPS = 40, 8, 2
SETTINGS = (
    "clip.size=32", "clip.frames=2", "video.width=4", "text.dimensions=8", "head.hidden=8",
    "head.embedding=8", "training.batch_size=8", "training.precision=fp32",
    "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.warmup_epochs=0",
    "objective.noise_samples=12", "curriculum.strategy=joint",
)  # fmt: skip


def some_pairs() -> Manifest:
    """Return pairs without videos."""
    words = ["ball", "dog", "runs", "cat", "playing"]
    titles = [f"{words[i % 5]} {words[i % 3]}" for i in range(PAIRS)]
    rows = [
        {"pair_id": str(i), "path": f"{i}.mp4", "title": title, "label": "abc"[i % 3]} for i, title in enumerate(titles)
    ]
    return manifest_from_rows(rows, "m.parquet")


def pretraining(world: World, *settings: str) -> Pretraining:
    """Statistics of batch normalisation would differ between processes, and are fixed."""
    task = Pretraining(load_recipe("laptop", [*SETTINGS, *settings]), some_pairs(), world)
    for module in task.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return task


def finetuning(world: World) -> Finetuning:
    recipe = make_recipe(FinetuneRecipe, {
        "clip.size": 32, "clip.frames": 2, "video.depth": 10, "video.width": 4,
        "classifier.frozen_norm": True, "training.batch_size": BATCH, "training.precision": "fp32",
        "training.accumulate": 2, "optimizer.lr": 0.1, "labels.hold_out": 0.2,
    })  # fmt: skip
    torch.manual_seed(5)
    init = InitWeights("test", VideoConfig(10, 4), ResNet3d(10, 4).state_dict())
    return Finetuning(recipe, some_pairs(), init, world)


def train(task: Trainer, unreadable: int) -> dict[str, object]:
    """Train on batches of which ``unreadable`` clips of the last process are missing."""
    world, clips_read = task.world, BATCH - unreadable
    modules = (task.model, task.objective) if isinstance(task, Pretraining) else (task.model,)
    parameters = [each for module in modules for each in module.parameters() if each.requires_grad]
    gradients, losses = [], []
    task.optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone() for p in parameters]))
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(len(task.clips), generator=generator)[:clips_read]
        frames = 2 * task.views_per_step
        clips = torch.randint(0, 256, (clips_read, 3, frames, 32, 32), generator=generator)
        mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        batch = Batch(
            0, rows[mine], clips[mine].to(torch.uint8), torch.ones(clips_read, 4 * task.views_per_step)[mine], []
        )
        loss_scale = len(batch.rows) * world.size / clips_read
        scalars = task.train_step(batch, 0.0, loss_scale)
        losses.append(world.sum(scalars["loss"] * loss_scale) / world.size)
    result = {
        "losses": torch.stack(losses),
        "gradients": gradients,
        "weights": [each.detach() for each in parameters],
        "seeds": world.gather_rows(torch.tensor([torch.initial_seed()])),
    }
    if isinstance(task, Pretraining):
        bank = torch.zeros(2, PAIRS, 8)
        bank[:, world.rank :: world.size] = torch.stack([task.bank.video, task.bank.text])
        result["bank"] = world.sum(bank)
        result["log_z"] = task.objective.state_dict().get("log_z", torch.empty(0))
    else:
        result["layer"] = world.gather_rows(task.model.fc.weight.detach()[None])  # (processes, C, F)
    return result


def main(out: Path, kind: str, unreadable: int, *settings: str) -> None:
    with init_distributed() as world:
        task = finetuning(world) if kind == "finetune" else pretraining(world, *settings)
        result = train(task, unreadable)
        if world.is_main:
            torch.save(result, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
