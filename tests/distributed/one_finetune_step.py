"""Fine-tune for two steps on random clips, with any number of processes."""

import sys
from pathlib import Path

import torch

from crosspair.config import FinetuneRecipe, VideoConfig
from crosspair.corpora import manifest_from_rows
from crosspair.distributed import init_distributed
from crosspair.models import InitWeights, ResNet3d
from crosspair.recipes import make_recipe
from crosspair.training.finetune import Finetuning
from crosspair.video.loader import Batch

VIDEOS, BATCH, STEPS = 40, 8, 2


def main(out: Path) -> None:
    recipe = make_recipe(FinetuneRecipe, {
        "clip.size": 32, "clip.frames": 2, "video.depth": 10, "video.width": 4,
        # Statistics of batch normalisation would differ between processes.
        "classifier.frozen_norm": True, "training.batch_size": BATCH, "training.precision": "fp32",
        "training.accumulate": 2, "optimizer.lr": 0.1, "labels.hold_out": 0.2,
    })  # fmt: skip
    rows = [{"pair_id": str(i), "path": "x", "title": "", "label": "abc"[i % 3]} for i in range(VIDEOS)]
    torch.manual_seed(5)
    video = VideoConfig(10, 4)
    encoder = ResNet3d(video.depth, video.width).state_dict()
    with init_distributed() as world:
        init = InitWeights("test", video, encoder)
        task = Finetuning(recipe, manifest_from_rows(rows, "m.parquet"), init, world)
        gradients = []
        trainable = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        task.optimizer.register_step_pre_hook(lambda *_: gradients.append([p.grad.clone() for p in trainable]))
        losses = []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            rows_of_step = torch.randperm(len(task.clips), generator=generator)[:BATCH]
            clips = torch.randint(0, 256, (BATCH, 3, 2, 32, 32), generator=generator)
            mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
            batch = Batch(
                epoch=0,
                rows=rows_of_step[mine],
                clips=clips[mine].to(torch.uint8),
                colors=torch.ones(BATCH, 3)[mine],
                failures=[],
            )
            scalars = task.train_step(batch, 0.0, 1.0)
            losses.append(world.sum(scalars["loss"]) / world.size)
        layer = world.gather_rows(task.model.fc.weight.detach()[None])  # (processes, C, F)
        if world.is_main:
            result = {
                "losses": torch.stack(losses),
                "gradients": gradients,
                "layer": layer,
                "weights": list(task.model.state_dict().values()),
            }
            torch.save(result, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
