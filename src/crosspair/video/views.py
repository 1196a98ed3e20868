"""Which part of the frames a network sees: one draw for all frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosspair.corpora.manifest import Clip
from crosspair.video.decode import read_frames
from crosspair.video.sampling import clip_times


@dataclass(frozen=True)
class View:
    """A place in time and space, independent of any video's length and size.

    Attributes:
        position: where the clip lies in time, 0 to 1.
        short_side: what the frames' short side is scaled to, in pixels.
        across: where the crop lies along the width, 0 (left) to 1 (right).
        down: where the crop lies along the height, 0 (top) to 1 (bottom).
        flip: whether to mirror left and right.
    """

    position: float
    short_side: int
    across: float = 0.5
    down: float = 0.5
    flip: bool = False


def training_view(
    generator: np.random.Generator, size: int, scale: tuple[float, float], flip: bool
) -> View:
    """Draw a view for training (Section 4.2; the scale jitter of two-stream networks).

    Args:
        generator: what to draw from.
        size: side of the crop, in pixels.
        scale: shortest and longest short side as multiples of ``size``; the paper's code draws
            from [128, 170] for 112 and [256, 340] for 224, that is (8/7, 1.52).
        flip: whether half of the views are mirrored; not where left and right have a meaning.
    """
    position, side, across, down, mirror = generator.random(5)
    low, high = round(scale[0] * size), round(scale[1] * size)
    short_side = low + int(side * (high - low + 1))
    return View(position, short_side, across, down, flip and mirror < 0.5)


def centre_view(position: float, size: int, scale: float) -> View:
    """The view of a test: the middle of frames scaled to ``scale * size`` pixels."""
    return View(position, round(scale * size))


def load_view(clip: Clip, view: View, size: int, frames: int, stride: int) -> np.ndarray:
    """Decode one view of one video.

    Args:
        clip: the file, and the part of it to look at.
        view: which instants and which part of the frames.
        size: side of the square crop, in pixels; at most ``view.short_side``.
        frames: frames to sample, 4/30 s apart at ``stride`` 4.
        stride: distance between frames in 30ths of a second.

    Returns:
        (frames, size, size, 3) uint8, RGB.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """
    pixels = read_frames(
        clip,
        lambda length: clip_times(view.position, length, frames, stride),
        lambda width, height: _scaled(width, height, view.short_side),
    )
    _, height, width, _ = pixels.shape
    top = round(view.down * (height - size))
    left = round(view.across * (width - size))
    crop = pixels[:, top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, :, ::-1] if view.flip else crop)


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the given short side and the same proportions.

    >>> _scaled(320, 240, 128)
    (171, 128)
    """
    factor = short_side / min(width, height)
    return max(short_side, round(width * factor)), max(short_side, round(height * factor))
