"""Validation within a training: what it takes, and the model that it chooses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from crosspair.training.finetune import Finetuning
from crosspair.training.pretrain import Pretraining
from tests.training import test_finetune, test_parallel


class AskedError(Exception):
    """How many clips at a time were asked for."""


def asks(*arguments: Any, batch_size: int, **more: Any) -> None:
    raise AskedError(batch_size)


def pretraining() -> Pretraining:
    return test_parallel.task("training.batch_size=8", "training.accumulate=2")


def finetuning() -> Finetuning:
    return test_finetune.task(**{"training.batch_size": 8, "training.accumulate": 2})


@pytest.mark.parametrize(
    ("make", "module", "reads"),
    [(pretraining, "pretrain", "extract_features"), (finetuning, "finetune", "centre_loader")],
)
def test_no_more_clips_at_a_time_than_a_part_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Pretraining | Finetuning],
    module: str,
    reads: str,
) -> None:
    monkeypatch.setattr(importlib.import_module(f"crosspair.training.{module}"), reads, asks)
    with pytest.raises(AskedError, match=r"^4$"):
        make().validate()
