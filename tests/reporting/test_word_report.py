"""Tables and figure of word overlap."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple
from pathlib import Path

import pytest
from PIL import Image

from crosspair.corpora.word_overlap import Overlap, VariantOverlap
from crosspair.reporting.titles import overlap_figure, print_word_overlap, rank_correlation, words_markdown, write_words


def overlap(variant: str, counts: dict[str, int]) -> VariantOverlap:
    """Classes of 10 pairs with the given numbers of titles that contain a class word."""
    classes = {label: Overlap(10, 10, 50, count, 0, count) for label, count in counts.items()}
    total = Overlap(*map(sum, zip(*map(astuple, classes.values()), strict=True)))
    return VariantOverlap(variant, total, classes)


RAW = overlap("title", {"a": 9, "b|c": 5, "c": 1, "d": 3})
CLEAN = overlap("title_clean", {"a": 8, "b|c": 4, "c": 0, "d": 2})


def test_markdown_tables() -> None:
    text = words_markdown([RAW, CLEAN], {"a": 0.25, "c": 1.0})
    assert text.splitlines()[2:4] == [
        "| title | 40 | 45.0 % | 0.0 % | 9.0 % | 5.0 |",
        "| title_clean | 40 | 35.0 % | 0.0 % | 7.0 % | 5.0 |",
    ]
    assert text.splitlines()[9:] == [
        "| a | 10 | 80.0 % | 0.0 % | 25.0 % |",
        "| b\\|c | 10 | 40.0 % | 0.0 % | – |",
        "| d | 10 | 20.0 % | 0.0 % | – |",
        "| c | 10 | 0.0 % | 0.0 % | 100.0 % |",
    ]


def test_terminal_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_word_overlap([RAW, CLEAN])
    assert "45.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("accuracy", "correlation"),
    [
        ({"a": 0.9, "b|c": 0.5, "d": 0.3, "c": 0.1}, 1.0),
        ({"a": 0.1, "b|c": 0.2, "d": 0.3, "c": 0.4}, -1.0),
        ({"a": 0.1, "b|c": 0.2, "d": 0.2}, -0.866),  # ranks 2, 1, 0 and 0, 1.5, 1.5
        ({"a": 0.1, "b|c": 0.2}, None),
        ({"a": 0.2, "b|c": 0.2, "d": 0.2}, None),
        ({}, None),
    ],
)
def test_rank_correlation(accuracy: dict[str, float], correlation: float | None) -> None:
    found = rank_correlation(CLEAN, accuracy)
    assert found == (correlation if correlation is None else pytest.approx(correlation, abs=1e-3))
    has_line = "Rank correlation" in words_markdown([CLEAN], accuracy)
    assert has_line == (correlation is not None)


def test_files(tmp_path: Path) -> None:
    write_words(tmp_path / "new", [RAW, CLEAN], {"a": 0.25})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "words.csv", "words.md", "words.png",
    ]  # fmt: skip
    with (tmp_path / "new" / "words.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 4)
    assert rows[6] == {
        "titles_of": "title_clean", "class": "a", "pairs": "10", "titles": "10", "words": "50",
        "at_least_one": "0.8", "all": "0", "relevant": "0.16", "accuracy": "0.25",
    }  # fmt: skip


def test_figure_has_at_most_twenty_classes() -> None:
    def height(classes: int) -> int:
        many = overlap("title", {f"class ${n}_{{x": n % 11 for n in range(classes)})
        with Image.open(io.BytesIO(overlap_figure([many], {"class $3_{x": 0.5}))) as picture:
            assert picture.format == "PNG"
            return picture.height

    assert height(5) < height(20) < height(21) == height(400)
