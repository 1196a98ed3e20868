"""Estimates of a training: advice, batches, growth of the micro-batch, memory, and errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from crosspair import planning
from crosspair.config import Recipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RecipeError, VideoError
from crosspair.planning import Measurements, _grow_batch, _make_batch, _peak_memory, estimate_training, suggest_changes
from crosspair.recipes import load_recipe, recipe_of
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch
from tests.e2e.conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

# Nothing to suggest: steps run at their maximum rate.
GOOD = Measurements(
    seconds=30, by_worker=50, loading=200, step=100, together=99, data_wait=0.0, part=64,
    memory=6 * 10**9, worker_memory=0, available=10**10, fits=True,
)  # fmt: skip
RECIPE = {"training.batch_size": 64, "training.workers": 4, "clip.size": 112}
LONG = 1e9  # s
ALL = 2**60  # bytes


def suggestions(measured: dict[str, Any], workers: int = 4, cores: int = 8, **columns: Any) -> list[str]:
    row = {"pair_id": "a", "path": "a.mp4", "width": 170, "height": 128, "codec": "h264", **columns}
    recipe: Recipe = recipe_of({**RECIPE, "training.workers": workers})
    manifest = manifest_from_rows([row], "m.parquet")
    return list(suggest_changes(recipe, manifest, dataclasses.replace(GOOD, **measured), cores))


def test_no_suggestion_without_a_gain() -> None:
    assert suggestions({}) == []
    assert suggestions({}, height=240, width=320) == []  # the network is the bottleneck
    assert suggestions({"together": 80.0}) == []  # the videos are prepared already


@pytest.mark.parametrize(
    "columns", [{"height": 240, "width": 320}, {"codec": "mpeg4"}, {"height": None, "codec": None}]
)
def test_large_videos_should_be_prepared(columns: dict[str, Any]) -> None:
    (sentence,) = suggestions({"together": 80.0}, **columns)
    assert '"crosspair prepare m.parquet --out prepared --short-side 128"' in sentence


def test_more_workers_if_there_are_cores() -> None:
    starved = {"together": 40.0, "data_wait": 0.6, "by_worker": 20.0}
    (sentence,) = suggestions(starved, workers=2)
    assert "training.workers=5:" in sentence
    assert "training.workers=3:" in suggestions(starved, workers=2, cores=3)[0]
    assert suggestions(starved, workers=5) == []


def test_a_batch_that_is_too_large_should_be_accumulated() -> None:
    (sentence,) = suggestions({"part": 16, "fits": False})
    for text in ("training.accumulate", "training.batch_size", "16 clips", "64 at a time"):
        assert text in sentence


def pairs(number: int = 40) -> Manifest:
    rows = [
        {"pair_id": str(i), "path": "none.mp4", "title": f"word{i % 4} more", "split": "train"} for i in range(number)
    ]
    return manifest_from_rows(rows, "m.parquet")


@pytest.fixture
def task() -> Pretraining:
    recipe = load_recipe("laptop", [*TINY, "curriculum.stage2_epoch=1"])
    return Pretraining(recipe, pairs(), World())


def batch(clips: int, failures: int = 0) -> Batch:
    pixels = torch.arange(clips, dtype=torch.uint8).view(-1, 1, 1, 1, 1)
    failed = [(99, "it is broken")] * failures
    return Batch(0, torch.arange(clips), pixels.expand(-1, 3, 4, 32, 32), torch.ones(clips, 3), failed)


def test_clips_are_repeated() -> None:
    joined = _make_batch([batch(2), batch(0, 3), batch(1, 2)], 7)
    assert joined.rows.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert joined.clips[:, 0, 0, 0, 0].tolist() == joined.rows.tolist()
    assert joined.clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert joined.colors.shape == (7, 3)


def test_fewer_than_two_readable_clips() -> None:
    with pytest.raises(VideoError, match="it is broken"):
        _make_batch([batch(1, 7)], 8)


@pytest.mark.parametrize(
    ("seconds", "available", "size", "fits"), [(LONG, ALL, 24, True), (0.0, ALL, 2, True), (LONG, 0, 2, False)]
)
def test_the_batch_grows_as_far_as_time_and_memory_allow(
    task: Pretraining, seconds: float, available: int, size: int, fits: bool
) -> None:
    found, peak, found_fits = _grow_batch(task, [batch(24)], 24, seconds, available)
    assert (found, found_fits) == (size, fits)
    assert peak > 10**7


def test_memory_of_the_next_size_is_extrapolated(task: Pretraining, monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 bytes before the first step, 110 with 2 clips, 120 with 4, and so on.
    peaks = iter([100, 110, 120, 140])
    monkeypatch.setattr(planning, "_peak_memory", lambda _: next(peaks))
    # 8 clips would need 140 bytes, and 12 clips 160.
    assert _grow_batch(task, [batch(24)], 12, LONG, 140) == (4, 120, False)
    peaks = iter([100, 110, 120, 140])
    assert _grow_batch(task, [batch(24)], 12, LONG, 160) == (8, 140, False)


def test_compilation_does_not_count(task: Pretraining, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: set[int] = set()

    def step(task: Pretraining, part: Batch) -> float:
        is_compiled = len(part.rows) in compiled
        compiled.add(len(part.rows))
        return 0.01 if is_compiled else LONG

    monkeypatch.setattr(planning, "_time_step", step)
    training = dataclasses.replace(task.recipe.training, compile=True)
    task.recipe = dataclasses.replace(task.recipe, training=training)
    assert _grow_batch(task, [batch(24)], 24, 10, ALL)[0] == 24


@pytest.mark.parametrize("fitting", [8, 0])
def test_a_batch_that_does_not_fit_is_reduced(task: Pretraining, monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    def step(task: Pretraining, part: Batch) -> float:
        if len(part.rows) > fitting:
            raise torch.OutOfMemoryError("too many")
        return 0.01

    monkeypatch.setattr(planning, "_time_step", step)
    if fitting:
        assert _grow_batch(task, [batch(24)], 24, LONG, ALL)[::2] == (8, False)
    else:
        with pytest.raises(RecipeError, match=r"clip\.size"):
            _grow_batch(task, [batch(24)], 24, LONG, ALL)


def test_peak_memory() -> None:
    held = torch.ones(50_000_000)  # 200 MB
    assert _peak_memory(torch.device("cpu")) > held.nbytes


def test_planning_needs_one_process() -> None:
    with pytest.raises(RecipeError, match="torchrun"):
        estimate_training(load_recipe("laptop"), pairs(), world=World(0, 2))
