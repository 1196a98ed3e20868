"""Frames that are in memory already, scaled as those of a file are."""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from crosspair.errors import VideoError
from crosspair.video.sampling import REFERENCE_FPS


def check_frames(frames: np.ndarray, name: str) -> None:
    """See that an array is a video.

    Raises:
        VideoError: it is not (T, H, W, 3) uint8, or holds nothing.
    """
    shaped = frames.ndim == 4 and frames.shape[-1] == 3 and frames.size > 0
    if not shaped or frames.dtype != np.uint8:
        raise VideoError(
            f"{name} is {frames.dtype} of shape {frames.shape}; a video in memory is uint8 of "
            "shape (frames, height, width, 3), RGB"
        )


def array_frames(
    frames: np.ndarray, instants: np.ndarray, shape: Callable[[int, int], tuple[int, int]]
) -> np.ndarray:
    """The frames on screen at given instants.

    Args:
        frames: (T, H, W, 3) uint8, RGB, 30 a second.
        instants: in s.
        shape: from (width, height) in pixels to the (width, height) to scale to.

    Returns:
        (instants, H', W', 3) uint8.
    """
    height, width = frames.shape[1:3]
    wanted = shape(width, height)
    reformatter = VideoReformatter()
    places = np.minimum(np.floor(instants * REFERENCE_FPS + 1e-6).astype(int), len(frames) - 1)
    scaled = [
        reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[place]), format="rgb24"),
            *wanted,
            format="rgb24",
            interpolation="BILINEAR",
        ).to_ndarray()
        for place in places
    ]
    return np.stack(scaled)
