"""Normalize batches of clips as tensors and change their colors."""

from __future__ import annotations

import math

import torch

from crosspair.config import ClipConfig

MEAN, STD = 0.45, 0.225  # of every channel, as in SlowFast, so that its weights can be imported


Color = float | tuple[float, ...]  # of all channels, or of each


def normalize(clips: torch.Tensor, mean: Color = MEAN, std: Color = STD) -> torch.Tensor:
    """Convert clips to float, (x / 255 - mean) / std; by default, return float clips unchanged.

    Args:
        clips: (B, 3, T, H, W), uint8, or float normalized with `MEAN` and `STD`.
        mean: of the colours from 0 to 1.
        std: of the colours from 0 to 1.

    Returns:
        (B, 3, T, H, W) float.
    """
    is_uint8 = clips.dtype == torch.uint8
    if (mean, std) == (MEAN, STD):
        return clips.float().mul_(1 / (255 * STD)).sub_(MEAN / STD) if is_uint8 else clips
    means, stds = (torch.tensor(color, device=clips.device).view(-1, 1, 1, 1) for color in (mean, std))
    if is_uint8:
        return clips.float().mul_(1 / (255 * stds)).sub_(means / stds)
    return (clips * STD + MEAN - means) / stds


def preprocess_clips(clips: torch.Tensor, colors: torch.Tensor, config: ClipConfig, views: int = 1) -> torch.Tensor:
    """Normalise training clips, and change their colours if the recipe does.

    Args:
        clips: (B, 3, V·T, H, W) uint8, V views one after the other.
        colors: (B, V·4) changes of the views, see `crosspair.video.views.View`.
        config: which changes to make.
        views: V.

    Returns:
        (B·V, 3, T, H, W) float, normalized.
    """
    colors = separate_views(colors, views)
    pixels = normalize(separate_views(clips.transpose(1, 2), views).transpose(1, 2))
    if config.hue:
        pixels = rotate_hues(pixels, colors[:, 3])
    return jitter_colors(pixels, colors[:, :3]) if config.color_jitter or config.grayscale else pixels


def separate_views(values: torch.Tensor, views: int) -> torch.Tensor:
    """Turn V views that lie one after the other, (B, V·n, …), into rows (B·V, n, …), without a copy if possible."""
    return values.reshape(len(values) * views, values.shape[1] // views, *values.shape[2:])


def jitter_colors(clips: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation of whole clips.

    Args:
        clips: (B, 3, T, H, W) float, normalized.
        factors: (B, 3) factors of brightness, contrast and saturation; 1 changes nothing.

    Returns:
        (B, 3, T, H, W) float, not clamped to valid colours.
    """
    brightness, contrast, saturation = factors.T[:, :, None, None, None, None]
    grey = clips.mean(dim=1, keepdim=True)  # (B, 1, T, H, W)
    # The three changes are linear, so one pass suffices: gain * clip + offset, mixed with its grey.
    gain = brightness * contrast
    # Brightness scales the colours themselves; shift the normalized values to correct for that.
    shift = MEAN / STD
    middle = (grey.mean(dim=(2, 3, 4), keepdim=True) + shift) * brightness - shift
    offset = (brightness - 1) * shift * contrast + middle * (1 - contrast)
    return torch.addcmul(grey * (gain * (1 - saturation)) + offset, clips, gain * saturation)


def rotate_hues(clips: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the colours of whole clips about the axis of greys.

    Args:
        clips: (B, 3, T, H, W) float, normalized.
        angles: (B,) in rad; a third of a turn makes red green, green blue, and blue red.

    Returns:
        (B, 3, T, H, W) float, not clamped to valid colours.
    """
    angles = angles[:, None, None, None, None]
    grey = clips.mean(dim=1, keepdim=True)  # (B, 1, T, H, W)
    across = (clips.roll(1, dims=1) - clips.roll(-1, dims=1)) / math.sqrt(3)
    return grey + angles.cos() * (clips - grey) + angles.sin() * across
