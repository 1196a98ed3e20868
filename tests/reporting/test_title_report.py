"""Report of title cleaning: page, CSV and picture."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import pytest
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from PIL import Image

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.titles import Reason, TitleReport, prepare_titles
from crosspair.errors import RunError
from crosspair.reporting.titles import (
    REASON_CLASSES,
    describe_undrawable,
    reason_frame,
    title_examples,
    title_picture,
    write_title_report,
)

TITLES = [
    "A dog runs 😍 muy bonito | www.a.com",
    "<b>cats</b> & @someone 犬の散歩 $5_{x}",
    "चलो साथ",
    None,
    "so quick",
    "a half \ud83d of, a pair",
]


def made(titles: list[str | None] = TITLES, lemmas: bool = False) -> TitleReport:
    rows = [{"pair_id": f"p{n}", "path": f"{n}.mp4"} for n in range(len(titles))]
    manifest = manifest_from_rows(rows, "m.parquet")
    # Arrow rejects a lone surrogate.
    for row, title in zip(rows, titles, strict=True):
        row["title"] = title.encode(errors="replace").decode() if title else title
    return prepare_titles(manifest_from_rows(rows, manifest.path), lemmas=lemmas)[1]


@pytest.fixture(scope="module")
def report() -> TitleReport:
    return made()


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
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "--series-1" in page  # shared style
    assert not re.search(r'(?:src|href)="', page)
    assert "<b>" not in page
    assert "cats" in html.unescape(page)
    for tag in ("dl", "del", "table", "section", "div", "tr"):
        assert len(re.findall(rf"<{tag}\b", page)) == page.count(f"</{tag}>")


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


def test_base_forms_are_shown(tmp_path: Path) -> None:
    write_title_report(tmp_path, made(["the dogs were running"], lemmas=True))
    assert "→ dog run" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_empty_corpus(tmp_path: Path) -> None:
    write_title_report(tmp_path, made([]))
    assert "nothing removed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_picture_height_depends_on_the_examples(folder: Path, report: TitleReport) -> None:
    with Image.open(folder / "titles.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        assert len(set(picture.convert("RGB").getcolors(1 << 24) or [])) > 50
        height = picture.height
    one = title_picture(title_examples(report)[:1])
    with Image.open(io.BytesIO(one)) as picture:
        assert picture.height < height


@pytest.mark.parametrize(
    ("text", "reason", "drawn"),
    [
        ("👨👩👧", Reason.EMOJI, "[emoji]"),
        (":)", Reason.EMOJI, ":)"),
        ("犬", Reason.SCRIPT, "[CJK]"),
        ("हि", Reason.SCRIPT, "[Devanagari]"),
        ("собака", Reason.SCRIPT, "собака"),
        ("café", None, "café"),
        ("\U0001fbf0", Reason.SYMBOL, "[?]"),
    ],
)
def test_undrawable_characters_are_replaced(text: str, reason: Reason | None, drawn: str) -> None:
    assert describe_undrawable(text, reason) == drawn
    known = FT2Font(findfont("DejaVu Sans")).get_charmap()
    assert all(ord(char) in known for char in drawn)


def test_unwritable_folder(report: TitleReport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"titles\.csv"):
        write_title_report(tmp_path / "file", report)
