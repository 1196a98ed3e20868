"""A tiny model, and a folder of tiny videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosspair.library import InferenceEngine, Windows
from crosspair.models import CPD
from tests.evaluation.conftest import tiny_model

WINDOWS = Windows(2, 1)


@pytest.fixture(scope="session")
def model() -> CPD:
    return tiny_model().eval()


@pytest.fixture(scope="session")
def model_folder(model: CPD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(model: CPD) -> InferenceEngine:
    """A tiny engine without worker processes."""
    return InferenceEngine(model, torch.device("cpu"), "fp32", batch_size=8, workers=0)


@pytest.fixture
def folder(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """Videos of 1, 2, 3 and 4 s, and a file that is not a video."""
    for seconds in (1, 2, 3, 4):
        make_video(tmp_path / "videos" / f"{seconds}.mp4", frames=10 * seconds, fps=10)
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    return tmp_path / "videos"
