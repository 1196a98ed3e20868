"""Work in a process of its own, which somebody may kill."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from crosspair.config import ClipConfig
from crosspair.evaluation.windows import DecodeJob, decode_jobs
from crosspair.library import index_videos, load_engine
from crosspair.library import index as indexing


def run(library: Path, videos: Path, model: Path, begun: Connection) -> None:
    """Index, with a version of the table for every video."""
    torch.set_num_threads(1)
    indexing.COMMIT_SECONDS = 0.0
    of = load_engine(model, device="cpu", precision="fp32", workers=0)
    begun.send("begun")
    index_videos(library, of, [videos])


def decode(begun: Connection) -> None:
    """Let others decode more than pipes hold, and fetch no more than the first of it."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (8, 120, 160, 3), np.uint8)
    times = np.arange(8)[:, None] / 30  # 8 clips of one frame
    batches = [[DecodeJob(row, 0, noise, times)] for row in range(8)]
    decoded = decode_jobs(batches, ClipConfig(frames=1), workers=2, thumbnails=True)
    next(decoded)
    begun.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)
