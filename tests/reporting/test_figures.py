"""Figures: SVG that can stand beside others in a page, in the page's colours."""

from __future__ import annotations

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image

from crosspair.evaluation import Result
from crosspair.reporting import ContactSheet, learning_curves, overview_figure, read_history
from crosspair.reporting.figures import VARIABLES, Series, draw_lines, svg_figure


def line_figure(*lines: Series, stage2: float | None = None) -> str:
    return svg_figure("F", lambda axes: draw_lines(axes, lines, "y", stage2=stage2))


def test_curves_are_well_formed_and_share_no_ids(run: Path) -> None:
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
    drawn = line_figure(Series("a", [0, 1], [0, 1], level=0.5), stage2=0.5)
    for colour, variable in VARIABLES.items():
        assert drawn.count(colour) == drawn.count(f"var({variable}, {colour})")
    assert "var(--series-1" in drawn
    assert "var(--ink" in drawn


def test_a_figure_drawn_twice_is_the_same() -> None:
    line = Series("a", [0, 1, 2], [3, 1, 2])
    assert line_figure(line) == line_figure(line)


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    same = [Series(name, [0, 1], [0, 1]) for name in ("one", "two", "three")]
    root = ElementTree.fromstring(line_figure(*same))
    places = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        if text.text in {"one", "two", "three"}:
            places.append(
                float(text.get("y") or re.findall(r"[-\d.]+", text.get("transform", ""))[-1])
            )
    assert len(places) == 3
    places.sort()
    assert min(b - a for a, b in itertools.pairwise(places)) > 10


def test_the_overview_is_a_picture_with_a_row_for_each_query(
    run: Path, results: list[Result], sheet: ContactSheet
) -> None:
    history = read_history(run)
    with Image.open(io.BytesIO(overview_figure(results, history, [sheet]))) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        with_sheet = picture.height
    with Image.open(io.BytesIO(overview_figure(results, history))) as picture:
        assert picture.height < with_sheet


def test_the_overview_shows_queries_that_fonts_and_formulas_would_trip_over(
    run: Path, results: list[Result], sheet: ContactSheet
) -> None:
    awkward = ContactSheet("a $5_{dog} 🐕 costs \\frac $", sheet.tiles)
    assert overview_figure(results, read_history(run), [awkward])
