"""Replacements for `crosspair.video.views.decode_job` that fail for one video; run in workers."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from crosspair.config import Clip
from crosspair.video.views import DecodedClips, DecodeJob, decode_job


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
