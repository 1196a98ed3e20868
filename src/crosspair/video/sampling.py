"""Which instants of a video make a clip: by time, so that a file's frame rate does not matter."""

from __future__ import annotations

import numpy as np

REFERENCE_FPS = 30.0  # the paper's strides count frames of 30 FPS video (Section 3.3)


def clip_span(frames: int, stride: int) -> float:
    """Seconds from the first to the last frame of a clip.

    >>> round(clip_span(frames=8, stride=4), 3)
    0.933
    """
    return (frames - 1) * stride / REFERENCE_FPS


def clip_times(position: float, length: float, frames: int, stride: int) -> np.ndarray:
    """Instants of one clip within a video of ``length`` seconds.

    Args:
        position: where the clip lies, 0 (at the beginning) to 1 (as late as it fits).
        length: what may be sampled from, in s.
        frames: frames in the clip (the paper: 8; 16 when fine-tuning).
        stride: distance between frames in 30ths of a second (the paper: 4).

    Returns:
        (frames,) float64, in s, ascending. A video shorter than the clip repeats its end.

    >>> clip_times(0.5, length=0.2, frames=3, stride=3)
    array([0. , 0.1, 0.2])
    """
    room = max(0.0, length - clip_span(frames, stride))
    times = position * room + np.arange(frames) * stride / REFERENCE_FPS
    return np.minimum(times, length)


def uniform_positions(clips: int) -> list[float]:
    """Positions of evenly spread clips, for features and tests (the paper: 10 clips a video).

    >>> uniform_positions(3), uniform_positions(1)
    ([0.0, 0.5, 1.0], [0.5])
    """
    return [0.5] if clips == 1 else [i / (clips - 1) for i in range(clips)]
