"""The 30-view test, against a slow reference; `tests/distributed` runs it on several processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspair.config import ClassifierConfig, Clip, ClipConfig, MultiviewConfig, VideoConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.errors import ManifestError, ModelError, RecipeError, VideoError
from crosspair.evaluation.multiview import multiview_results, multiview_scores
from crosspair.models import Classifier
from crosspair.video import views
from crosspair.video.views import View, load_view

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP = ClipConfig(size=32, frames=2, test_scale=1.25)
SIDE = 40  # 1.25 × 32
BROKEN = 3
UPRIGHT = (1, 5)
SIZES = [(96, 64), (64, 96), (64, 64), (96, 64), (128, 64), (64, 80), (80, 64)]


def textured(index: int, width: int, height: int) -> np.ndarray:
    """Colors that differ everywhere, so that crops differ."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [np.sin(9 * across + index), np.cos(7 * down - index), np.sin(5 * across * down)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("corpus")
    for row, size in enumerate(SIZES):
        make_video(folder / f"{row}.mp4", frames=20 + 5 * row, size=size, content=textured)
    (folder / f"{BROKEN}.mp4").write_text("no video")
    labels = ["cat", "dog", "cat", "dog", "emu", "dog", "cat"]
    rows = [
        {"pair_id": f"p{i}", "path": f"{i}.mp4", "title": "", "label": label, "split": "test"}
        for i, label in enumerate(labels)
    ]
    return manifest_from_rows(rows, folder / "manifest.parquet")


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    made = Classifier(["cat", "dog", "emu"], CLIP, VideoConfig(10, 4), ClassifierConfig())
    torch.nn.init.normal_(made.fc.weight)  # or all videos look alike
    return made.eval()


def scored(model: Classifier, manifest: Manifest, clips: int = 10, crops: int = 3):
    config = MultiviewConfig(clips, crops)
    return multiview_scores(model, manifest, config, workers=0, precision="fp32")


@torch.no_grad()
def by_hand(
    model: Classifier, clip: Clip, clips: int, crops: int, upright: bool, form: ClipConfig = CLIP
) -> list[float]:
    """One view at a time, each decoded and cropped separately."""
    sums = [0.0] * len(model.classes)
    for index in range(clips):
        position = index / (clips - 1) if clips > 1 else 0.5
        for place in [0.0, 0.5, 1.0] if crops == 3 else [0.5]:
            across, down = (0.5, place) if upright else (place, 0.5)
            view = View(position, SIDE, across, down)
            pixels = torch.from_numpy(load_view(clip, view, form)).permute(3, 0, 1, 2)[None]
            exponents = [float(value) for value in model(pixels)[0].double().exp()]
            for k, value in enumerate(exponents):
                sums[k] += value / sum(exponents)
    return [value / (clips * crops) for value in sums]


@pytest.mark.parametrize(("clips", "crops"), [(10, 3), (2, 3), (12, 1)])
def test_scores_are_the_mean_softmax_of_all_views(
    model: Classifier, manifest: Manifest, clips: int, crops: int
) -> None:
    rows, found = scored(model, manifest, clips, crops)
    assert rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert found.dtype == torch.float64
    for row, probabilities in zip(rows.tolist(), found, strict=True):
        expected = torch.tensor(by_hand(model, manifest.clips()[row], clips, crops, row in UPRIGHT))
        torch.testing.assert_close(probabilities, expected.double(), atol=1e-5, rtol=1e-4)
    assert found.std(dim=0).min() > 1e-3


