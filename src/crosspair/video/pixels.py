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
    # Brightness scales the colours themselves, so the normalised values are shifted back for it.
    bright = (clips + MEAN / STD) * brightness - MEAN / STD
    middle = bright.mean(dim=(1, 2, 3, 4), keepdim=True)
    contrasted = middle + (bright - middle) * contrast
    grey = contrasted.mean(dim=1, keepdim=True)
    jittered: torch.Tensor = grey + (contrasted - grey) * saturation
    return jittered
