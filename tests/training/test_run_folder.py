"""A run folder that several machines share, or should."""

from pathlib import Path

import pytest
import torch

from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.recipes import load_recipe
from crosspair.training import run
from crosspair.training.run import RunFolder

RECIPE = load_recipe("laptop")


class Second(World):
    """The second of two processes; the first has found a checkpoint of step 7."""

    def counts(self, mine: int) -> torch.Tensor:
        return torch.tensor([7, mine])


def opened(path: Path) -> RunFolder:
    return RunFolder(path, RECIPE, "these", resume=True, world=Second(1, 2))


def test_the_first_process_says_which_checkpoint_is_the_last(tmp_path) -> None:
    RunFolder(tmp_path, RECIPE, "these", resume=True, world=World())
    assert opened(tmp_path).last_step == 7


def test_a_machine_with_a_folder_of_its_own_is_told(tmp_path, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(run.time, "sleep", waited.append)
    told = r"is not the folder that the first process made: all machines need one run folder"
    with pytest.raises(RunError, match=told):
        opened(tmp_path / "run")
    assert sum(waited) == run.SEEN_WITHIN


def test_a_folder_that_is_seen_late_will_do(tmp_path, monkeypatch) -> None:
    def made_meanwhile(seconds: float) -> None:
        RunFolder(tmp_path / "run", RECIPE, "these", resume=True, world=World())

    monkeypatch.setattr(run.time, "sleep", made_meanwhile)
    assert opened(tmp_path / "run").last_step == 7
