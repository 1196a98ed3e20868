"""Normalize and color-jitter batches of clips as tensors."""

from __future__ import annotations

import torch

MEAN, STD = 0.45, 0.225  # of every channel, as in SlowFast, so that its weights can be imported


def normalize(clips: torch.Tensor) -> torch.Tensor:
    """Convert uint8 clips to float, (x / 255 - `MEAN`) / `STD`; return float clips unchanged.

    Args:
        clips: (B, 3, T, H, W), uint8 or normalized float.

    Returns:
        (B, 3, T, H, W) float.
    """
    if clips.dtype != torch.uint8:
        return clips
    return clips.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)


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
