"""Report of a run: content, escaping and accessibility."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crosspair.errors import RunError
from crosspair.evaluation import Provenance, Result
from crosspair.reporting import ContactSheet, learning_curves, read_history, write_report


class _Page(HTMLParser):
    """Tags, attributes and text; fails on unclosed tags."""

    void = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


@pytest.fixture
def report(tmp_path: Path, results: list[Result], origin: Provenance, run: Path, sheet: ContactSheet) -> Path:
    path = tmp_path / "report.html"
    write_report(
        path,
        title="A <script>alert(1)</script> title",
        summary="Learnt & measured",
        results=results,
        provenance=origin,
        curves=learning_curves(read_history(run)),
        sheets=[sheet],
        facts=[("pairs", "1,200")],
        recipe="training:\n  seed: 7 # <none>",
    )
    return path


def test_text_is_escaped(report: Path) -> None:
    page = _Page(report.read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "A <script>alert(1)</script> title" in page.text
    assert "A <b>dog</b> & its ball" in page.text
    assert "seed: 7 # <none>" in page.text


def test_page_is_self_contained(report: Path) -> None:
    text = report.read_text("utf-8")
    for _, attributes in _Page(text).tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_table_matches_the_results(report: Path) -> None:
    page = _Page(report.read_text("utf-8"))
    assert "kNN, top-1 visual; 400 of test; clips 10; k 25 6.2 % 25.0 % 75.0 % 12.0 3.0" in page.text
    assert "median rank 200 of test 100.5 80 4 25.1 20.0" in page.text


def test_intervals_and_manifest_names_are_optional(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    with_interval = [*results[:2], replace(results[2], interval=(0.7, 0.79))]
    known = replace(origin, manifest_file="ucf.parquet")
    for name, numbers, source in (("with", with_interval, known), ("without", results, origin)):
        write_report(tmp_path / name, title="T", summary="S", results=numbers, provenance=source)
    text = _Page((tmp_path / "with").read_text("utf-8")).text
    assert "75.0 % 70.0–79.0 12.0 3.0" in text
    assert "95 %" in text
    assert "ucf.parquet ba9876543210" in text
    assert "95 %" not in _Page((tmp_path / "without").read_text("utf-8")).text


def test_correctness_and_unreadable_files_are_in_text(report: Path) -> None:
    text = _Page(report.read_text("utf-8")).text
    assert text.count("✓ correct") == 1
    assert text.count("✗ wrong") == 1
    assert "gone.mp4" in text


def test_accessibility_attributes(report: Path) -> None:
    page = _Page(report.read_text("utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(image["alt"] for image in images)
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_report_without_figures(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "report.html"
    write_report(path, title="T", summary="S", results=results, provenance=origin)
    text = _Page(path.read_text("utf-8")).text
    assert "Learning curves" not in text
    assert "Recipe" not in text


def test_failed_write_keeps_the_old_report(
    report: Path, results: list[Result], origin: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = report.read_bytes()

    def forbidden(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", forbidden)
    with pytest.raises(RunError, match=r"report\.html"):
        write_report(report, title="T", summary="S", results=results, provenance=origin)
    assert report.read_bytes() == before
    assert not list(report.parent.glob(".*.partial"))
