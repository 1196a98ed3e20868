"""Measuring: batches, growth of the micro-batch, memory, and errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RecipeError, VideoError
from crosspair.planning import estimate_training, measuring
from crosspair.planning.measuring import (
    MemoryMonitor,
    _concatenate,
    _grow_batch,
    _measure_forward,
)
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


def test_clips_are_repeated() -> None:
    found = _concatenate([batch(2), batch(0, 3), batch(1, 2)], 7)
    assert found.rows.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert found.clips[:, 0, 0, 0, 0].tolist() == found.rows.tolist()
    assert found.clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert found.colors.shape == (7, 3)


def test_fewer_than_two_readable_clips() -> None:
    with pytest.raises(VideoError, match="it is broken"):
        _concatenate([batch(1, 7)], 8)


def test_the_batch_grows_to_the_size_of_the_recipe() -> None:
    memory = MemoryMonitor(torch.device("cpu"))
    part, by_clip = _grow_batch(task(), batch(24), 24, LONG, memory)
    assert len(part.rows) == 24
    assert by_clip >= 0
    assert memory.peak > 10**7


def test_the_batch_stops_growing_when_time_is_up() -> None:
    part, _ = _grow_batch(task(), batch(24), 24, 0, MemoryMonitor(torch.device("cpu")))
    assert len(part.rows) == 4  # at least two sizes, to estimate memory


def test_the_batch_stops_growing_before_memory_is_full() -> None:
    memory = MemoryMonitor(torch.device("cpu"))
    memory.available = 0
    part, _ = _grow_batch(task(), batch(24), 24, LONG, memory)
    assert len(part.rows) == 2


def test_compilation_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: set[int] = set()

    def step(task: Pretraining, part: Batch) -> float:
        is_compiled = len(part.rows) in compiled
        compiled.add(len(part.rows))
        return 0.01 if is_compiled else LONG

    monkeypatch.setattr(measuring, "_time_step", step)
    compiling = task()
    training = dataclasses.replace(compiling.recipe.training, compile=True)
    compiling.recipe = dataclasses.replace(compiling.recipe, training=training)
    part, _ = _grow_batch(compiling, batch(24), 24, 10, MemoryMonitor(torch.device("cpu")))
    assert len(part.rows) == 24


@pytest.mark.usefixtures("eager_backend")
def test_validation_is_not_compiled() -> None:
    compiling = task(compile=True)
    before = graphs()
    assert _measure_forward(compiling, batch(2), 0) > 0
    assert graphs() == before


def test_a_batch_that_does_not_fit_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits_eight(task: Pretraining, part: Batch) -> float:
        if len(part.rows) > 8:
            raise torch.OutOfMemoryError("16 are too many")
        return 0.01

    monkeypatch.setattr(measuring, "_time_step", fits_eight)
    part, _ = _grow_batch(task(), batch(24), 24, LONG, MemoryMonitor(torch.device("cpu")))
    assert len(part.rows) == 8


def test_a_recipe_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits_nothing(task: Pretraining, part: Batch) -> float:
        raise torch.OutOfMemoryError("2 are too many")

    monkeypatch.setattr(measuring, "_time_step", fits_nothing)
    with pytest.raises(RecipeError, match=r"clip\.size"):
        _grow_batch(task(), batch(24), 24, LONG, MemoryMonitor(torch.device("cpu")))


def test_peak_memory() -> None:
    memory = MemoryMonitor(torch.device("cpu"))
    memory.reset_peak()
    before = memory.read_peak()
    held = torch.ones(50_000_000)  # 200 MB
    after = memory.read_peak()
    assert after - before > 150e6
    assert memory.peak == after
    del held


def test_planning_needs_one_process() -> None:
    with pytest.raises(RecipeError, match="torchrun"):
        estimate_training(load_recipe("laptop"), pairs(), world=World(0, 2))


def test_a_batch_that_cannot_be_divided_is_rejected_before_measuring() -> None:
    for processes in (3, 32):
        with pytest.raises(RecipeError, match=f"batch_size.*{processes}"):
            estimate_training(load_recipe("laptop"), pairs(), processes=[2, processes])


def test_memory_of_another_size() -> None:
    names = [field.name for field in dataclasses.fields(measuring.Measurements)]
    measured = measuring.Measurements(
        **{**dict.fromkeys(names, 0), "part": 4, "memory": 100, "by_clip": 5}
    )  # type: ignore[arg-type]
    assert [measured.memory_of(clips) for clips in (4, 6, 2)] == [100, 110, 90]
