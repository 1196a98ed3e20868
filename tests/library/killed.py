"""Functions that tests run in a process and kill."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch

from crosspair.library import index as indexing
from crosspair.library import load_engine


def run(library: Path, videos: Path, model: Path, begun: Connection) -> None:
    """Index with one version of the table per video."""
    torch.set_num_threads(1)
    indexing.COMMIT_SECONDS = 0.0
    engine = load_engine(model, device="cpu", precision="fp32", workers=0)
    begun.send("begun")
    indexing.index_videos(library, engine, [videos])