def test_crops_of_the_whole_short_side(model: Classifier, manifest: Manifest) -> None:
    config = MultiviewConfig(clips=2, crop_scale=1.25)
    rows, found = multiview_scores(model, manifest, config, workers=0, precision="fp32")
    for row, probabilities in zip(rows.tolist(), found, strict=True):
        whole = replace(CLIP, size=SIDE, test_scale=1.0)
        expected = torch.tensor(by_hand(model, manifest.clips()[row], 2, 3, row in UPRIGHT, whole))
        torch.testing.assert_close(probabilities, expected.double(), atol=1e-5, rtol=1e-4)
    results = multiview_results(model, manifest.take([0, 1]), config, workers=0)
    assert results[0].settings["crop size"] == SIDE
    with pytest.raises(RecipeError, match=r"multiview\.crop_scale"):
        multiview_scores(model, manifest, MultiviewConfig(crop_scale=1.3), workers=0)


def test_a_video_is_opened_once_for_its_clips_and_crops(
    model: Classifier, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:

    decoded: list[str] = []
    read = views.read_frames

    def counting(clip: Clip, *rest):
        decoded.append(clip.path)
        return read(clip, *rest)

    monkeypatch.setattr(views, "read_frames", counting)
    scored(model, manifest.take([0, 1]), clips=4, crops=3)
    assert len(decoded) == 2


def test_unreadable_videos_are_skipped_listed_and_counted(
    model: Classifier, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    rows = manifest.table.to_pylist()
    rows[0]["error"] = "cut"
    with caplog.at_level(logging.WARNING):
        results = multiview_results(model, manifest_from_rows(rows, manifest.path), MultiviewConfig(clips=2), workers=0)
    assert "p0: cut" in caplog.text
    assert "p3" in caplog.text
    assert "2 of 7" in caplog.text
    assert {result.count for result in results} == {5}
    assert results[0].settings == {"clips": 2, "crops": 3, "classes": 3, "left out": 2}


def test_accuracy_is_the_share_of_videos_whose_best_class_is_theirs(model: Classifier, manifest: Manifest) -> None:
    results = multiview_results(
        model, manifest, MultiviewConfig(clips=2), workers=0, precision="fp32", settings={"init": "random"}
    )
    rows, probabilities = scored(model, manifest, clips=2)
    labels = manifest.column("label")
    hits = sum(
        model.classes[int(p.argmax())] == labels[row] for row, p in zip(rows.tolist(), probabilities, strict=True)
    )
    trained, chance = results
    assert (trained.protocol, trained.metric) == ("6 views", "top-1")
    assert (trained.value, trained.of) == (hits / 6, "trained")
    assert (chance.value, chance.of) == (1 / 3, "chance")
    assert trained.settings["init"] == "random"
    assert trained.interval is not None
    assert trained.interval[0] <= trained.value <= trained.interval[1]


def test_top_5_and_unknown_classes(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    names = ["cat", "dog", "fox", "gnu", "hen", "yak"]  # not emu
    model = Classifier(names, CLIP, VideoConfig(10, 4), ClassifierConfig()).eval()
    results = multiview_results(model, manifest, MultiviewConfig(1, 1), workers=0)
    assert [(r.metric, r.of) for r in results] == [
        ("top-1", "trained"), ("top-1", "chance"), ("top-5", "trained"), ("top-5", "chance"),
    ]  # fmt: skip
    assert results[3].value == 5 / 6
    assert results[2].value >= results[0].value
    of_emu = multiview_results(model, manifest.take([4]), MultiviewConfig(1), workers=0)
    assert (of_emu[0].value, of_emu[0].count) == (0.0, 1)
    assert "emu" in caplog.text


def test_invalid_input(model: Classifier, manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.parquet.*val"):
        multiview_results(model, manifest, split="val")
    rows = manifest.table.to_pylist()
    rows[2]["label"] = None
    with pytest.raises(ManifestError, match="p2"):
        multiview_results(model, manifest_from_rows(rows, manifest.path))
    with pytest.raises(VideoError, match=r"3\.mp4"):
        scored(model, manifest.take([BROKEN]))
    model.fc.weight.data[0] = float("nan")
    with pytest.raises(ModelError):
        scored(model, manifest.take([0]), clips=1)
