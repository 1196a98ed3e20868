"""Replacements for `crosspair.video.jobs.decode_job` that fail for one video, and a process that a test kills."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from crosspair.config import Clip, ClipConfig
from crosspair.video.jobs import DecodedClips, DecodeJob, decode_job
from crosspair.workers import map_isolated


def _is_third(job: DecodeJob) -> bool:
    return isinstance(job.source, Clip) and job.source.path.endswith("3.mp4")


def crash(job: DecodeJob) -> DecodedClips:
    if _is_third(job):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_job(job)


def hang(job: DecodeJob) -> DecodedClips:
    if _is_third(job):
        time.sleep(600)
    return decode_job(job)


def exhaust_memory(job: DecodeJob) -> DecodedClips:
    if _is_third(job):
        np.ones(2**34, np.uint8)  # 16 GiB, above the limit
    return decode_job(job)


def fail_in_second_job(job: DecodeJob) -> DecodedClips:
    if job.first == 2:
        return DecodedClips(np.empty(0, np.uint8), failure="4.mp4: damaged")
    return decode_job(job)


def decode_until_killed(connection: Connection) -> None:
    """Decode more than pipes hold, and fetch only the first result."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (8, 120, 160, 3), np.uint8)
    config = ClipConfig(frames=1)
    jobs = [DecodeJob(row, 0, noise, config, positions=(0.0,) * 8, thumbnails=True) for row in range(8)]
    results = map_isolated(decode_job, jobs, timeout=60, workers=2, in_order=True)
    next(results)
    connection.send(_grandchildren())
    time.sleep(600)


def _grandchildren() -> list[int]:
    """Workers are children of the fork server, a child of this process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.append((int(status.parent.name), int(fields[1])))
    children = {pid for pid, parent in found if parent == os.getpid()}
    return [pid for pid, parent in found if parent in children]
