"""Run folders of several machines, resume, and write errors."""

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
    """Rank 1 of two processes; rank 0 found a checkpoint of step 7."""

    def gather_counts(self, mine: int) -> torch.Tensor:
        return torch.tensor([7, mine])


def open_on_rank_1(path: Path) -> RunFolder:
    return RunFolder(path, RECIPE, "hash", resume=True, world=Second(1, 2))


def test_rank_0_determines_the_last_checkpoint(tmp_path) -> None:
    RunFolder(tmp_path, RECIPE, "hash", resume=True, world=World())
    assert open_on_rank_1(tmp_path).last_step == 7


def test_separate_folder_raises(tmp_path, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(run.time, "sleep", waited.append)
    with pytest.raises(RunError, match=str(tmp_path / "run")):
        open_on_rank_1(tmp_path / "run")
    assert sum(waited) == run.NFS_CACHE_TIMEOUT_S


def test_folder_that_appears_late_is_used(tmp_path, monkeypatch) -> None:
    def create(seconds: float) -> None:
        RunFolder(tmp_path / "run", RECIPE, "hash", resume=True, world=World())

    monkeypatch.setattr(run.time, "sleep", create)
    assert open_on_rank_1(tmp_path / "run").last_step == 7


def logged_steps(path: Path) -> list[int]:
    lines = (path / run.METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def open_alone(path: Path) -> RunFolder:
    return RunFolder(path, RECIPE, "hash", resume=True, world=World())


def test_full_disk_raises(tmp_path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"metrics\.jsonl.*File too large$"), open_alone(tmp_path) as full:
            full.record("event", 1, {"message": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_invalid_lines_are_dropped(tmp_path) -> None:
    with open_alone(tmp_path) as first:
        first.record("event", 0, {"epoch": 0})
    with (tmp_path / run.METRICS).open("a") as file:
        file.write('3\n["step"]\n{"kind": "event"}\n')
    with open_alone(tmp_path):
        assert logged_steps(tmp_path) == [0]


def test_line_cut_within_a_character_is_dropped(tmp_path) -> None:
    with open_alone(tmp_path) as first:
        first.record("event", 0, {"message": "ä"})
    with (tmp_path / run.METRICS).open("ab") as file:
        file.write('{"kind": "event", "step": 0, "message": "ä'.encode()[:-1])
    with open_alone(tmp_path) as again:
        again.record("event", 0, {})
    assert logged_steps(tmp_path) == [0, 0]


def test_settings_without_effect_on_results_may_change(tmp_path) -> None:
    open_alone(tmp_path)
    changed = ("training.workers=7", "training.log_every=3", "training.checkpoint_steps=5")
    RunFolder(tmp_path, load_recipe("laptop", changed), "hash", resume=True, world=World())
    kept = read_recipe(Recipe, str(tmp_path / run.RECIPE)).training
    assert (kept.workers, kept.log_every, kept.checkpoint_steps) == (7, 3, 5)
    other = load_recipe("laptop", ("training.workers=6", "training.accumulate=2"))
    with pytest.raises(RunError, match=r"training\.accumulate was 1 .*2$"):
        RunFolder(tmp_path, other, "hash", resume=True, world=World())
