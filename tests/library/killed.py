"""Functions that tests run in a process and kill."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch

from crosspair.config import ClipConfig
from crosspair.evaluation.windows import DecodeJob, decode_jobs
from crosspair.library import index as indexing
from crosspair.library import load_engine


def run(library: Path, videos: Path, model: Path, begun: Connection) -> None:
    """Index with one version of the table per video."""
    torch.set_num_threads(1)
    indexing.COMMIT_SECONDS = 0.0
    engine = load_engine(model, device="cpu", precision="fp32", workers=0)
    begun.send("begun")
    indexing.index_videos(library, engine, [videos])


def decode(begun: Connection) -> None:
    """Decode more than pipes hold in worker processes, and fetch only the first batch."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (8, 120, 160, 3), np.uint8)
    times = np.arange(8)[:, None] / 30  # 8 clips of one frame
    batches = [[DecodeJob(row, 0, noise, times)] for row in range(8)]
    decoded = decode_jobs(batches, ClipConfig(frames=1), workers=2, thumbnails=True)
    next(decoded)
    begun.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)
