"""Which clips of a video to encode, and which of them to average into one result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from crosspair.config import Clip, ClipConfig
from crosspair.errors import CrosspairError
from crosspair.video.decode import REFERENCE_FPS, clip_span, uniform_positions
from crosspair.video.views import DecodeJob

CLIPS_PER_JOB = 8  # of windows: more gain little, and leave a long video to a single worker
MIN_STRIDE = 0.01  # s
SPACING = 2.0  # s between the clips that represent a window, at most
KEY_FRAME_SPACING = 1.0  # s between the instants whose key frames represent a window, at most
KEY_FRAMES_PER_JOB = 32
KEY_FRAME_AGES: Mapping[str, float] = {"auto": 0.6, "keyframes": 1.2}
"""By `Sampling`: from an instant to its key frame, in lengths of a window, at most; slightly more than 1/2 and 1, as
key frames that are meant to be 2 s apart may be 2.002 s apart."""

Sampling = Literal["auto", "clips", "keyframes"]
"""What represents a window: clips of the model's format, or key frames, which take much less time to decode. "auto":
key frames if the model encodes single frames and each half of a window has a key frame."""

Span = tuple[float | None, float | None]


@dataclass(frozen=True)
class ClipPlan:
    """The clips of a video to encode.

    Attributes:
        row: Row of the video in its manifest.
        source: The file; or frames (T, H, W, 3) uint8 at 30 per second.
        spans: For each result, the start and end in s of the file that it describes; None for the file's own.
        groups: For each result, the indices of the clips that it averages.
        clips_per_job: Clips that are decoded together.
        times: (n, T) instants of the frames of each clip, in s from the start of the source. Or
        positions: (n,) positions of the clips in the source, 0 to 1.
        key_frame_age: Maximum age in s of a key frame, which replaces each frame; None: the frames themselves.
    """

    row: int
    source: Clip | np.ndarray
    spans: Sequence[Span]
    groups: Sequence[range]
    clips_per_job: int
    times: np.ndarray | None = None
    positions: tuple[float, ...] = ()
    key_frame_age: float | None = None

    def __len__(self) -> int:
        """Number of clips, n."""
        return len(self.positions if self.times is None else self.times)

    def jobs(self, config: ClipConfig, crops: int, thumbnails: bool) -> Iterator[DecodeJob]:
        """Split the clips into jobs of at most `clips_per_job` clips for worker processes."""
        middles = {group[len(group) // 2] for group in self.groups} if thumbnails else set()
        for first in range(0, len(self), self.clips_per_job):
            chosen = slice(first, first + self.clips_per_job)
            pictures = tuple(clip - first for clip in range(len(self))[chosen] if clip in middles)
            times = None if self.times is None else self.times[chosen]
            positions = self.positions[chosen]
            yield DecodeJob(self.row, first, self.source, config, times, positions, crops, pictures, self.key_frame_age)


def whole_video_plan(
    row: int, source: Clip | np.ndarray, clips: int, clips_per_job: int | None = None, *, average: bool = True
) -> ClipPlan:
    """Plan evenly spaced clips of a whole video, by default averaged (Section 4.2) and in one job."""
    span = (source.start, source.end) if isinstance(source, Clip) else (None, None)
    groups = [range(clips)] if average else [range(i, i + 1) for i in range(clips)]
    return ClipPlan(
        row, source, [span] * len(groups), groups, clips_per_job or clips, positions=tuple(uniform_positions(clips))
    )


@dataclass(frozen=True)
class Windows:
    """How videos are divided into overlapping windows."""

    length: float = 4.0
    """Length of a window, in s: a whole number of strides."""
    stride: float = 2.0
    """Distance between the starts of consecutive windows, in s."""

    def __post_init__(self) -> None:
        if not MIN_STRIDE <= self.stride <= self.length < math.inf:
            raise CrosspairError(f"{self}: the stride must be from {MIN_STRIDE} s to the length of a window")
        strides = self.length / self.stride
        if abs(strides - round(strides)) > 1e-6 * strides:
            raise CrosspairError(
                f"{self}: the length must be a multiple of the stride, for example "
                f"{math.ceil(strides) * self.stride:g} s"
            )

    def __str__(self) -> str:
        """Return length and stride as text, such as "windows of 4 s every 2 s"."""
        return f"windows of {self.length:g} s every {self.stride:g} s"

    def spans(self, duration: float) -> list[tuple[float, float]]:
        """Return start and end of each window of a video of `duration` s; a shorter video is one window.

        Every second lies in a window: the last one is up to half a stride longer or shorter than the others.

        >>> Windows(4, 2).spans(8.7), Windows(4, 2).spans(1.0)
        ([(0, 4), (2, 6), (4, 8.7)], [(0, 1.0)])
        """
        edges, strides = self._edges(duration)
        return [(edges[i], edges[i + strides]) for i in range(len(edges) - strides)]

    def plan(
        self,
        row: int,
        source: Clip | np.ndarray,
        duration: float,
        config: ClipConfig,
        clips_per_job: int = CLIPS_PER_JOB,
    ) -> ClipPlan:
        """Plan evenly spaced clips of a segment, at most 2 s apart, each averaged in all windows that contain it."""
        return self._plan(row, source, duration, config, clips_per_job, SPACING)

    def key_frame_plan(
        self, row: int, source: Clip, duration: float, config: ClipConfig, sampling: Sampling
    ) -> ClipPlan:
        """Plan evenly spaced instants of a segment, at most 1 s apart, each a clip of one key frame.

        Decoding fails where key frames are older than `KEY_FRAME_AGES` allow.
        """
        single = replace(config, frames=1)
        plan = self._plan(row, source, duration, single, KEY_FRAMES_PER_JOB, KEY_FRAME_SPACING)
        return replace(plan, key_frame_age=self.length * KEY_FRAME_AGES[sampling])

    def _plan(
        self,
        row: int,
        source: Clip | np.ndarray,
        duration: float,
        config: ClipConfig,
        clips_per_job: int,
        spacing: float,
    ) -> ClipPlan:
        per_stride = max(1, math.ceil(self.stride / spacing - 1e-9))  # clips
        start = (source.start or 0.0) if isinstance(source, Clip) else 0.0
        edges, strides = self._edges(duration)
        centers = [
            low + (high - low) * (i + 0.5) / per_stride for low, high in pairwise(edges) for i in range(per_stride)
        ]
        spans = [(start + begin, start + end) for begin, end in self.spans(duration)]
        groups = [range(i * per_stride, (i + strides) * per_stride) for i in range(len(spans))]
        times = _clips_around(np.array(centers), duration, config)
        return ClipPlan(row, source, spans, groups, clips_per_job, times)

    def _edges(self, duration: float) -> tuple[list[float], int]:
        """Return the starts of all strides and the end of the last, in s, and the number of strides per window."""
        steps = max(1, round(duration / self.stride))
        edges = [self.stride * step for step in range(steps)] + [duration]
        return edges, min(round(self.length / self.stride), steps)


def _clips_around(centers: np.ndarray, duration: float, config: ClipConfig) -> np.ndarray:
    """Return the frame times (n, T), in s, of clips centered as near to `centers` as the ends of the video allow."""
    span = clip_span(config.frames, config.stride)
    starts = np.clip(centers - span / 2, 0, max(0.0, duration - span))
    offsets = np.arange(config.frames) * config.stride / REFERENCE_FPS
    return np.minimum(starts[:, None] + offsets, duration)
