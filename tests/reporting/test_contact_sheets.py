"""Contact sheets: frames, animation, and unreadable videos."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from crosspair.reporting import ContactSheet
from tests.conftest import VideoMaker


def test_frames_are_the_middle_two_seconds(sheet: ContactSheet, make_video: VideoMaker) -> None:
    tile = sheet.tiles[0]
    assert tile.frames.shape == (16, 64, 128, 3)
    first = make_video.numbers(tile.frames)[0]
    assert make_video.numbers(tile.frames) == [first + 4 * i for i in range(16)]
    assert abs(first - (150 - 61) / 2) <= 1


def test_animation_has_all_frames_at_normal_speed(sheet: ContactSheet) -> None:
    with Image.open(io.BytesIO(sheet.tiles[0].animation())) as animation:
        assert animation.format == "WEBP"
        assert getattr(animation, "n_frames", 1) == 16
        assert animation.size == (128, 64)
        animation.seek(1)
        animation.load()
        assert animation.info["duration"] == 133


def test_strip_frames_are_evenly_spaced(sheet: ContactSheet, make_video: VideoMaker) -> None:
    strip = np.asarray(sheet.tiles[0].strip(4))
    frames = np.stack([strip[:, i * 130 : i * 130 + 128] for i in range(4)])
    numbers = make_video.numbers(sheet.tiles[0].frames)
    assert make_video.numbers(frames) == [numbers[i] for i in (0, 5, 10, 15)]


def test_unreadable_video_is_a_grey_tile_with_an_error(sheet: ContactSheet) -> None:
    tile = sheet.tiles[2]
    assert "gone.mp4" in tile.error
    assert tile.frames.shape[0] == 1
    assert np.ptp(tile.frames.reshape(-1, 3), axis=0).max() == 0
