"""A video in windows: which seconds a row is about, and which clips it is the mean over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from crosspair.clip import Clip
from crosspair.config import ClipConfig
from crosspair.errors import CrosspairError
from crosspair.video.sampling import REFERENCE_FPS, clip_span, clip_times, uniform_positions

TOGETHER = 8  # clips a passage
SPACING = 2.0  # s between the clips that stand for a window, at most


@dataclass(frozen=True)
class Plan:
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

    def plan(self, row: int, source: Clip | np.ndarray, length: float, config: ClipConfig) -> Plan:
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
        return Plan(
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


def whole_plan(row: int, frames: np.ndarray, clips: int, config: ClipConfig) -> Plan:
    """Uniformly spread clips of frames in memory, all for one result (Section 4.2)."""
    length = len(frames) / REFERENCE_FPS
    times = [
        clip_times(position, length, config.frames, config.stride)
        for position in uniform_positions(clips)
    ]
    return Plan(row, frames, np.stack(times), [(None, None)], [range(clips)])


def _clips_around(middles: np.ndarray, length: float, config: ClipConfig) -> np.ndarray:
    """(n, T) instants of clips as near to ``middles`` as the video's ends allow."""
    span = clip_span(config.frames, config.stride)
    starts = np.clip(middles - span / 2, 0, max(0.0, length - span))
    offsets = np.arange(config.frames) * config.stride / REFERENCE_FPS
    return np.minimum(starts[:, None] + offsets, length)
