"""Choose and load a view of a video: one position, scale, crop and flip for all its frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosspair.config import Clip, ClipConfig
from crosspair.video.decode import clip_times, read_frames


@dataclass(frozen=True)
class View:
    """A region of a video in time and space, independent of the video's length and size.

    Attributes:
        position: position of the clip in time, 0 to 1.
        short_side: short side of the resized frames, in pixels.
        across: horizontal position of the crop, 0 (left) to 1 (right).
        down: vertical position of the crop, 0 (top) to 1 (bottom).
        flip: whether to mirror left and right.
        colors: factors of brightness, contrast and saturation, applied on the training device.
    """

    position: float
    short_side: int
    across: float = 0.5
    down: float = 0.5
    flip: bool = False
    colors: tuple[float, float, float] = (1.0, 1.0, 1.0)


def training_view(generator: np.random.Generator, config: ClipConfig) -> View:
    """Draw a random view for training (Section 4.2): time, scale, crop, flip and colours.

    Args:
        generator: source of randomness.
        config: ranges; the paper's code draws the short side from [128, 170] for size 112.
    """
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
    """Decode and crop one view of a video.

    Args:
        clip: the file and the segment to read.
        view: time and region of the frames.
        config: crop size, number of frames and stride.

    Returns:
        (frames, size, size, 3) uint8, RGB, without the view's colour changes.

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
    """Decode and resize the frames of one view without cropping them.

    Returns:
        (frames, H, W, 3) uint8, RGB; the shorter of H and W is ``view.short_side``.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """
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
