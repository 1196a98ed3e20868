"""Figures of the objectives: data against the formulas, image format, command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import gradient_figures
from benchmarks.gradients import (
    MadeUpPairs,
    estimate_quality,
    estimate_quality_figure,
    gradient_weights,
    gradient_weights_figure,
)
from PIL import Image

SMALL = MadeUpPairs(pairs=120, batch=12, topics=6, dimensions=16, seed=1)
OWN, ONE = "each query's own Z", "one Z for all, as in training"


def weights():
    return gradient_weights(SMALL)


def quality():
    return estimate_quality(SMALL, samples=(8, 256, 8192), draws=8)


def test_weights_of_negatives_in_nce_and_ranking() -> None:
    negatives = weights()["negatives"]
    assert negatives["NCE"] == pytest.approx(negatives["posterior"], rel=1e-4)
    assert all(min(abs(w), abs(w - 1)) < 1e-5 for w in negatives["ranking"])
    assert {round(w) for w in negatives["ranking"]} == {0, 1}


def test_hardest_negatives_dominate() -> None:
    hardest = weights()["hardest"]
    for name in ("NCE", "ranking"):
        assert hardest[name] == sorted(hardest[name])
        assert hardest[name][-1] == pytest.approx(1)
    assert all(
        of_weight >= of_negatives - 1e-6
        for of_weight, of_negatives in zip(hardest["NCE"], hardest["share_of_negatives"], strict=True)
    )
    tenth = hardest["share_of_negatives"].index(0.1)
    assert hardest["NCE"][tenth] > 0.3


def test_nce_gradient_converges_only_with_the_true_z() -> None:
    points = quality()
    median = {name: [each["cosine"]["median"] for each in points[name]] for name in (OWN, ONE)}
    assert median[OWN] == sorted(median[OWN])
    assert median[OWN][-1] > 0.99 > median[ONE][-1]
    off = points["difference_of_the_mean"]
    assert off[1] / off[2] == pytest.approx(32, rel=0.5)  # with 1/m
    # The error of a draw is the error of the mean and the sampling error.
    rms = [each["difference"]["rms"] for each in points[OWN]]
    assert all(draw > mean for draw, mean in zip(rms, off, strict=True))


def test_command_writes_images_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"weights": (weights, gradient_weights_figure), "nce": (quality, estimate_quality_figure)}
    monkeypatch.setattr(gradient_figures, "FIGURES", small)
    monkeypatch.setattr(sys, "argv", ["gradient_figures", "--out", str(tmp_path)])
    gradient_figures.main()
    assert {path.name for path in tmp_path.iterdir()} == {
        "weights.png", "weights.json", "nce.png", "nce.json",
    }  # fmt: skip
    written = json.loads((tmp_path / "weights.json").read_text())
    assert written["negatives"] == weights()["negatives"]
    assert written["seed"] == 1
    with Image.open(tmp_path / "nce.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 1600)
