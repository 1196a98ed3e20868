"""Files of per-class accuracies and confusion matrices."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crosspair.corpora.word_overlap import read_accuracy
from crosspair.errors import RunError
from crosspair.evaluation import Result
from crosspair.reporting.figures import confusion_figure, write_details

CONFUSION = {"cat": {"cat": 3, "dog": 1}, "dog": {"cat": 2}}
ACCURACY = {"cat": 0.75, "dog": 0.0}
RESULTS = [
    Result("low-shot 1 %", "top-1", 0.5, "trained", feature="visual",
           details={"per_class": ACCURACY, "confusion": CONFUSION}),
    Result("low-shot 1 %", "top-1", 0.1, "chance", feature="visual"),
]  # fmt: skip


def test_files_match_the_results(tmp_path: Path) -> None:
    files = write_details(tmp_path / "deep", RESULTS)
    name = "low-shot-1-percent-visual"
    suffixes = ("classes.csv", "confusion.csv", "confusion.png")
    assert [file.name for file in files] == [f"{name}.{suffix}" for suffix in suffixes]
    classes, confusion = (list(csv.DictReader(file.open())) for file in files[:2])
    assert classes == [
        {"class": "cat", "accuracy": "0.750000", "videos": "4"},
        {"class": "dog", "accuracy": "0.000000", "videos": "2"},
    ]
    assert [tuple(row.values()) for row in confusion] == [
        ("cat", "cat", "3"), ("cat", "dog", "1"), ("dog", "cat", "2"),
    ]  # fmt: skip


def test_class_names_are_not_parsed_as_formulas() -> None:
    name = "it costs $x_{ $"
    assert confusion_figure({name: {name: 1}}, "kNN").startswith(b"\x89PNG")


def test_accuracies_are_readable_by_word_overlap(tmp_path: Path) -> None:
    table, *_ = write_details(tmp_path, RESULTS)
    assert read_accuracy(table, ["cat", "dog", "bird"]) == ACCURACY


@pytest.mark.parametrize("classes", [2, 80])
def test_dark_pixels_match_the_counts(classes: int) -> None:
    confusion = {f"{i:02}": {f"{(i + 1) % classes:02}": 5} for i in range(classes)}
    picture = Image.open(io.BytesIO(confusion_figure(confusion, "kNN"))).convert("RGB")
    pixels = np.asarray(picture)
    dark, light = ((pixels == colour).all(-1).sum() for colour in ((8, 48, 107), (247, 251, 255)))
    assert dark / (dark + light) == pytest.approx(1 / classes, rel=0.25)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"visual\.classes\.csv"):
        write_details(tmp_path / "file", RESULTS)
