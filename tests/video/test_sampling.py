"""Frame times: in s, ascending, and inside the video."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.video.decode import clip_span, clip_times, uniform_positions

positions = st.floats(0, 1)
lengths = st.floats(0.01, 1e4)
counts = st.integers(1, 64)
strides = st.integers(1, 30)


@given(positions, lengths, counts, strides)
def test_times_ascend_within_the_video(position: float, length: float, frames: int, stride: int) -> None:
    times = clip_times(position, length, frames, stride)
    assert times.shape == (frames,)
    assert times.min() >= 0
    assert times.max() <= length
    assert (np.diff(times) >= 0).all()


@given(positions, st.floats(0, 100), st.integers(2, 64), strides)
def test_a_clip_that_fits_keeps_its_stride(position: float, room: float, frames: int, stride: int) -> None:
    times = clip_times(position, clip_span(frames, stride) + room, frames, stride)
    np.testing.assert_allclose(np.diff(times), stride / 30, atol=1e-9)
    assert times[0] == pytest.approx(position * room, abs=1e-9)


@given(positions, counts, strides)
def test_a_video_shorter_than_the_clip_repeats_its_end(position: float, frames: int, stride: int) -> None:
    length = clip_span(frames, stride) / 2
    expected = [min(i * stride / 30, length) for i in range(frames)]
    np.testing.assert_allclose(clip_times(position, length, frames, stride), expected)


def test_the_last_position_ends_with_the_video() -> None:
    assert clip_times(1.0, length=10.0, frames=8, stride=4)[-1] == pytest.approx(10.0)


def test_the_span_of_the_papers_clips() -> None:
    assert clip_span(frames=8, stride=4) == pytest.approx(28 / 30)
    assert clip_span(frames=16, stride=4) == pytest.approx(60 / 30)


@given(st.integers(2, 40))
def test_uniform_positions_span_the_video_in_equal_steps(clips: int) -> None:
    found = uniform_positions(clips)
    assert len(found) == clips
    assert (found[0], found[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(np.diff(found), 1 / (clips - 1))


def test_a_single_clip_lies_in_the_middle() -> None:
    assert uniform_positions(1) == [0.5]
