"""The site builds without warnings and loads nothing from other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)")
# Canonical, previous and next links, which a browser does not load.
NOT_LOADED = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next)\b[^>]*>")


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


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    html = [NOT_LOADED.sub("", page.read_text(encoding="utf-8")) for page in site.glob("*.html")]
    fetched = {each for text in html for each in FETCHED.findall(text)}
    assert any(each.endswith(".css") for each in fetched)
    assert not [each for each in fetched if each.startswith(("http:", "https:", "//"))]
    sheets = [sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css")]
    assert not [sheet for sheet in sheets if re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet)]


def test_tables_come_from_results(site: Path) -> None:
    page = (site / "results.html").read_text(encoding="utf-8")
    placeholders = re.findall(r"<!-- (results|dial|transfer|claims): ", (ROOT / "docs/results.md").read_text())
    assert page.count("<table") == len(placeholders) + placeholders.count("dial")  # kNN, and zero-shot
    assert "zero-shot" in page


def test_every_placeholder_is_replaced_by_a_table(site: Path) -> None:
    placeholder = re.compile(r"<!-- \w+: \S+ -->")
    pages = [page for page in (ROOT / "docs").glob("*.md") if placeholder.search(page.read_text())]
    assert {"results", "speed"} <= {page.stem for page in pages}
    for page in pages:
        html = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert "<table" in html, page
        assert not placeholder.search(html), page
