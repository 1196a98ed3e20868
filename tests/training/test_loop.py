"""Where a loop begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crosspair.config import Recipe
from crosspair.distributed import World
from crosspair.training.loop import Trainer
from crosspair.training.run import save_checkpoint


class Nothing:
    """A task that learns nothing."""

    recipe = Recipe()
    steps_per_epoch = 5
    world = World(device=torch.device("cuda"))

    def load_state_dict(self, shared: dict, owns: list[dict]) -> None:
        assert (shared, owns) == ({"a": 1}, [{"b": 2}])


@pytest.mark.parametrize("begun_on", ["cpu", "cuda"])
def test_what_was_begun_on_either_device_goes_on_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_on: str
) -> None:
    restored: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(state.tolist()))
    own = {"task": {"b": 2}, "rng": torch.get_rng_state()}
    if begun_on == "cuda":
        own["cuda_rng"] = torch.tensor([7])
    shared = {"task": {"a": 1}, "best_step": 3, "left_out": {}}
    save_checkpoint(tmp_path, 4, shared, own, World())
    run = SimpleNamespace(checkpoints=tmp_path, last_step=4)
    loop = Trainer(Nothing(), run)
    assert (loop.step, loop.best_step) == (4, 3)
    assert restored == ([[7]] if begun_on == "cuda" else [])
