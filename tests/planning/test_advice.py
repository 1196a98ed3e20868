"""Advice: each sentence where it helps, and only there."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from crosspair.config import Recipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.device import dtype_for
from crosspair.planning import suggest_changes
from crosspair.planning.measuring import Measurements
from crosspair.recipes import recipe_of

# Nothing to be said: steps are as fast as they can be.
GOOD = Measurements(
    seconds=30, by_worker=50, loading=200, step=100, together=99, data_wait=0.0, forward=400,
    part=64, memory=6_000, by_clip=50, worker_memory=0, available=10_000,
)  # fmt: skip
RECIPE = {"training.batch_size": 64, "training.workers": 4, "clip.size": 112}
WAITS = {"together": 40.0, "data_wait": 0.6}


def manifest(**columns: Any) -> Manifest:
    row = {"pair_id": "a", "path": "a.mp4", "width": 170, "height": 128, "codec": "h264", **columns}
    return manifest_from_rows([row], "m.parquet")


def told(
    measured: dict[str, Any], recipe: dict[str, Any] | None = None, cores: int = 8, **columns: Any
) -> list[str]:
    now = dataclasses.replace(GOOD, **measured)
    made: Recipe = recipe_of({**RECIPE, **(recipe or {})})
    return suggest_changes(
        made, manifest(**columns), now, cores,
        data_bound=now.data_wait > 0.1, device=torch.device("cpu"),
    )  # fmt: skip


def test_nothing_is_told_where_nothing_is_to_be_gained() -> None:
    assert told({}) == []


def test_large_videos_are_to_be_prepared() -> None:
    (sentence,) = told({"together": 80.0}, height=240, width=320, codec="mpeg4")
    assert '"crosspair prepare m.parquet --out prepared --short-side 128"' in sentence
    assert "240 pixels or more, and are mpeg4" in sentence
    assert told({}, height=240, width=320) == []  # it costs nothing: the network is the limit
    assert told({"together": 80.0}) == []  # they are prepared


def test_videos_that_nobody_looked_at_are_to_be_looked_at() -> None:
    (sentence,) = told({"together": 80.0}, height=None, width=None, codec=None)
    assert '"crosspair check m.parquet"' in sentence


def test_more_workers_where_there_are_cores_for_them() -> None:
    starved = {**WAITS, "by_worker": 20.0}
    assert told(starved, {"training.workers": 2}) == [
        "training.workers=5: a worker loads 20.0 clips/s, and a step could take 100.0."
    ]
    few = told(starved, {"training.workers": 2}, cores=3)
    assert few[0].startswith("training.workers=3: ")
    assert few[1] == "More cores: 5 would keep up with the network, and this machine has 3."
    assert told(starved, {"training.workers": 5}) == []


def test_a_batch_that_is_too_large_goes_in_parts() -> None:
    large = {"memory": 14_000, "by_clip": 200}
    assert told(large) == [
        "training.accumulate=2: 64 clips at a time need 0.0 GB, and there are 0.0."
    ]
    # Measured with 16 clips, since more did not fit: 64 would need 12 400.
    assert told({"part": 16, "memory": 2_800, "by_clip": 200}) == told(large)
    whole_batch = {"objective.name": "in_batch"}
    assert told(large, whole_batch)[0].startswith("training.batch_size=32: ")


@pytest.mark.skipif(
    dtype_for(torch.device("cpu"), "auto") == torch.float32, reason="no bfloat16 here"
)
def test_slow_numbers_are_told_of() -> None:
    (sentence,) = told({}, {"training.precision": "fp32"})
    assert sentence.startswith("training.precision=auto: ")
