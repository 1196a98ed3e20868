"""Views: drawn once for all frames of a clip, always inside the frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip, ClipConfig
from crosspair.video.views import View, load_view, training_view

CONFIG = ClipConfig(size=32, frames=4, stride=4)
PAPER = ClipConfig()


def drawn(config: ClipConfig, count: int = 400) -> list[View]:
    generator = np.random.default_rng(0)
    return [training_view(generator, config) for _ in range(count)]


@given(st.integers(0, 2**32 - 1))
def test_every_view_lies_within_its_ranges(seed: int) -> None:
    config = replace(PAPER, color_jitter=0.4, hue=0.1, area=(0.2, 0.8), aspect=(0.5, 3))
    view = training_view(np.random.default_rng(seed), config)
    assert 128 <= view.short_side <= 170
    for position in (view.position, view.across, view.down):
        assert 0 <= position < 1
    assert all(0.6 <= factor <= 1.4 for factor in view.colors[:3])
    assert abs(view.colors[3]) <= 0.1 * 2 * math.pi
    assert 0.2 <= view.area <= 0.8
    assert 0.5 <= view.aspect <= 3
    before = training_view(np.random.default_rng(seed), PAPER)  # the paper's draws do not depend on the options
    assert replace(view, colors=before.colors, area=None, aspect=before.aspect) == before


def test_half_of_the_views_are_mirrored_unless_flip_is_off() -> None:
    assert {view.short_side for view in drawn(PAPER, 3000)} == set(range(128, 171))
    mirrored = np.mean([view.flip for view in drawn(PAPER)])
    assert 0.4 < mirrored < 0.6
    assert not any(view.flip for view in drawn(replace(PAPER, flip=False)))


def test_a_fraction_of_the_views_is_grey() -> None:
    views = drawn(replace(PAPER, color_jitter=0.4, grayscale=0.2))
    assert 0.1 < np.mean([view.colors[2] == 0 for view in views]) < 0.3


def gradient(index: int, width: int, height: int) -> np.ndarray:
    """Encode the column in red, the row in green and the frame in blue."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 4 * index
    return pixels


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, make_video) -> Clip:
    path = tmp_path_factory.mktemp("scene") / "a.mp4"
    return Clip(str(make_video(path, size=(160, 120), frames=60, content=gradient)))


@pytest.mark.parametrize("across", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("down", [0.0, 0.5, 1.0])
def test_the_crop_lies_where_the_view_says(scene: Clip, across: float, down: float) -> None:
    pixels = load_view(scene, View(0.0, short_side=48, across=across, down=down), CONFIG)
    # Frames are scaled to 64×48; the crop's middle is 16 from the border it touches.
    column = (16 + across * (64 - 32)) / 64 * 255
    row = (16 + down * (48 - 32)) / 48 * 255
    assert pixels[..., 0].mean() == pytest.approx(column, abs=6)
    assert pixels[..., 1].mean() == pytest.approx(row, abs=6)


@pytest.mark.parametrize(
    ("area", "aspect", "wide", "high"),
    [  # of frames of 160×120
        (0.25, 4 / 3, 80, 60),
        (0.25, 1.0, 69.3, 69.3),
        (0.48, 1 / 3, 40, 120),  # 55 × 166 does not fit
        (1.0, 4 / 3, 160, 120),
        (1.0, 1.0, 120, 120),
    ],
)
@pytest.mark.parametrize("along", [0.0, 0.5, 1.0])
def test_a_random_resized_crop_shows_its_region(
    scene: Clip, area: float, aspect: float, wide: float, high: float, along: float
) -> None:
    view = View(0.0, short_side=1, across=along, down=along, area=area, aspect=aspect)
    pixels = load_view(scene, view, CONFIG).astype(float)
    assert pixels.shape == (4, 32, 32, 3)
    for channel, axis, size, whole in ((0, 2, wide, 160), (1, 1, high, 120)):
        first = along * (whole - size)
        for position, at in ((0, first + size / 64), (-1, first + size - size / 64)):
            found = pixels[..., channel].take(position, axis=axis).mean()
            assert found == pytest.approx(255 * at / whole, abs=7)


@pytest.mark.parametrize("area", [None, (0.5, 0.5)])
def test_all_frames_are_cropped_alike_and_follow_each_other(scene: Clip, area: tuple[float, float] | None) -> None:
    view = training_view(np.random.default_rng(5), replace(CONFIG, area=area))
    pixels = load_view(scene, view, CONFIG).astype(int)
    assert np.abs(pixels[..., :2] - pixels[:1, ..., :2]).mean() < 3
    steps = np.diff(pixels[..., 2].mean(axis=(1, 2)))
    np.testing.assert_allclose(steps, 4 * CONFIG.stride, atol=3)


def test_a_mirrored_view_is_the_mirror_of_the_view(scene: Clip) -> None:
    view = View(0.5, short_side=40, across=0.3, down=0.7)
    mirrored = load_view(scene, replace(view, flip=True), CONFIG)
    np.testing.assert_array_equal(mirrored, load_view(scene, view, CONFIG)[:, :, ::-1])


@pytest.mark.parametrize("size", [(160, 96), (96, 160), (130, 98)])
def test_proportions_are_kept_whichever_side_is_short(
    tmp_path: Path, make_video: Callable[..., Path], size: tuple[int, int]
) -> None:
    width, height = size
    clip = Clip(str(make_video(tmp_path / "a.mp4", size=size, frames=20, content=gradient)))
    config = replace(CONFIG, frames=1)
    left, right = (load_view(clip, View(0.0, short_side=32, across=a, down=a), config) for a in (0.0, 1.0))
    # Each crop covers the whole short side and one end of the long side.
    short, long = (1, 0) if width > height else (0, 1)
    assert left[..., short].max() > 235
    assert left[..., short].min() < 20
    assert left[..., long].min() < 20
    assert right[..., long].max() > 235
    expected = 255 * min(size) / max(size)
    assert left[..., long].max() == pytest.approx(expected, abs=14)
