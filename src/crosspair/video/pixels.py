"""Pixels on the training device: colour jitter, and uint8 to the network's normalised floats."""

from __future__ import annotations

import torch

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
