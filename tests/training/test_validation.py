"""Validation during training: batch size, unreadable videos, and the best model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from crosspair.corpora import manifest_from_rows
from crosspair.errors import VideoError
from crosspair.models import CPD
from crosspair.recipes import load_recipe
from crosspair.training import pretrain
from crosspair.training.finetune import Finetuning
from crosspair.training.pretrain import Pretraining
from tests.training import test_finetune, test_parallel


class BatchSizeError(Exception):
    """Raised with the requested batch size."""


def raise_batch_size(*arguments: Any, batch_size: int, **more: Any) -> None:
    raise BatchSizeError(batch_size)


def pretraining() -> Pretraining:
    return test_parallel.task("training.batch_size=8", "training.accumulate=2")


def finetuning() -> Finetuning:
    return test_finetune.task(**{"training.batch_size": 8, "training.accumulate": 2})


@pytest.mark.parametrize(
    ("make", "module", "reads"),
    [(pretraining, "pretrain", "extract_features"), (finetuning, "finetune", "encode_plans")],
)
def test_batches_have_the_size_of_a_microbatch(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Pretraining | Finetuning], module: str, reads: str
) -> None:
    monkeypatch.setattr(importlib.import_module(f"crosspair.training.{module}"), reads, raise_batch_size)
    with pytest.raises(BatchSizeError, match=r"^4$"):
        make().validate()


@pytest.mark.usefixtures("one_thread")
def test_unreadable_validation_videos_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = test_finetune.task(**{"training.workers": 0})
    with pytest.raises(VideoError, match=r"4 .*no such file"):
        made.validate()
    for name, message in zip(made.validation.column("pair_id"), caplog.messages[-4:], strict=True):
        assert f" {name}: " in message
    assert made.model.training


@pytest.mark.usefixtures("one_thread")
def test_best_model_is_written_and_returned(tmp_path, make_video, monkeypatch) -> None:
    for row in range(8):
        make_video(tmp_path / f"{row}.mp4", frames=12, size=(64, 64))
    rows = [
        {"pair_id": str(row), "path": f"{row}.mp4", "title": "a dog", "split": split}
        for row, split in enumerate(["train"] * 6 + ["val"] * 2)
    ]
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet")
    recipe = load_recipe("laptop", [
        "clip.size=32", "clip.frames=4", "video.width=4", "text.dimensions=8", "head.hidden=8",
        "head.embedding=8", "objective.noise_samples=8", "training.batch_size=2",
        "training.epochs=2", "training.workers=0", "training.validate_every=1",
        "training.export=best", "curriculum.stage2_epoch=1",
    ])  # fmt: skip
    worse = iter([0.9, 0.1])
    monkeypatch.setattr(Pretraining, "validate", lambda _: {"mrr": next(worse)})
    model = pretrain(recipe, manifest, tmp_path / "run")
    assert model is not None
    assert not model.training
    assert model.hash == CPD.from_pretrained(tmp_path / "run/model").hash
