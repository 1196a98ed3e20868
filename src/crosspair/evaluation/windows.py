"""A video in windows: which seconds a row is about, and which clips it is the mean over."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from crosspair.config import Clip, ClipConfig
from crosspair.errors import CrosspairError, VideoError
from crosspair.video.decode import (
    REFERENCE_FPS,
    array_frames,
    clip_span,
    clip_times,
    read_frames,
    uniform_positions,
)
from crosspair.video.pixels import crops_along

TOGETHER = 8  # clips a passage
SPACING = 2.0  # s between the clips that stand for a window, at most


@dataclass(frozen=True)
class ClipPlan:
    """Which clips of a video to look at, and what to make of them.

    Attributes:
        row: of the video in its manifest.
        source: the file, or frames (T, H, W, 3) uint8 that play at 30 a second.
        times: (n, T) instants of each clip's frames, in s from the beginning of the source.
        spans: what each of the results is about: start and end in s of the file.
        clips: for each of them, the clips that it is the mean over.
        together: clips to decode in one passage.
    """

    row: int
    source: Clip | np.ndarray
    times: np.ndarray
    spans: Sequence[tuple[float | None, float | None]]
    clips: Sequence[range]
    together: int = TOGETHER


@dataclass(frozen=True)
class Windows:
    """How videos are cut.

    Attributes:
        length: of a window, in s: a whole number of strides.
        stride: from one window's beginning to that of the next, in s.

    Raises:
        CrosspairError: they are no such numbers.
    """

    length: float = 4.0
    stride: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.length < math.inf:
            raise CrosspairError(
                f"windows of {self.length:g} s every {self.stride:g} s: the stride is more than 0 "
                "and at most the window, so that nothing is left out between them"
            )
        strides = self.length / self.stride
        if abs(strides - round(strides)) > 1e-6 * strides:
            raise CrosspairError(
                f"windows of {self.length:g} s every {self.stride:g} s: a window must be a whole "
                f"number of strides, as {math.ceil(strides) * self.stride:g} s is"
            )

    def __str__(self) -> str:
        return f"windows of {self.length:g} s every {self.stride:g} s"

    def of(self, length: float) -> list[tuple[float, float]]:
        """Start and end of each window of a video of ``length`` s; all of it is in some window.

        The last one takes in what is left, up to half a stride more or less than the others.

        >>> Windows(4, 2).of(8.7), Windows(4, 2).of(1.0)
        ([(0, 4), (2, 6), (4, 8.7)], [(0, 1.0)])
        """
        edges, whole = self._edges(length)
        return [(edges[i], edges[i + whole]) for i in range(len(edges) - whole)]

    def plan(
        self, row: int, source: Clip | np.ndarray, length: float, config: ClipConfig
    ) -> ClipPlan:
        """Clips of a video of ``length`` s: evenly spread, each used by all windows that hold it.

        Args:
            row: of the video in its manifest.
            source: see `Plan`.
            length: of the part of the video to look at, in s.
            config: the form of clips.
        """
        dense = math.ceil(self.stride / SPACING - 1e-9)  # clips a stride
        begin = (source.start or 0.0) if isinstance(source, Clip) else 0.0
        spans = self.of(length)
        edges, whole = self._edges(length)
        middles = [
            low + (high - low) * (i + 0.5) / dense
            for low, high in pairwise(edges)
            for i in range(dense)
        ]
        return ClipPlan(
            row,
            source,
            _clips_around(np.array(middles), length, config),
            [(begin + start, begin + end) for start, end in spans],
            [range(i * dense, (i + whole) * dense) for i in range(len(spans))],
        )

    def _edges(self, length: float) -> tuple[list[float], int]:
        """Where strides begin and the last one ends, and how many strides a window is."""
        steps = max(1, round(length / self.stride))
        edges = [self.stride * step for step in range(steps)] + [length]
        return edges, min(round(self.length / self.stride), steps)


def whole_video_plan(row: int, frames: np.ndarray, clips: int, config: ClipConfig) -> ClipPlan:
    """Uniformly spread clips of frames in memory, all for one result (Section 4.2)."""
    length = len(frames) / REFERENCE_FPS
    times = [
        clip_times(position, length, config.frames, config.stride)
        for position in uniform_positions(clips)
    ]
    return ClipPlan(row, frames, np.stack(times), [(None, None)], [range(clips)])


def _clips_around(middles: np.ndarray, length: float, config: ClipConfig) -> np.ndarray:
    """(n, T) instants of clips as near to ``middles`` as the video's ends allow."""
    span = clip_span(config.frames, config.stride)
    starts = np.clip(middles - span / 2, 0, max(0.0, length - span))
    offsets = np.arange(config.frames) * config.stride / REFERENCE_FPS
    return np.minimum(starts[:, None] + offsets, length)


PREFETCH = 2  # batches for each process
STALLED = 120.0  # s for a passage: a decoder hangs
THUMBNAIL = 160  # pixels of the longer side


class DecoderExitError(Exception):
    """A decoding process ended: a video crashes its decoder or makes it hang, or memory ran out."""


@dataclass(frozen=True)
class DecodeJob:
    """Neighbouring clips of a video.

    Attributes:
        row: of the video in its manifest.
        first: which of the video's clips is the first of these.
        source: see `crosspair.evaluation.windows.ClipPlan`.
        times: (k, T) instants of their frames, in s from the beginning of the source.
    """

    row: int
    first: int
    source: Clip | np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class DecodedJob:
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


def split_into_jobs(plan: ClipPlan) -> Iterator[DecodeJob]:
    """The clips of a plan, a few at a time."""
    for first in range(0, len(plan.times), plan.together):
        yield DecodeJob(plan.row, first, plan.source, plan.times[first : first + plan.together])


def batch_jobs(jobs: Sequence[DecodeJob], clips: int) -> list[list[DecodeJob]]:
    """Passages in their order, in batches of at most ``clips`` clips where one alone is no more."""
    batches: list[list[DecodeJob]] = []
    room = 0
    for job in jobs:
        if len(job.times) > room:
            batches.append([])
            room = clips
        batches[-1].append(job)
        room -= len(job.times)
    return batches


def decode_jobs(
    batches: Sequence[list[DecodeJob]], config: ClipConfig, *, workers: int, thumbnails: bool
) -> Iterator[list[DecodedJob]]:
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
        ahead: deque[Future[list[DecodedJob]]] = deque()
        try:
            for batch in batches:
                ahead.append(pool.submit(_decode_here, batch, config, thumbnails))
                if len(ahead) == PREFETCH * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise DecoderExitError("a decoding process is gone") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _decoded(job: DecodeJob, config: ClipConfig, thumbnails: bool) -> DecodedJob:
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
        return DecodedJob(job.row, job.first, torch.empty(0), [], str(error))
    places = places.reshape(job.times.shape)  # (k, T)
    middle = config.frames // 2
    pictures = [_jpeg(frames[of_clip[middle]]) for of_clip in places] if thumbnails else []
    (crops,) = crops_along(torch.from_numpy(frames).permute(0, 3, 1, 2), 1, config.size)
    clips = crops[torch.from_numpy(places)]  # (k, T, 3, H, W)
    return DecodedJob(job.row, job.first, clips.transpose(1, 2).contiguous(), pictures)


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


def _decode_here(batch: list[DecodeJob], config: ClipConfig, thumbnails: bool) -> list[DecodedJob]:
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
