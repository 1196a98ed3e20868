"""Functions that tests run in a process and kill."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from crosspair.library import index as indexing
from crosspair.library import load_engine
from crosspair.library.store import library_lock


def run(library: Path, videos: Path, model: Path, begun: Connection) -> None:
    """Index with one version of the table per video."""
    torch.set_num_threads(1)
    indexing.COMMIT_SECONDS = 0.0
    engine = load_engine(model, device="cpu", precision="fp32", workers=0)
    begun.send("begun")
    indexing.index_videos(library, engine, [videos])


def lock(folder: Path, begun: Connection) -> None:
    """Hold the lock of the library in a folder until the process is killed."""
    with library_lock(folder / "library"):
        begun.send("begun")
        time.sleep(600)
