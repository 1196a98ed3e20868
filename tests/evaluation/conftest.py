"""Six videos, one of them broken, and a network of a few weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosspair.config import ClipConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.models import CPD, WordAverage
from crosspair.recipes import recipe_of
from crosspair.video.views import View

BROKEN = 3


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("corpus")
    for row in range(6):
        make_video(folder / f"{row}.mp4", frames=20 + 15 * row)
    (folder / f"{BROKEN}.mp4").write_text("no video")
    rows = [{"pair_id": f"p{i}", "path": f"{i}.mp4", "title": "a dog"} for i in range(6)]
    return manifest_from_rows(rows, folder / "manifest.parquet")


def tiny_model(seed: int = 0) -> CPD:
    """A model that knows the words dog and cat."""
    torch.manual_seed(seed)
    recipe = recipe_of({
        "video.depth": 10, "video.width": 4, "head.embedding": 8, "head.hidden": 8,
        "clip.size": 32, "clip.frames": 2,
    })  # fmt: skip
    words = WordAverage(["dog", "cat"], torch.randn(2, 6))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head)


@pytest.fixture
def model() -> CPD:
    return tiny_model()


def centre_view(position: float, config: ClipConfig) -> View:
    """Return the view of the frames' centre at a position in time (0 to 1), at the test scale, not flipped."""
    return View(position, round(config.test_scale * config.size))
