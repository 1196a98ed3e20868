"""Class weights of an objective (Equation 1): training, checkpoint and resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crosspair.corpora import manifest_from_rows
from crosspair.distributed import World
from crosspair.recipes import load_recipe
from crosspair.training.pretrain import Pretraining
from crosspair.training.run import load_checkpoint, save_checkpoint
from crosspair.video.loader import Batch

PAIRS, BATCH = 24, 6


def task(estimate: str) -> Pretraining:
    settings = [
        "clip.size=32", "clip.frames=2", "video.width=4", "text.dimensions=8", "head.hidden=8",
        "head.embedding=8", f"training.batch_size={BATCH}", "training.precision=fp32",
        "optimizer.warmup_epochs=0", "objective.noise_samples=12", "curriculum.strategy=joint",
        "objective.name=self_instance", "objective.instances=weights",
        f"objective.estimate={estimate}",
    ]  # fmt: skip
    rows = [{"pair_id": str(i), "path": "x", "title": f"a red dog {i % 3}"} for i in range(PAIRS)]
    return Pretraining(load_recipe("laptop", settings), manifest_from_rows(rows, "m.parquet"), World())


def step(training: Pretraining, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    batch = Batch(
        epoch=0,
        rows=torch.randperm(PAIRS, generator=generator)[:BATCH],
        clips=torch.randint(0, 256, (BATCH, 3, 2, 32, 32), generator=generator).to(torch.uint8),
        colors=torch.ones(BATCH, 3),
        failures=[],
    )
    return float(training.train_step(batch, 0.0, 1.0)["loss"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("estimate", ["nce", "softmax"])
def test_resumed_run_is_identical(estimate: str, tmp_path: Path) -> None:
    run = task(estimate)
    before = run.objective.discrimination.weights.detach().clone()
    for number in range(2):
        step(run, number)
    after = run.objective.discrimination.weights.detach().clone()
    assert not torch.equal(before, after)
    save_checkpoint(tmp_path, 2, {"task": run.state_dict()}, run.rank_state_dict(), World())
    resumed = task(estimate)
    shared, ranks = load_checkpoint(tmp_path, 2)
    resumed.load_state_dict(shared["task"], ranks)
    assert torch.equal(resumed.objective.discrimination.weights, after)
    torch.manual_seed(7)
    expected = [step(run, 2), step(run, 3)]
    torch.manual_seed(7)
    assert [step(resumed, 2), step(resumed, 3)] == expected
    ours, theirs = (t.objective.discrimination.weights for t in (resumed, run))
    assert torch.equal(ours, theirs)


def test_class_weights_have_the_learning_rate_of_the_towers() -> None:
    run = task("nce")
    weights = run.objective.discrimination.weights
    groups = [g for g in run.optimizer.param_groups if any(p is weights for p in g["params"])]
    assert [group["role"] for group in groups] == ["rest"]
