"""Figures: SVG ids and colours, labels, and the overview."""

from __future__ import annotations

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from crosspair.evaluation import Result
from crosspair.reporting import ContactSheet, learning_curves, overview_figure, read_history
from crosspair.reporting.figures import VARIABLES, draw_lines, svg_figure


def line_figure(*lines: pd.Series, **options: Any) -> str:
    return svg_figure("F", lambda axes: draw_lines(axes, lines, "y", **options))


def test_curves_are_well_formed_with_unique_ids(run: Path) -> None:
    curves = learning_curves(read_history(run))
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


def test_figures_are_deterministic() -> None:
    line = pd.Series([3, 1, 2], name="a")
    assert line_figure(line) == line_figure(line)


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


def test_overview_has_a_row_per_query(run: Path, results: list[Result], sheet: ContactSheet) -> None:
    history = read_history(run)
    with Image.open(io.BytesIO(overview_figure(results, history, [sheet]))) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        with_sheet = picture.height
    with Image.open(io.BytesIO(overview_figure(results, history))) as picture:
        assert picture.height < with_sheet


def test_overview_with_special_characters(run: Path, results: list[Result], sheet: ContactSheet) -> None:
    awkward = ContactSheet("a $5_{dog} 🐕 costs \\frac $", sheet.tiles)
    assert overview_figure(results, read_history(run), [awkward])
