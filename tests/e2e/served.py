"""A small library, the command ``crosspair serve``, and requests to its API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch

from crosspair.library import InferenceEngine, Windows, index_videos
from tests.evaluation.conftest import tiny_model

EVIL = "<img src=x onerror=alert(1)>"
EVIL_TITLE = "<script>alert(2)</script> ${alert(3)} {{alert(4)}} `"
MINUTES = 120.0  # s; generous, for a busy machine


@dataclass(frozen=True)
class Served:
    """A running server; `folder` contains ``videos`` and ``library``, `scratch` its temporary files."""

    url: str
    folder: Path
    scratch: Path
    process: subprocess.Popen[str]

    def get(self, path: str, headers: dict[str, str] | None = None, **params: Any) -> Any:
        return httpx2.get(f"{self.url}{path}", params=params, headers=headers, timeout=MINUTES)

    def search(self, text: str, **params: Any) -> list[dict[str, Any]]:
        response = self.get("/api/v1/search", text=text, **params)
        assert response.status_code == 200, response.text
        moments: list[dict[str, Any]] = response.json()
        return moments

    def post(self, path: str, video: Path, **fields: str) -> Any:
        with video.open("rb") as file:
            upload = {"video": (video.name, file)}
            return httpx2.post(f"{self.url}/api/v1/{path}", files=upload, data=fields, timeout=MINUTES)

    def uploads(self) -> list[Path]:
        """List the uploaded files that still exist."""
        files = (path for path in self.scratch.rglob("*") if path.is_file())
        return [path for path in files if path.parent.name != "moments"]


def make_library(folder: Path, make_video: Callable[..., Path]) -> None:
    """Index videos in two folders, one of them AVI, one with markup in its name and title."""
    videos = folder / "videos"
    for name in ("day/2.mp4", "day/6.mp4", "night/3.avi", f"night/{EVIL}.mp4"):
        make_video(videos / name, frames=60 if "6" in name else 30, fps=10)
    titles = folder / "titles.tsv"
    titles.write_text(f"video_id\ttitle\n{EVIL}\t{EVIL_TITLE}\n")
    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), "fp32", batch_size=8, workers=0)
    done = index_videos(folder / "library", engine, [videos], windows=Windows(2, 1), titles=titles)
    assert (done.added, dict(done.broken)) == (4, {})


@contextmanager
def serving(folder: Path, max_upload: int = 1) -> Iterator[Served]:
    """Run the server with a maximum upload size in MB."""
    scratch = folder / "scratch"
    scratch.mkdir()
    arguments = (
        "serve", "--library", folder / "library", "--port", 0, "--max-upload", max_upload,
        "--device", "cpu", "--workers", 1, "--precision", "fp32",
    )  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "crosspair", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        message = process.stdout.readline()
        assert message.startswith("http://127.0.0.1:"), (folder / "log").read_text()
        yield Served(message.split()[0], folder, scratch, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
