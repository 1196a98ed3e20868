"""Suggestions: given if they help, and only then."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from crosspair.config import Recipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.device import dtype_for
from crosspair.planning import suggest_changes
from crosspair.planning.measuring import Measurements
from crosspair.recipes import recipe_of

# Nothing to suggest: steps run at their maximum rate.
GOOD = Measurements(
    seconds=30, by_worker=50, loading=200, step=100, together=99, data_wait=0.0, forward=400,
    part=64, memory=6_000, by_clip=50, worker_memory=0, available=10_000,
)  # fmt: skip
RECIPE = {"training.batch_size": 64, "training.workers": 4, "clip.size": 112}
WAITS = {"together": 40.0, "data_wait": 0.6}


def manifest(**columns: Any) -> Manifest:
    row = {"pair_id": "a", "path": "a.mp4", "width": 170, "height": 128, "codec": "h264", **columns}
    return manifest_from_rows([row], "m.parquet")


def suggestions(
    measured: dict[str, Any], recipe: dict[str, Any] | None = None, cores: int = 8, **columns: Any
) -> list[str]:
    now = dataclasses.replace(GOOD, **measured)
    built: Recipe = recipe_of({**RECIPE, **(recipe or {})})
    return suggest_changes(
        built, manifest(**columns), now, cores,
        data_bound=now.data_wait > 0.1, device=torch.device("cpu"),
    )  # fmt: skip


def test_no_suggestion_without_a_gain() -> None:
    assert suggestions({}) == []


def test_large_videos_should_be_prepared() -> None:
    (sentence,) = suggestions({"together": 80.0}, height=240, width=320, codec="mpeg4")
    assert '"crosspair prepare m.parquet --out prepared --short-side 128"' in sentence
    assert "240 pixels" in sentence
    assert "mpeg4" in sentence
    assert suggestions({}, height=240, width=320) == []  # the network is the bottleneck
    assert suggestions({"together": 80.0}) == []  # they are prepared already


def test_videos_of_unknown_size_should_be_checked() -> None:
    (sentence,) = suggestions({"together": 80.0}, height=None, width=None, codec=None)
    assert '"crosspair check m.parquet"' in sentence


def test_more_workers_if_there_are_cores() -> None:
    starved = {**WAITS, "by_worker": 20.0}
    (sentence,) = suggestions(starved, {"training.workers": 2})
    assert "training.workers=5:" in sentence
    assert "20.0 clips/s" in sentence
    assert "100.0 clips/s" in sentence
    few = suggestions(starved, {"training.workers": 2}, cores=3)
    assert "training.workers=3:" in few[0]
    assert re.search(r"cores: 5 .* 3\b", few[1])
    assert suggestions(starved, {"training.workers": 5}) == []


def test_a_batch_that_is_too_large_is_accumulated() -> None:
    large = {"memory": 14_000, "by_clip": 200}
    (sentence,) = suggestions(large)
    assert "training.accumulate=2: 64 clips" in sentence
    # Measured with 16 clips, since more did not fit: 64 would need 12,400 bytes.
    assert suggestions({"part": 16, "memory": 2_800, "by_clip": 200}) == suggestions(large)
    whole_batch = {"objective.name": "in_batch"}
    assert suggestions(large, whole_batch)[0].startswith("Set training.batch_size=32: ")


@pytest.mark.skipif(
    dtype_for(torch.device("cpu"), "auto") == torch.float32, reason="no bfloat16 here"
)
def test_float32_on_a_device_with_bfloat16() -> None:
    (sentence,) = suggestions({}, {"training.precision": "fp32"})
    assert "training.precision=auto" in sentence
