"""Reports of title cleaning (page and CSV) and of word overlap (tables and figure)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.titles import Reason, TitleReport, prepare_titles
from crosspair.corpora.word_overlap import Overlap, VariantOverlap
from crosspair.reporting.titles import (
    REASON_CLASSES,
    overlap_figure,
    rank_correlation,
    reason_frame,
    title_examples,
    words_markdown,
    write_title_report,
    write_words,
)
from tests.reporting.conftest import Html

TITLES = [
    "A dog runs 😍 muy bonito | www.a.com",
    "<b>cats</b> & @someone 犬の散歩 $5_{x}",
    "चलो साथ",
    None,
    "so quick",
    "a half \ud83d of, a pair",
]


def made(titles: list[str | None]) -> TitleReport:
    rows = [
        # Arrow rejects a lone surrogate.
        {"pair_id": f"p{n}", "path": f"{n}.mp4", "title": title and title.encode(errors="replace").decode()}
        for n, title in enumerate(titles)
    ]
    return prepare_titles(manifest_from_rows(rows, "m.parquet"))[1]


@pytest.fixture(scope="module")
def report() -> TitleReport:
    return made(TITLES)


@pytest.fixture(scope="module")
def folder(report: TitleReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_title_report(folder, report)
    return folder


def test_page_marks_removed_pieces(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<del class="sign" title="emoji" dir="auto">😍</del>' in page
    assert '<del class="language" title="not English" dir="auto">muy</del>' in page
    assert '<del class="address" title="URL" dir="auto">www.a.com</del>' in page
    assert '<del class="part">A</del> dog runs' in page
    assert "चलो साथ" in page
    assert "(none)" in page
    assert "kept without it" in page


def test_page_is_well_formed_and_escaped(folder: Path) -> None:
    page = Html(folder / "report.html")
    assert not page.links
    assert "b" not in {tag for tag, _ in page.tags}
    assert "cats" in page.text


def test_csv_has_every_title(folder: Path, report: TitleReport) -> None:
    with (folder / "titles.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["pair_id"] for row in rows] == [row.pair_id for row in report.rows]
    assert rows[0] == {
        "pair_id": "p0", "title": TITLES[0], "title_clean": "A dog runs", "title_tree": "dog runs",
        "empty": "",
        "removed": "emoji: 😍; not English: muy bonito; symbol: |; URL: www.a.com; "
        "not a verb or noun: A",
    }  # fmt: skip
    assert [row["empty"] for row in rows[2:5]] == ["clean", "clean", "tree"]


def test_fractions_refer_to_the_words_of_the_previous_stage(report: TitleReport) -> None:
    rows = {row.reason: row for row in reason_frame(report).itertuples()}
    assert rows[Reason.EMOJI].fraction is None
    assert rows[Reason.LANGUAGE].fraction == rows[Reason.LANGUAGE].count / report.raw_words
    assert rows[Reason.PART].fraction == rows[Reason.PART].count / report.clean_words
    assert list(rows)[-1] is Reason.PART
    assert set(REASON_CLASSES) == set(Reason)


def test_examples_cover_every_reason(report: TitleReport) -> None:
    examples = title_examples(report)
    seen = {piece.reason for example in examples for piece in example.pieces if piece.reason}
    assert seen >= {Reason.EMOJI, Reason.URL, Reason.LANGUAGE, Reason.MENTION, Reason.SCRIPT}
    assert all(example.clean for example in examples)


def test_empty_corpus(tmp_path: Path) -> None:
    write_title_report(tmp_path, made([]))
    assert "nothing removed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def overlap(variant: str, counts: dict[str, int]) -> VariantOverlap:
    """Classes of 10 pairs with the given numbers of titles that contain a class word."""
    classes = {label: Overlap(10, 10, 50, count, 0, count) for label, count in counts.items()}
    count, found = len(classes), sum(counts.values())
    return VariantOverlap(variant, Overlap(10 * count, 10 * count, 50 * count, found, 0, found), classes)


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
