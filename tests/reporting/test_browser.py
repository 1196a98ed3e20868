"""Check every page in a browser: no requests, no errors, no horizontal scrolling.

Needs Chromium and the package playwright; no browser is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.titles import prepare_titles
from crosspair.evaluation import Provenance, Result, write_results
from crosspair.recipes import dump_recipe, load_recipe
from crosspair.reporting.ablation import write_ablation_report
from crosspair.reporting.examples import ContactSheet, Examples
from crosspair.reporting.run_report import write_run_report
from crosspair.reporting.summary import read_runs, write_summary
from crosspair.reporting.titles import write_title_report
from tests.reporting.ablations import OBJECTIVES, write_ablation

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ("run", "summary", "ablation", "dial", "titles")
WIDTHS = (360, 800, 1400)


@pytest.fixture
def page_of(
    tmp_path: Path, results: list[Result], origin: Provenance, metrics: Path, sheet: ContactSheet, kind: str
) -> Path:
    """A page with all its sections, with long unbreakable words."""
    page = tmp_path / "out" / "report.html"
    long = "v_" + "NeverEnding" * 12
    if kind == "run":
        (metrics / "recipe.yaml").write_text(dump_recipe(load_recipe("laptop")))
        write_results(page.with_name("results.json"), results, origin)
        examples = Examples(long, [sheet], long)
        write_run_report(metrics, folder=page.parent, title=long, summary=long, facts=[(long, long)], examples=examples)
    elif kind == "summary":
        many = [
            Result(f"zero-shot, {n} random classes", "top-1", 0.5, "trained", interval=(0.4, 0.6)) for n in range(9)
        ]
        write_results(tmp_path / long / "results.json", many, origin)
        write_summary(page.parent, read_runs([str(tmp_path / long)]))
    elif kind == "titles":
        rows = [
            {"pair_id": long, "path": "a.mp4", "title": f"a dog 😍 {long} muy bonito www.a.com"},
            {"pair_id": "b", "path": "b.mp4", "title": "चलो साथ"},
        ]
        write_title_report(page.parent, prepare_titles(manifest_from_rows(rows, "m.parquet"))[1])
    else:
        axes = {"objective": (long, *OBJECTIVES)}
        if kind == "dial":
            axes["wrong titles"] = ("0", "0.25", "0.5")
        lost = {} if kind == "dial" else {("ranking", 0): "failed", ("in-batch", 1): "missing"}
        first = " / 0" if kind == "dial" else ""
        rows = {long + first: 1, OBJECTIVES[0] + first: -1}
        claim = {"claim": long, "source": "paper", "rows": rows, "difference": 0.1, "protocol": "kNN"}
        page.parent.mkdir()
        write_ablation(page.parent, axes, lost=lost, claims=[claim], title=long)
        write_ablation_report(page.parent)
    return page


def opened(browser: Browser, path: Path, width: int, scheme: str = "light") -> tuple[Page, list[str]]:
    """Return the page and its faults."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            request.url.startswith("data:") or request.url == path.as_uri() or faults.append(f"request: {request.url}")
        ),
    )
    page.goto(path.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        faults.append(f"{wide} pixels wide")
    return page, faults


@pytest.mark.parametrize("kind", PAGES)
def test_page_has_no_faults(browser: Browser, page_of: Path) -> None:
    for width in WIDTHS:
        page, faults = opened(browser, page_of, width)
        assert faults == [], width
        page.close()


@pytest.mark.parametrize("kind", ["summary"])
def test_wide_tables_scroll_and_are_focusable(browser: Browser, page_of: Path) -> None:
    page, _ = opened(browser, page_of, 360)
    boxes: Sequence[bool] = page.eval_on_selector_all(
        ".scroll", "boxes => boxes.map(box => box.scrollWidth > box.clientWidth)"
    )
    assert any(boxes)
    page.keyboard.press("Tab")
    focus = page.evaluate("[document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle]")
    page.close()
    assert focus == ["card scroll", "solid"]


@pytest.mark.parametrize("kind", ["run"])
def test_dark_mode_and_print_styles(browser: Browser, page_of: Path) -> None:
    def look(page: Page, selector: str, name: str) -> str:
        script = f"name => getComputedStyle(document.querySelector({selector!r}))[name]"
        return str(page.evaluate(script, name))

    light, dark = (opened(browser, page_of, 800, scheme)[0] for scheme in ("light", "dark"))
    for selector, name in (("body", "color"), ("body", "backgroundColor"), ("svg text", "fill")):
        assert look(light, selector, name) != look(dark, selector, name), (selector, name)
    assert look(light, ".scroll", "overflowX") == "auto"
    light.emulate_media(media="print")
    assert look(light, ".scroll", "overflowX") == "visible"


def test_faults_are_detected(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        '<!doctype html><img src="http://localhost:9/a.png"><p style="width: 500px">wide</p>'
        '<script>console.error("a"); b()</script>'
    )
    page, faults = opened(browser, path, 360)
    page.wait_for_timeout(100)
    text = " ".join(faults)
    assert "request: http://localhost:9/a.png" in text
    assert "console: a" in text
    assert "error: b is not defined" in text
    assert "pixels wide" in text
