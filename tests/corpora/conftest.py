"""Fixtures for corpus readers: videos on disk and text files."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import skipped_list_path
from crosspair.corpora.check import ProbeResult, Segment
from crosspair.errors import CheckResult, VideoStatus


class Disk:
    """A folder of links to one tiny video, and text files next to it."""

    def __init__(self, root: Path, video: Path) -> None:
        self.root, self.video = root, video
        self.videos = root / "videos"
        self.videos.mkdir()

    def link(self, *names: str) -> None:
        """Add videos by their paths in the folder."""
        for folder in {(self.videos / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.link(self.video, self.videos / name)

    def add_broken(self, *names: str) -> None:
        """Add files that are not videos."""
        for name in names:
            (self.videos / name).parent.mkdir(parents=True, exist_ok=True)
            (self.videos / name).write_text("no video")

    def file(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Half a second."""
    return make_video(tmp_path_factory.mktemp("tiny") / "tiny.mp4", frames=12, fps=24)


@pytest.fixture
def disk(tmp_path: Path, tiny_video: Path) -> Disk:
    return Disk(tmp_path, tiny_video)


class Probed:
    """Replaces probing in tests with thousands of files: every file is valid."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.duration = 10.0

    def __call__(
        self, jobs: Sequence[tuple[str, Sequence[Segment]]], *, decode: bool
    ) -> Generator[tuple[int, ProbeResult]]:
        self.paths += [path for path, _ in jobs]
        for job in range(len(jobs)):
            columns = {"duration": self.duration, "codec": "h264"}
            yield job, ProbeResult(columns, [CheckResult(VideoStatus.FINE)])


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    probing = Probed()
    monkeypatch.setattr("crosspair.corpora.check.check_videos", probing)
    return probing


def read(manifest: Manifest, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(manifest.column(name) for name in names), strict=True))


def skipped_pairs(manifest: Path) -> list[tuple[str, ...]]:
    """Return the list of skipped pairs of a manifest, without its header."""
    with skipped_list_path(manifest).open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]
