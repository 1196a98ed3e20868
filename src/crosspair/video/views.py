"""Which part of the frames a network sees: one draw for all frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from crosspair.config import Clip, ClipConfig
from crosspair.video.decode import clip_times, read_frames, uniform_positions


@dataclass(frozen=True)
class View:
    """A place in time and space, independent of any video's length and size.

    Attributes:
        position: where the clip lies in time, 0 to 1.
        short_side: what the frames' short side is scaled to, in pixels.
        across: where the crop lies along the width, 0 (left) to 1 (right).
        down: where the crop lies along the height, 0 (top) to 1 (bottom).
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
    """Draw a view for training (Section 4.2): time, scale, place, flip and colours.

    Args:
        generator: what to draw from.
        config: the ranges; the paper's code draws the short side from [128, 170] for 112.
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


def centre_view(position: float, config: ClipConfig) -> View:
    """The view of a test: the middle of the frames, at the test's scale."""
    return View(position, round(config.test_scale * config.size))


def load_view(clip: Clip, view: View, config: ClipConfig) -> np.ndarray:
    """Decode one view of one video.

    Args:
        clip: the file, and the part of it to look at.
        view: which instants and which part of the frames.
        config: size of the crop, number of frames and the distance between them.

    Returns:
        (frames, size, size, 3) uint8, RGB, before any change of colours.

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
    """Decode the frames of one view whole: scaled, but not cropped.

    Returns:
        (frames, H, W, 3) uint8, RGB; the shorter of H and W is the view's.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """
    return read_frames(
        clip,
        lambda length: clip_times(view.position, length, config.frames, config.stride),
        lambda width, height: resize_short_side(width, height, view.short_side),
    )


def crops_along(frames: torch.Tensor, crops: int, size: int) -> list[torch.Tensor]:
    """Squares along the frames' longer side, in the middle of the shorter one.

    Args:
        frames: (..., H, W).
        crops: how many, evenly spread from one end to the other: 3 for the test's left, centre and
            right (Section 4.2), 1 for the centre.
        size: of a square in pixels, at most the shorter of H and W. The size of training: a small
            network takes another one amiss, as its last maps, of 2×2 pixels, become 3×3.

    Returns:
        ``crops`` views of (..., size, size).
    """
    height, width = frames.shape[-2:]
    squares = []
    for along in uniform_positions(crops):
        across, down = (along, 0.5) if width >= height else (0.5, along)
        left, top = round(across * (width - size)), round(down * (height - size))
        squares.append(frames[..., top : top + size, left : left + size])
    return squares


def resize_short_side(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the given short side and the same proportions.

    >>> resize_short_side(320, 240, 128)
    (171, 128)
    """
    factor = short_side / min(width, height)
    return max(short_side, round(width * factor)), max(short_side, round(height * factor))


MEAN, STD = 0.45, 0.225  # of every channel, as in SlowFast, whose weights then fit


def normalize(clips: torch.Tensor) -> torch.Tensor:
    """Clips as the network takes them.

    Args:
        clips: (B, 3, T, H, W); uint8 is normalised, float is taken as normalised already.

    Returns:
        (B, 3, T, H, W) float.
    """
    if clips.dtype != torch.uint8:
        return clips
    return clips.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)


def jitter_colors(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation of whole clips.

    Args:
        clips: (B, 3, T, H, W) float, normalised.
        factors: (B, 3) for brightness, contrast and saturation; 1 changes nothing.

    Returns:
        (B, 3, T, H, W) float; not clamped, as the network needs no valid colours.
    """
    brightness, contrast, saturation = factors.T[:, :, None, None, None, None]
    grey = clips.mean(dim=1, keepdim=True)  # (B, 1, T, H, W)
    # One after the other, the three would pass over all values many times. What they do is linear:
    # a clip times its gain plus an offset, mixed with its own grey.
    gain = brightness * contrast
    # Brightness scales the colours themselves, so the normalised values are shifted back for it.
    shift = MEAN / STD
    middle = (grey.mean(dim=(2, 3, 4), keepdim=True) + shift) * brightness - shift
    offset = (brightness - 1) * shift * contrast + middle * (1 - contrast)
    return torch.addcmul(grey * (gain * (1 - saturation)) + offset, clips, gain * saturation)
