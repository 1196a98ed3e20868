"""Figures: SVG ids and colours, labels, the overview; files of per-class accuracies and confusion matrices."""

from __future__ import annotations

import csv
import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from crosspair.corpora.word_overlap import read_accuracy
from crosspair.errors import RunError
from crosspair.evaluation import Result
from crosspair.reporting.examples import ContactSheet
from crosspair.reporting.figures import (
    VARIABLES,
    check_details,
    confusion_figure,
    draw_lines,
    svg_figure,
    write_details,
)
from crosspair.reporting.run_report import learning_curves, overview_figure, read_history


def line_figure(*lines: pd.Series, **options: Any) -> str:
    return svg_figure("F", lambda axes: draw_lines(axes, lines, "y", **options))


def test_curves_are_well_formed_with_unique_ids(metrics: Path) -> None:
    curves = learning_curves(read_history(metrics))
    ids = []
    for curve in curves:
        root = ElementTree.fromstring(curve.svg)
        assert root.get("aria-label") == curve.title
        own = [each.get("id") for each in root.iter() if each.get("id")]
        assert set(re.findall(r"url\(#([^)]+)\)", curve.svg)) <= set(own)
        assert set(re.findall(r'href="#([^"]+)"', curve.svg)) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_colours_come_from_the_page() -> None:
    drawn = line_figure(pd.Series([0, 1], name="a"), levels=[0.5], stage2=0.5)
    for colour, variable in VARIABLES.items():
        assert drawn.count(colour) == drawn.count(f"var({variable}, {colour})")
    assert "var(--series-1" in drawn
    assert "var(--ink" in drawn


def test_line_labels_do_not_overlap() -> None:
    same = [pd.Series([0, 1], name=name) for name in ("one", "two", "three")]
    root = ElementTree.fromstring(line_figure(*same))
    places = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        if text.text in {"one", "two", "three"}:
            places.append(float(text.get("y") or re.findall(r"[-\d.]+", text.get("transform", ""))[-1]))
    assert len(places) == 3
    places.sort()
    assert min(b - a for a, b in itertools.pairwise(places)) > 10


def test_overview_has_a_row_per_query(metrics: Path, results: list[Result], sheet: ContactSheet) -> None:
    history, awkward = read_history(metrics), ContactSheet("a $5_{dog} 🐕 costs \\frac $", sheet.tiles)
    heights = []
    for sheets in ([], [awkward]):
        with Image.open(io.BytesIO(overview_figure(results, history, sheets))) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1600
            heights.append(picture.height)
    assert heights[0] < heights[1]


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


def test_details_replace_only_details(tmp_path: Path) -> None:
    for name in ("a.classes.csv", "a.confusion.csv", "a.confusion.png"):
        write_details(tmp_path / name, RESULTS)
        check_details(tmp_path / name)
        (tmp_path / name / name).write_text("mine")
        with pytest.raises(RunError, match=name):
            check_details(tmp_path / name)


def test_accuracies_are_readable_by_word_overlap(tmp_path: Path) -> None:
    table, *_ = write_details(tmp_path, RESULTS)
    assert read_accuracy(table, ["cat", "dog", "bird"]) == ACCURACY


@pytest.mark.parametrize("classes", [2, 80])
def test_dark_pixels_match_the_counts(classes: int) -> None:
    names = [f"${i:02}_{{x $" for i in range(classes)]  # not parsed as formulas
    confusion = {name: {names[i - 1]: 5} for i, name in enumerate(names)}
    picture = Image.open(io.BytesIO(confusion_figure(confusion, "kNN"))).convert("RGB")
    pixels = np.asarray(picture)
    dark, light = ((pixels == colour).all(-1).sum() for colour in ((8, 48, 107), (247, 251, 255)))
    assert dark / (dark + light) == pytest.approx(1 / classes, rel=0.25)
