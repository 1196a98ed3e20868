"""Resuming a trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crosspair.config import Recipe
from crosspair.distributed import World
from crosspair.training.loop import Trainer
from crosspair.training.run import save_checkpoint


class NullTask:
    """A task without a model."""

    recipe = Recipe()
    steps_per_epoch = 5
    world = World(device=torch.device("cuda"))

    def load_state_dict(self, state: dict, ranks: list[dict]) -> None:
        assert (state, ranks) == ({"a": 1}, [{"b": 2}])


@pytest.mark.parametrize("first_device", ["cpu", "cuda"])
def test_runs_of_either_device_resume_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_device: str
) -> None:
    restored: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(state.tolist()))
    rank_state = {"task": {"b": 2}, "rng": torch.get_rng_state()}
    if first_device == "cuda":
        rank_state["cuda_rng"] = torch.tensor([7])
    shared = {"task": {"a": 1}, "best_step": 3, "left_out": {}}
    save_checkpoint(tmp_path, 4, shared, rank_state, World())
    run = SimpleNamespace(checkpoints=tmp_path, last_step=4)
    trainer = Trainer(NullTask(), run)
    assert (trainer.step, trainer.best_step) == (4, 3)
    assert restored == ([[7]] if first_device == "cuda" else [])
