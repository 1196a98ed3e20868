"""Normalisation and colour jitter: against the formulas, pixel by pixel."""

from __future__ import annotations

import math

import torch

from crosspair.video.pixels import MEAN, STD, jitter_colors, normalize, rotate_hues


def clips(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 2, 4, 5), dtype=torch.uint8, generator=generator)


def test_uint8_is_normalised_by_the_formula() -> None:
    pixels = clips()
    normalized = normalize(pixels)
    torch.testing.assert_close(normalized, (pixels.float() / 255 - 0.45) / 0.225)
    assert normalize(normalized) is normalized
    torch.testing.assert_close(jitter_colors(normalized, torch.ones(2, 3)), normalized)


def test_brightness_scales_the_colours_of_its_own_clip() -> None:
    pixels = clips()
    factors = torch.tensor([[1.5, 1.0, 1.0], [0.5, 1.0, 1.0]])
    brighter = jitter_colors(normalize(pixels), factors)
    scaled = pixels.float() / 255 * torch.tensor([1.5, 0.5]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(brighter, (scaled - MEAN) / STD)


def test_contrast_spreads_the_pixels_about_the_clips_mean() -> None:
    pixels = normalize(clips())
    spread = jitter_colors(pixels, torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.0, 1.0]]))
    for clip, changed, factor in zip(pixels, spread, (2.0, 0.0), strict=True):
        torch.testing.assert_close(changed.mean(), clip.mean())
        torch.testing.assert_close(changed.std(), factor * clip.std())


def test_no_saturation_is_grey_and_keeps_the_mean_of_the_channels() -> None:
    pixels = normalize(clips())
    grey = jitter_colors(pixels, torch.tensor([[1.0, 1.0, 0.0]]).expand(2, 3))
    torch.testing.assert_close(grey, pixels.mean(dim=1, keepdim=True).expand_as(pixels))


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    still = normalize(clips()[:, :, :1].expand(2, 3, 6, 4, 5))
    changed = jitter_colors(still, torch.tensor([[1.3, 0.7, 1.2], [0.8, 1.1, 0.6]]))
    torch.testing.assert_close(changed, changed[:, :, :1].expand_as(changed))


def test_a_third_of_a_turn_exchanges_the_channels() -> None:
    pixels = normalize(clips())
    turned = rotate_hues(pixels, torch.tensor([2 * math.pi / 3, 0.0]))
    torch.testing.assert_close(turned[0], pixels[0, [2, 0, 1]])
    torch.testing.assert_close(turned[1], pixels[1])


def test_rotated_hues_keep_brightness_and_chroma() -> None:
    pixels = normalize(clips())
    turned = rotate_hues(pixels, torch.tensor([0.3, -1.0]))
    torch.testing.assert_close(turned.mean(dim=1), pixels.mean(dim=1))
    torch.testing.assert_close(turned.norm(dim=1), pixels.norm(dim=1))
    torch.testing.assert_close(rotate_hues(turned, torch.tensor([-0.3, 1.0])), pixels)
