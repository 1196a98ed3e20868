"""Many clips of many videos, decoded by worker processes: a few neighbouring clips in one passage.

A passage seeks once and decodes what lies between its clips. Going through a whole video at once
gains little over eight clips a passage, and would leave a single long video to a single worker.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from crosspair.clip import Clip
from crosspair.config import ClipConfig
from crosspair.errors import VideoError
from crosspair.library.frames import array_frames
from crosspair.library.windows import Plan
from crosspair.video import crops_along, read_frames

PREFETCH = 2  # batches for each process
STALLED = 120.0  # s for a passage: a decoder hangs
THUMBNAIL = 160  # pixels of the longer side


class DecodingEndedError(Exception):
    """A decoding process ended: a video crashes its decoder or makes it hang, or memory ran out."""


@dataclass(frozen=True)
class Passage:
    """Neighbouring clips of a video.

    Attributes:
        row: of the video in its manifest.
        first: which of the video's clips is the first of these.
        source: see `crosspair.library.windows.Plan`.
        times: (k, T) instants of their frames, in s from the beginning of the source.
    """

    row: int
    first: int
    source: Clip | np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Decoded:
    """What came of a passage.

    Attributes:
        row, first: see `Passage`.
        clips: (k, 3, T, H, W) uint8, RGB, the centre of the frames; none where it failed.
        thumbnails: the middle frame of each clip, as JPEG, where they were asked for.
        failure: what is wrong, or empty.
    """

    row: int
    first: int
    clips: torch.Tensor
    thumbnails: list[bytes]
    failure: str = ""


def passages(plan: Plan) -> Iterator[Passage]:
    """The clips of a plan, a few at a time."""
    for first in range(0, len(plan.times), plan.together):
        yield Passage(plan.row, first, plan.source, plan.times[first : first + plan.together])


def batched(jobs: Sequence[Passage], clips: int) -> list[list[Passage]]:
    """Passages in their order, in batches of at most ``clips`` clips where one alone is no more."""
    batches: list[list[Passage]] = []
    room = 0
    for job in jobs:
        if len(job.times) > room:
            batches.append([])
            room = clips
        batches[-1].append(job)
        room -= len(job.times)
    return batches


def decode_passages(
    batches: Sequence[list[Passage]], config: ClipConfig, *, workers: int, thumbnails: bool
) -> Iterator[list[Decoded]]:
    """Decode batches of passages in their order.

    Args:
        batches: see `batched`.
        config: the form of clips.
        workers: decoding processes.
        thumbnails: whether to make them.

    Raises:
        DecodingEndedError: a process ended, or was at one passage for too long.
    """
    if not workers:
        for batch in batches:
            yield [_decoded(job, config, thumbnails) for job in batch]
        return
    # No DataLoader: where one of its processes ends, PyTorch raises an exception wherever the
    # program happens to be.
    with ProcessPoolExecutor(workers, initializer=_begin_worker) as pool:
        ahead: deque[Future[list[Decoded]]] = deque()
        try:
            for batch in batches:
                ahead.append(pool.submit(_decode_here, batch, config, thumbnails))
                if len(ahead) == PREFETCH * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise DecodingEndedError("a decoding process is gone") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _decoded(job: Passage, config: ClipConfig, thumbnails: bool) -> Decoded:
    # Where windows are close, clips overlap: a frame is wanted once.
    wanted, places = np.unique(job.times, return_inverse=True)
    side = round(config.test_scale * config.size)

    def shape(width: int, height: int) -> tuple[int, int]:
        factor = side / min(width, height)
        return max(side, round(width * factor)), max(side, round(height * factor))

    try:
        if isinstance(job.source, Clip):
            frames = read_frames(job.source, lambda length: np.minimum(wanted, length), shape)
        else:
            frames = array_frames(job.source, wanted, shape)
    except VideoError as error:
        return Decoded(job.row, job.first, torch.empty(0), [], str(error))
    places = places.reshape(job.times.shape)  # (k, T)
    middle = config.frames // 2
    pictures = [_jpeg(frames[of_clip[middle]]) for of_clip in places] if thumbnails else []
    (crops,) = crops_along(torch.from_numpy(frames).permute(0, 3, 1, 2), 1, config.size)
    clips = crops[torch.from_numpy(places)]  # (k, T, 3, H, W)
    return Decoded(job.row, job.first, clips.transpose(1, 2).contiguous(), pictures)


def _jpeg(frame: np.ndarray) -> bytes:
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The system ends a process that is at one passage for too long, however deep in the decoder.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Not that of the program where a server forks its processes, which ends with it, too.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _decode_here(batch: list[Passage], config: ClipConfig, thumbnails: bool) -> list[Decoded]:
    decoded = []
    for job in batch:
        signal.setitimer(signal.ITIMER_REAL, STALLED)
        decoded.append(_decoded(job, config, thumbnails))
    signal.setitimer(signal.ITIMER_REAL, 0)
    return decoded


def _end_with(parent: int) -> None:
    """End this process once its parent was killed: pictures that nobody fetches would hold up its
    end for ever, and a gigabyte with it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
