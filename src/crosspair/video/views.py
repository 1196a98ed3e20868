"""Choose and load a view of a video: one position, scale, crop and flip for all its frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosspair.config import Clip, ClipConfig
from crosspair.video.decode import clip_times, read_frames


@dataclass(frozen=True)
class View:
    """A region of a video in time and space, independent of the video's length and size."""

    position: float  # of the clip in time, 0 to 1
    short_side: int  # of the resized frames, in pixels
    across: float = 0.5  # horizontal position of the crop, 0 (left) to 1 (right)
    down: float = 0.5  # vertical position of the crop, 0 (top) to 1 (bottom)
    flip: bool = False  # whether to mirror left and right
    colors: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of brightness, contrast and saturation


def training_view(generator: np.random.Generator, config: ClipConfig) -> View:
    """Draw a random view for training (Section 4.2); for size 112, the paper's short sides are 128 to 170."""
    position, side, across, down, mirror = generator.random(5)
    low, high = round(config.scale[0] * config.size), round(config.scale[1] * config.size)
    brightness, contrast, saturation = 1 + config.color_jitter * generator.uniform(-1, 1, 3)
    return View(
        position=position,
        short_side=low + int(side * (high - low + 1)),
        across=across,
        down=down,
        flip=config.flip and mirror < 0.5,
        colors=(brightness, contrast, saturation),
    )


def load_view(clip: Clip, view: View, config: ClipConfig) -> np.ndarray:
    """Decode and crop one view of a video, without its colour changes: (frames, size, size, 3) uint8, RGB.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """
    pixels = load_frames(clip, view, config)
    _, height, width, _ = pixels.shape
    size = config.size
    top = round(view.down * (height - size))
    left = round(view.across * (width - size))
    crop = pixels[:, top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, :, ::-1] if view.flip else crop)


def load_frames(clip: Clip, view: View, config: ClipConfig) -> np.ndarray:
    """Decode the frames (T, H, W, 3) of one view; the shorter of H and W is ``view.short_side``."""
    return read_frames(
        clip,
        lambda length: clip_times(view.position, length, config.frames, config.stride),
        lambda width, height: resize_short_side(width, height, view.short_side),
    )


def resize_short_side(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the (width, height) with the given short side and the same proportions.

    >>> resize_short_side(320, 240, 128)
    (171, 128)
    """
    factor = short_side / min(width, height)
    return max(short_side, round(width * factor)), max(short_side, round(height * factor))
