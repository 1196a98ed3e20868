"""The pages build without a warning, and a browser fetches nothing from elsewhere for them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)")
# A page's own address and what it is the next or previous of; nothing is fetched for these.
TOLD = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next)\b[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    assert (site / "search/search_index.json").is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    html = [TOLD.sub("", page.read_text(encoding="utf-8")) for page in site.glob("*.html")]
    fetched = {each for text in html for each in FETCHED.findall(text)}
    assert any(each.endswith(".css") for each in fetched)
    assert not [each for each in fetched if each.startswith(("http:", "https:", "//"))]
    sheets = [sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css")]
    assert not [
        sheet for sheet in sheets if re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet)
    ]


def test_tables_come_from_results(site: Path) -> None:
    page = (site / "results.html").read_text(encoding="utf-8")
    asked = re.findall(r"<!-- (results|dial|transfer): ", (ROOT / "docs/results.md").read_text())
    assert page.count("<table") == len(asked) + asked.count("dial")  # kNN, and zero-shot
    assert "zero-shot" in page


def test_every_place_of_a_table_holds_one(site: Path) -> None:
    places = re.compile(r"<!-- \w+: \S+ -->")
    asked = [page for page in (ROOT / "docs").glob("*.md") if places.search(page.read_text())]
    assert {"results", "speed"} <= {page.stem for page in asked}
    for page in asked:
        html = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert "<table" in html, page
        assert not places.search(html), page
