"""Measuring: what is taken in, how far it goes, and what stops it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RecipeError, VideoError
from crosspair.planning import estimate_training, measuring
from crosspair.planning.measuring import Memory, _forward, _gathered, _grown
from crosspair.recipes import load_recipe
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch
from tests.e2e.conftest import TINY
from tests.training.test_parallel import graphs

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = 1e9  # s


def pairs(number: int = 40) -> Manifest:
    rows = [
        {"pair_id": str(i), "path": "none.mp4", "title": f"word{i % 4} more", "split": "train"}
        for i in range(number)
    ]
    return manifest_from_rows(rows, "m.parquet")


def task(**training: int) -> Pretraining:
    overrides = [f"training.{key}={value}" for key, value in training.items()]
    recipe = load_recipe("laptop", [*TINY, "curriculum.stage2_epoch=1", *overrides])
    return Pretraining(recipe, pairs(), World())


def batch(clips: int, failures: int = 0) -> Batch:
    pixels = torch.arange(clips, dtype=torch.uint8).view(-1, 1, 1, 1, 1)
    failed = [(99, "it is broken")] * failures
    return Batch(
        0, torch.arange(clips), pixels.expand(-1, 3, 4, 32, 32), torch.ones(clips, 3), failed
    )


def test_few_clips_stand_for_many() -> None:
    found = _gathered([batch(2), batch(0, 3), batch(1, 2)], 7)
    assert found.rows.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert found.clips[:, 0, 0, 0, 0].tolist() == found.rows.tolist()
    assert found.clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert found.colors.shape == (7, 3)


def test_without_clips_there_is_no_plan() -> None:
    with pytest.raises(VideoError, match="hardly any clip can be read; the first fault: it is"):
        _gathered([batch(1, 7)], 8)


def test_a_part_grows_to_what_the_recipe_says() -> None:
    memory = Memory(torch.device("cpu"))
    part, by_clip = _grown(task(), batch(24), 24, LONG, memory)
    assert len(part.rows) == 24
    assert by_clip >= 0
    assert memory.peak > 10**7


def test_a_part_stops_growing_when_time_is_up() -> None:
    part, _ = _grown(task(), batch(24), 24, 0, Memory(torch.device("cpu")))
    assert len(part.rows) == 4  # of two sizes at least, or memory would not be known


def test_a_part_stops_growing_before_memory_is_full() -> None:
    memory = Memory(torch.device("cpu"))
    memory.available = 0
    part, _ = _grown(task(), batch(24), 24, LONG, memory)
    assert len(part.rows) == 2


def test_what_the_compiler_takes_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[int] = set()

    def step(task: Pretraining, part: Batch) -> float:
        is_made = len(part.rows) in made
        made.add(len(part.rows))
        return 0.01 if is_made else LONG

    monkeypatch.setattr(measuring, "_step", step)
    compiling = task()
    training = dataclasses.replace(compiling.recipe.training, compile=True)
    compiling.recipe = dataclasses.replace(compiling.recipe, training=training)
    part, _ = _grown(compiling, batch(24), 24, 10, Memory(torch.device("cpu")))
    assert len(part.rows) == 24


@pytest.mark.usefixtures("eager_backend")
def test_nothing_is_compiled_for_validation() -> None:
    compiling = task(compile=True)
    before = graphs()
    assert _forward(compiling, batch(2), 0) > 0
    assert graphs() == before


def test_a_part_that_does_not_fit_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits_eight(task: Pretraining, part: Batch) -> float:
        if len(part.rows) > 8:
            raise torch.OutOfMemoryError("16 are too many")
        return 0.01

    monkeypatch.setattr(measuring, "_step", fits_eight)
    part, _ = _grown(task(), batch(24), 24, LONG, Memory(torch.device("cpu")))
    assert len(part.rows) == 8


def test_a_recipe_that_fits_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits_nothing(task: Pretraining, part: Batch) -> float:
        raise torch.OutOfMemoryError("2 are too many")

    monkeypatch.setattr(measuring, "_step", fits_nothing)
    with pytest.raises(RecipeError, match=r"2 clips do not fit into memory; lower clip\.size"):
        _grown(task(), batch(24), 24, LONG, Memory(torch.device("cpu")))


def test_memory_that_a_step_takes_is_seen() -> None:
    memory = Memory(torch.device("cpu"))
    memory.begin()
    before = memory.end()
    held = torch.ones(50_000_000)  # 200 MB
    after = memory.end()
    assert after - before > 150e6
    assert memory.peak == after
    del held


def test_a_plan_is_made_by_one_process() -> None:
    with pytest.raises(RecipeError, match=r"one process makes a plan .*; leave out torchrun"):
        estimate_training(load_recipe("laptop"), pairs(), world=World(0, 2))


def test_a_batch_that_cannot_be_shared_is_told_before_anything_is_measured() -> None:
    for processes, told in ((3, "cannot be shared evenly by 3 processes"), (32, "fewer than two")):
        with pytest.raises(RecipeError, match=told):
            estimate_training(load_recipe("laptop"), pairs(), processes=[2, processes])


def test_memory_of_another_size_is_computed() -> None:
    names = [field.name for field in dataclasses.fields(measuring.Measured)]
    measured = measuring.Measured(
        **{**dict.fromkeys(names, 0), "part": 4, "memory": 100, "by_clip": 5}
    )  # type: ignore[arg-type]
    assert [measured.memory_of(clips) for clips in (4, 6, 2)] == [100, 110, 90]
