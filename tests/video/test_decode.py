"""Decoding: the frames shown at given times, or a `VideoError`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip
from crosspair.errors import InvalidVideoError, VideoStatus
from crosspair.video import decode
from crosspair.video.decode import clip_span, clip_times, read_frames, uniform_positions

NTSC = Fraction(30000, 1001)


def numbers(make_video, clip: Clip, instants) -> list[int]:
    """Return the numbers of the frames shown at times from the beginning of the clip, in s."""
    times = instants if callable(instants) else lambda _: instants
    return make_video.numbers(read_frames(clip, times, lambda w, h: (w, h)))


# --- frame times --------------------------------------------------------------------------------

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


@given(st.integers(2, 40))
def test_uniform_positions_span_the_video_in_equal_steps(clips: int) -> None:
    assert uniform_positions(1) == [0.5]
    found = uniform_positions(clips)
    assert len(found) == clips
    assert (found[0], found[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(np.diff(found), 1 / (clips - 1))


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv"])
@pytest.mark.parametrize("fps", [24, 25, NTSC, 50, 60], ids=str)
def test_sampled_times_do_not_depend_on_the_frame_rate(
    tmp_path: Path, make_video, suffix: str, fps: Fraction | int
) -> None:
    path = make_video(tmp_path / f"a{suffix}", fps=fps, frames=int(2 * fps))
    wanted = clip_times(0.3, 2.0, frames=8, stride=4)
    shown = np.array(numbers(make_video, Clip(str(path)), wanted)) / float(fps)
    tick = decode.TICK
    assert (shown <= wanted + tick).all()
    assert (wanted < shown + 1 / float(fps) + tick).all()


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv"])
def test_every_fourth_frame_of_a_30_fps_file_is_exactly_that(tmp_path: Path, make_video, suffix: str) -> None:
    path = make_video(tmp_path / f"a{suffix}", frames=100)
    for first in (0, 1, 2, 31, 32, 33, 64):
        instants = first / 30 + np.arange(8) * 4 / 30
        found = numbers(make_video, Clip(str(path)), instants)
        assert found == [first + 4 * i for i in range(8)]


ENCODINGS = {
    "h264-short-gop": (".mp4", {"gop": 6}),
    "h264-long-gop": (".mp4", {"gop": 250}),
    "h264-b-frames": (".mp4", {"gop": 30, "b_frames": 3}),
    "h264-open-gop": (".mkv", {"gop": 15, "b_frames": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}}),
    "mpeg4-avi": (".avi", {"gop": 12}),
    "mpeg4-avi-long-gop": (".avi", {"gop": 250}),
    "mpeg4-avi-b-frames": (".avi", {"gop": 30, "b_frames": 2}),
    "vp9-webm": (".webm", {"gop": 20}),
    "vp9-webm-long-gop": (".webm", {"gop": 250}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_seeking_gives_the_frames_that_decoding_from_the_beginning_gives(
    tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    suffix, options = ENCODINGS[encoding]
    path = Clip(str(make_video(tmp_path / f"a{suffix}", frames=120, **options)))
    starts = [1.0, 1.49, 2.0, 2.51, 3.3, 3.95]
    # The last clip exceeds the end, where the last frame is repeated.
    plans = [start + np.arange(8) * 2 / 30 for start in starts]
    seeking = [numbers(make_video, path, np.minimum(plan, 4.0)) for plan in plans]
    monkeypatch.setattr(decode, "SEEK_FROM", float("inf"))
    assert seeking == [numbers(make_video, path, np.minimum(plan, 4.0)) for plan in plans]
    # AVI stores no timestamps: with B-frames, the guessed times are one frame late.
    first = 29 if encoding == "mpeg4-avi-b-frames" else 30
    assert seeking[0] == list(range(first, first + 16, 2))


def test_seeking_decodes_from_the_nearest_keyframe(tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Clip(str(make_video(tmp_path / "a.mp4", frames=200, gop=10)))
    decoded: list[float] = []
    timed = decode._timed_frames

    def counting(*args):
        for seconds, frame in timed(*args):
            decoded.append(seconds)
            yield seconds, frame

    monkeypatch.setattr(decode, "_timed_frames", counting)
    assert numbers(make_video, path, [5.0, 5.1]) == [150, 153]
    assert min(decoded) >= 5.0 - 10 / 30
    assert max(decoded) <= 5.1 + 2 / 30


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_times_out_of_order_are_sorted(jumps: list[int]) -> None:
    """A time is at most three frames late, as with packed B-frames."""
    late = sorted(range(len(jumps)), key=lambda frame: (frame + jumps[frame], frame))
    ordered = list(decode._sort_times((float(time), f"frame {n}") for n, time in enumerate(late)))
    assert ordered == [(float(n), f"frame {n}") for n in range(len(jumps))]


@pytest.mark.parametrize(("frames", "expected"), [(10, [0, 4, 8, 9, 9, 9, 9, 9]), (1, [0] * 8)])
def test_a_video_shorter_than_the_clip_repeats_its_last_frame(
    tmp_path: Path, make_video, frames: int, expected: list[int]
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=frames)
    assert numbers(make_video, Clip(str(path), None, 99.0), lambda n: clip_times(0.5, n, 8, 4)) == expected


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
def test_a_slide_show_at_one_frame_per_second_is_not_cut(tmp_path: Path, make_video, suffix: str) -> None:
    path = make_video(tmp_path / f"a{suffix}", fps=1, frames=4)
    assert numbers(make_video, Clip(str(path)), [0.5, 1.5, 3.2, 4.0]) == [0, 1, 3, 3]


def test_a_video_whose_last_frame_lasts_for_seconds_is_not_cut(tmp_path: Path, make_video) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for index, tick in enumerate([0, 1, 2, 60]):
            pixels = np.full((64, 128, 3), 60 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base, frame.duration = tick, Fraction(1, 30), 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(Clip(str(path)), lambda _: [0.0, 0.5, 1.9, 2.0], lambda w, h: (w, h))
    assert [round(level / 60) for level in frames.mean(axis=(1, 2, 3))] == [0, 2, 2, 3]


# --- segments -----------------------------------------------------------------------------------


def test_a_clip_begins_and_ends_where_it_says(tmp_path: Path, make_video) -> None:
    path = str(make_video(tmp_path / "a.mp4", frames=120))
    found = numbers(make_video, Clip(path, 1.0, 2.0), lambda length: [0.0, length / 2, length])
    assert found == [30, 45, 59]


def test_a_segment_has_no_frame_after_its_end(tmp_path: Path, make_video) -> None:
    path = str(make_video(tmp_path / "a.mp4", frames=50, fps=25))

    def instants(length: float) -> np.ndarray:
        return clip_times(0, length, frames=5, stride=4)

    assert numbers(make_video, Clip(path, 0.0, 0.4), instants) == [0, 3, 6, 9, 9]
    assert numbers(make_video, Clip(path, 0.4, 0.401), instants) == [10] * 5
    assert numbers(make_video, Clip(path, 1.6), instants) == [40, 43, 46, 49, 49]


@pytest.mark.parametrize("start", [2.0, 7.5])
def test_a_start_at_or_after_the_end_is_an_error(tmp_path: Path, make_video, start: float) -> None:
    path = str(make_video(tmp_path / "a.mp4", frames=60))
    with pytest.raises(InvalidVideoError, match=f"a.mp4.*{start:g} s") as caught:
        read_frames(Clip(path, start), lambda _: [0.0], lambda w, h: (w, h))
    assert caught.value.kind is VideoStatus.OUTSIDE


# --- pixels -------------------------------------------------------------------------------------


def test_colours_are_red_green_blue(tmp_path: Path, make_video) -> None:
    colour = np.array([200, 100, 30], np.uint8)
    path = make_video(tmp_path / "a.mp4", frames=3, content=lambda _, w, h: np.broadcast_to(colour, (h, w, 3)).copy())
    frames = read_frames(Clip(str(path)), lambda _: [0.0], lambda w, h: (w, h))
    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), colour, atol=6)
