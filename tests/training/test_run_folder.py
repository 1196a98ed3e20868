"""A run folder that several machines share, or should."""

import json
import resource
from pathlib import Path

import pytest
import torch

from crosspair.config import Recipe
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.recipes import load_recipe, read_recipe
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


def lines_of(path: Path) -> list[int]:
    lines = (path / run.METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def alone(path: Path) -> RunFolder:
    return RunFolder(path, RECIPE, "these", resume=True, world=World())


def test_a_full_disk_is_told_in_one_line(tmp_path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: File too large$"),
            alone(tmp_path) as full,
        ):
            full.record("event", 1, {"message": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_that_are_none_of_ours_are_dropped(tmp_path) -> None:
    with alone(tmp_path) as first:
        first.record("event", 0, {"epoch": 0})
    with (tmp_path / run.METRICS).open("a") as file:
        file.write('3\n["step"]\n{"kind": "event"}\n')
    with alone(tmp_path):
        assert lines_of(tmp_path) == [0]


def test_a_line_cut_within_a_letter_is_dropped(tmp_path) -> None:
    with alone(tmp_path) as first:
        first.record("event", 0, {"message": "ä"})
    with (tmp_path / run.METRICS).open("ab") as file:
        file.write('{"kind": "event", "step": 0, "message": "ä'.encode()[:-1])
    with alone(tmp_path) as again:
        again.record("event", 0, {})
    assert lines_of(tmp_path) == [0, 0]


def test_what_changes_no_number_may_change(tmp_path) -> None:
    alone(tmp_path)
    changed = ("training.workers=7", "training.log_every=3", "training.checkpoint_steps=5")
    RunFolder(tmp_path, load_recipe("laptop", changed), "these", resume=True, world=World())
    kept = read_recipe(Recipe, str(tmp_path / run.RECIPE)).training
    assert (kept.workers, kept.log_every, kept.checkpoint_steps) == (7, 3, 5)
    other = load_recipe("laptop", ("training.workers=6", "training.accumulate=2"))
    told = r"holds a run of another recipe: training\.accumulate was 1, not 2$"
    with pytest.raises(RunError, match=told):
        RunFolder(tmp_path, other, "these", resume=True, world=World())
