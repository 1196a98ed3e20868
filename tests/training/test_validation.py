"""Validation within a training: what it takes, and the model that it chooses."""

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


@pytest.mark.usefixtures("one_thread")
def test_videos_of_validation_that_cannot_be_read_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = test_finetune.task(**{"training.workers": 0})
    with pytest.raises(VideoError, match=r"none of the 4 videos can be read: .*no such file"):
        made.validate()
    named = [f"left out {name}: " for name in made.validation.column("pair_id")]
    assert all(map(str.startswith, caplog.messages[-4:], named))
    assert made.model.training


@pytest.mark.usefixtures("one_thread")
def test_the_model_that_is_best_is_written_and_given_back(
    tmp_path, make_video, monkeypatch
) -> None:
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
