"""Results, run folders and retrieved clips of a small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from crosspair.config import Clip
from crosspair.evaluation import Machine, Provenance, Result
from crosspair.reporting.examples import ContactSheet, load_tile


class Html(HTMLParser):
    """Tags, attributes and text of a page; fails on unclosed tags."""

    void = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page.read_text("utf-8"))
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

    @property
    def links(self) -> set[str]:
        return {attributes["href"] or "" for tag, attributes in self.tags if tag == "a"}


@pytest.fixture
def results() -> list[Result]:
    knn = {"k": 25, "clips": 10}
    ranks = "retrieval text→video"
    return [
        Result("kNN", "top-1", 0.0625, "chance", count=400, settings=knn),
        Result("kNN", "top-1", 0.25, "random weights", feature="visual", count=400, settings=knn),
        Result("kNN", "top-1", 0.75, "trained", feature="visual", count=400, settings=knn),
        Result(ranks, "median rank", 100.5, "chance", count=200),
        Result(ranks, "median rank", 80.0, "random weights", count=200),
        Result(ranks, "median rank", 4.0, "trained", count=200),
    ]


@pytest.fixture
def origin() -> Provenance:
    machine = Machine("A processor", 2, 15.6, "2.13.0+cpu", "cpu")
    return Provenance("0123456789ab", "00112233aabb", "ba9876543210", "v0.1", 7, machine, "2026-01-02T03:04:05Z")


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """A folder with the metrics of three epochs, whose last line is incomplete."""
    lines: list[dict[str, Any]] = []
    for step in range(30):
        values = {"posterior_positive": step / 40, "posterior_noise": 0.01, "pairs": 8 * step, "clips_per_second": 9.0}
        lines.append({"kind": "train", "step": step, "epoch": step / 10, "loss": 9 - step / 10, **values})
    lines.append({"kind": "event", "step": 20, "epoch": 2, "event": "stage II begins"})
    for epoch in (1, 2, 3):
        found = {
            f"{way}_R@{k}": min(1.0, epoch * k / 40) for way in ("text_to_video", "video_to_text") for k in (1, 5, 10)
        }
        lines.append({"kind": "validation", "step": 10 * epoch, "epoch": epoch, "pairs": 50, **found})
    folder = tmp_path / "run <b>"
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 30, "ep')
    return folder


@pytest.fixture(scope="session")
def sheet(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ContactSheet:
    """Two clips of 5 s with numbered frames, and a missing file."""
    video = make_video(tmp_path_factory.mktemp("videos") / "a.mp4", frames=150, size=(224, 112))
    tiles = [
        load_tile(Clip(str(video)), "A <b>dog</b> & its ball", 0.72, True),
        load_tile(Clip(str(video)), "A cat", 0.61, False),
        load_tile(Clip("gone.mp4"), "A bird", 0.5, False),
    ]
    return ContactSheet("a dog plays", tiles)
