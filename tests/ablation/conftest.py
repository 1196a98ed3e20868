"""Small plans: two rows of one epoch on rendered videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# A very small network and a very short training.
TINY = {
    "clip.size": 32, "clip.frames": 4, "video.width": 4, "text.dimensions": 8, "head.hidden": 16,
    "head.embedding": 16, "objective.noise_samples": 16, "training.batch_size": 8,
    "training.epochs": 1, "training.log_every": 1, "training.workers": 1,
    "curriculum.strategy": "frozen",
}  # fmt: skip

PLAN: dict[str, Any] = {
    "title": "Tiny",
    "recipe": "laptop",
    "overrides": TINY,
    "corpus": {"pairs": 32},
    "evaluation": {"protocols": ["knn"], "clips": 1},
    "axes": {"temperature": {"cold": {"objective.temperature": 0.07}, "warm": {"objective.temperature": 1.0}}},
    "first": {"temperature": "cold"},
    "seeds": [0],
}


@pytest.fixture
def plan_file(tmp_path) -> Callable[..., str]:
    """Write a plan with changed top-level keys; None removes a key."""

    def write(**changes: Any) -> str:
        settings = {key: value for key, value in {**PLAN, **changes}.items() if value is not None}
        return write_plan(tmp_path / "tiny.yaml", settings)

    return write


def write_plan(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return str(path)
