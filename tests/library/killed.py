"""Work in a process of its own, which somebody may kill."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch

from crosspair.library import index as indexing
from crosspair.library import index_videos, load_engine


def run(library: Path, videos: Path, model: Path, begun: Connection) -> None:
    """Index, with a version of the table for every video."""
    torch.set_num_threads(1)
    indexing.COMMIT_SECONDS = 0.0
    of = load_engine(model, device="cpu", precision="fp32", workers=0)
    begun.send("begun")
    index_videos(library, of, [videos])
