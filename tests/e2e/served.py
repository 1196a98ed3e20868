"""A small library, the command ``crosspair serve``, and requests as a browser sends them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import torch

from crosspair.library import InferenceEngine, Windows, index_videos
from tests.evaluation.conftest import tiny_model

EVIL = "<img src=x onerror=alert(1)>"
EVIL_TITLE = "<script>alert(2)</script> ${alert(3)} {{alert(4)}} `"
MINUTES = 120.0  # s; generous, for a busy machine
ALL = "All folders"


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: URL of the page.
        folder: folder that contains ``videos`` and ``library``.
        scratch: folder of the server's temporary files.
        process: the server.
    """

    url: str
    folder: Path
    scratch: Path
    process: subprocess.Popen[str]

    def ask(self, name: str, *data: Any, session: str = "s") -> list[Any]:
        """Call a function of the page and return its outputs."""
        function = functions(self.url)[name]
        join = {"data": data, "fn_index": function, "session_hash": session}
        place = f"{self.url}/gradio_api/queue"
        joined = httpx.post(f"{place}/join", json=join, timeout=MINUTES)
        if joined.status_code != 200:
            raise RefusedError(joined.text)
        event = joined.json()["event_id"]
        with httpx.stream(
            "GET", f"{place}/data", params={"session_hash": session}, timeout=MINUTES
        ) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed" and message["event_id"] == event:
                    if not message["success"]:
                        raise RefusedError(str(message["output"]))
                    given: list[Any] = message["output"]["data"]
                    return given
        raise AssertionError("no answer")

    def search(self, text: str, folder: str = ALL, session: str = "s") -> str:
        """Return the HTML of a search."""
        return str(self.ask("search_text", text, folder, session=session)[1])

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a file and return Gradio's description of it."""
        with path.open("rb") as file:
            answer = httpx.post(
                f"{self.url}/gradio_api/upload", files={"files": (path.name, file)}, timeout=MINUTES
            )
        assert answer.status_code == 200, answer.text
        return as_file(answer.json()[0])

    def uploads(self) -> list[Path]:
        """List the uploaded files that still exist."""
        files = (path for path in self.scratch.rglob("*") if path.is_file())
        return [path for path in files if path.parent.name != "moments"]


@cache
def functions(url: str) -> dict[str, int]:
    """Return the index of each function of the page."""
    config = httpx.get(f"{url}/config", timeout=MINUTES).json()
    return {each["api_name"]: each["id"] for each in config["dependencies"]}


class RefusedError(Exception):
    """The server rejects a call."""


def as_file(path: str) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def text_of(html: str) -> str:
    """Return the visible text."""
    return unescape(re.sub(r"<[^>]*>", " ", html))


def make_library(folder: Path, make_video: Callable[..., Path]) -> None:
    """Index videos in two folders, one of them AVI, one with markup in its name and title."""
    videos = folder / "videos"
    for name in ("day/2.mp4", "day/6.mp4", "night/3.avi", f"night/{EVIL}.mp4"):
        make_video(videos / name, frames=60 if "6" in name else 30, fps=10)
    titles = folder / "titles.tsv"
    titles.write_text(f"video_id\ttitle\n{EVIL}\t{EVIL_TITLE}\n")
    engine = InferenceEngine(
        tiny_model().eval(), torch.device("cpu"), "fp32", batch_size=8, workers=0
    )
    done = index_videos(folder / "library", engine, [videos], windows=Windows(2, 1), titles=titles)
    assert (done.added, dict(done.broken)) == (4, {})


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Run the server with a maximum upload size of 1 MB."""
    scratch = folder / "scratch"
    scratch.mkdir()
    arguments = (
        "serve", "--library", folder / "library", "--port", 0, "--max-upload", 1,
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
