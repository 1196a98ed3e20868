"""crosspair benchmark: consistent estimates, no files written, advice, and growth of the micro-batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crosspair import benchmark as module
from crosspair.benchmark import BenchmarkResult, _grow_batch, _make_batch, benchmark, suggest_changes
from crosspair.cli import main
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import RecipeError, VideoError
from crosspair.provenance import Machine
from crosspair.recipes import load_recipe, read_recipe, recipe_of
from crosspair.training.pretrain import Pretraining
from crosspair.video.loader import Batch
from tests.e2e.conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

# Nothing to suggest: steps run at their maximum rate.
GOOD = BenchmarkResult(
    Machine("CPU", 8, 10.0, "2", "cpu"), seconds=30, pairs=100, clips=1000, workers=4, micro_batch=64,
    measured_batch=64, loading=200, step=100, training=99, sections={"data wait": 0.0, "forward": 1.0},
    hours=1, memory=6 * 10**9, available=10**10, fits=True, worker_memory=0, checkpoint_bytes=1,
    model_bytes=1,
)  # fmt: skip
STARVED = {"training": 40.0, "loading": 40.0, "workers": 2, "sections": {"data wait": 0.6, "forward": 0.4}}
LONG, ALL = 1e9, 2**60  # s, bytes


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


def test_costs_follow_from_the_measurement(rendered: Manifest, tmp_path: Path) -> None:
    recipe = load_recipe("laptop", [*TINY, "training.epochs=5", "training.validate_every=2"])
    result = benchmark(recipe, rendered, seconds=1)
    assert 0 < result.pairs <= len(rendered.split("train"))
    assert result.clips == 5 * 8 * (result.pairs // 8)
    assert 2 <= result.measured_batch <= result.micro_batch == 8  # limited by time
    assert min(result.loading, result.step, result.training, result.worker_memory) > 0
    assert {"data wait", "copy", "forward", "objective", "backward", "optimiser", "bank"} <= set(result.sections)
    assert sum(result.sections.values()) == pytest.approx(1000 * result.measured_batch / result.training, rel=0.1)
    # Three validations: of epochs 2, 4 and the last.
    clips = result.clips + 3 * len(rendered.split("val"))
    assert result.hours == pytest.approx(clips / result.training / 3600)
    assert result.available > result.memory > 10**7
    assert f"{result.training:.1f} clips/s" in str(result)
    main(["pretrain", "--recipe", "laptop", "--run", str(tmp_path), "--manifest", str(rendered.path), *TINY])
    model = (tmp_path / "model/model.safetensors").stat().st_size
    assert result.model_bytes == pytest.approx(model, rel=0.2)
    newest = max((tmp_path / "checkpoints").iterdir())
    checkpoint = sum(file.stat().st_size for file in newest.iterdir())
    assert result.checkpoint_bytes == pytest.approx(3 * checkpoint, rel=0.3)


def test_fine_tuning_writes_no_file(
    rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [str(row % 2) for row in range(len(rendered))]
    manifest = rendered.with_columns({"label": labels}).rebased(tmp_path / "m.parquet")
    manifest.write(tmp_path / "m.parquet")
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path) | files(rendered.path.parent)
    tiny = [each for each in TINY if each.startswith(("clip", "video", "training"))]
    options = ["--recipe", "laptop-finetune", "--manifest", "m.parquet", "--seconds", "1", "--json"]
    main(["benchmark", *options, *tiny, "video.depth=10", "training.workers=0"])
    assert files(tmp_path) | files(rendered.path.parent) == before
    found = json.loads(capsys.readouterr().out)
    assert (found["workers"], "bank" in found["sections"]) == (0, False)


def suggestions(measured: dict[str, Any], **columns: Any) -> str:
    row = {"pair_id": "a", "path": "a.mp4", "width": 170, "height": 128, "codec": "h264", **columns}
    recipe: Recipe = recipe_of({"training.batch_size": 64, "clip.size": 112})
    result = dataclasses.replace(GOOD, **measured)
    return "\n".join(suggest_changes(result, recipe, manifest_from_rows([row], "m.parquet")))


def test_no_suggestion_without_a_gain() -> None:
    assert suggestions({}) == ""
    assert suggestions({}, height=240, width=320) == ""  # the network is the bottleneck
    assert suggestions({"training": 80.0}) == ""  # the videos are prepared already
    assert suggestions({**STARVED, "workers": 8}) == ""


def test_suggestions() -> None:
    for columns in ({"height": 240, "width": 320}, {"codec": "mpeg4"}, {"height": None, "codec": None}):
        assert '"crosspair prepare m.parquet --out prepared --short-side 128"' in suggestions(
            {"training": 80.0}, **columns
        )
    assert "training.workers=5:" in suggestions(STARVED)
    assert "training.workers=3:" in suggestions({**STARVED, "machine": dataclasses.replace(GOOD.machine, cores=3)})
    assert "training.accumulate" in suggestions({"measured_batch": 16, "fits": False})


@pytest.fixture
def task() -> Pretraining:
    rows = [{"pair_id": str(i), "path": "none.mp4", "title": f"word{i % 4} more", "split": "train"} for i in range(40)]
    recipe = load_recipe("laptop", [*TINY, "curriculum.stage2_epoch=1"])
    return Pretraining(recipe, manifest_from_rows(rows, "m.parquet"), World())


def batch(clips: int, failures: int = 0) -> Batch:
    pixels = torch.arange(clips, dtype=torch.uint8).view(-1, 1, 1, 1, 1)
    failed = [(99, "it is broken")] * failures
    return Batch(0, torch.arange(clips), pixels.expand(-1, 3, 4, 32, 32), torch.ones(clips, 4), failed)


def test_clips_are_repeated() -> None:
    joined = _make_batch([batch(2), batch(0, 3), batch(1, 2)], 7)
    assert joined.rows.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert joined.clips[:, 0, 0, 0, 0].tolist() == joined.rows.tolist()
    assert joined.clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert joined.colors.shape == (7, 4)
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
    peaks = iter([100, 110, 120, 140] * 2)
    monkeypatch.setattr(module, "_peak_memory", lambda _: next(peaks))
    # 8 clips would need 140 bytes, and 12 clips 160.
    assert _grow_batch(task, [batch(24)], 12, LONG, 140) == (4, 120, False)
    next(peaks)
    assert _grow_batch(task, [batch(24)], 12, LONG, 160) == (8, 140, False)


@pytest.mark.parametrize("fitting", [8, 0])
def test_a_batch_that_does_not_fit_is_reduced(task: Pretraining, monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    def step(task: Pretraining, part: Batch) -> float:
        if len(part.rows) > fitting:
            raise torch.OutOfMemoryError("too many")
        return 0.01

    monkeypatch.setattr(module, "_time_step", step)
    if fitting:
        assert _grow_batch(task, [batch(24)], 24, LONG, ALL)[::2] == (8, False)
    else:
        with pytest.raises(RecipeError, match=r"clip\.size"):
            _grow_batch(task, [batch(24)], 24, LONG, ALL)


def test_a_recipe_file_of_either_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.yaml"
    for content, item in (("dropout: 0.1", "nowhere"), ("drop: 0.1", "classifier.drop")):
        file.write_text(f"classifier: {{{content}}}\n")
        with pytest.raises(SystemExit, match="2"):
            main(["benchmark", "--recipe", str(file), "--manifest", "nowhere"])
        assert item in capsys.readouterr().err


def test_one_process_only(rendered: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    monkeypatch.setattr(module, "init_distributed", lambda: contextlib.nullcontext(World(0, 2)))
    with pytest.raises(RecipeError, match="torchrun"):
        benchmark(read_recipe(FinetuneRecipe, "laptop-finetune"), rendered)
