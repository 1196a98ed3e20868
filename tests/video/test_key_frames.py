"""Key frames are read at a player's times, exactly as other frames, or not at all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from crosspair.config import Clip, ClipConfig
from crosspair.errors import InvalidVideoError
from crosspair.video.decode import read_frames
from crosspair.video.views import DecodeJob, decode_job, resize_short_side
from tests.video.test_real_files import remux

# A key frame every 12 frames: at 0, 0.4, 0.8, … s.
EXACT = {"x264-params": "scenecut=0:keyint=12:min-keyint=12"}
CONFIG = ClipConfig(size=32, frames=1)


def read(path: Path, times: list[float], age: float | None = 0.5, segment: tuple[float | None, ...] = ()) -> np.ndarray:
    return read_frames(Clip(str(path), *segment), lambda _: times, lambda w, h: (w, h), age)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv", ".mpg"])
@pytest.mark.parametrize("open_gop", [False, True])
def test_the_last_key_frame_before_each_time(tmp_path: Path, make_video, suffix: str, open_gop: bool) -> None:
    options = {"x264-params": f"{EXACT['x264-params']}:open-gop={int(open_gop)}"}
    codec = "libx264"
    if suffix == ".mpg":
        codec, options = "mpeg4", {"sc_threshold": "1000000000"}
    path = make_video(tmp_path / f"a{suffix}", frames=120, b_frames=2, codec=codec, options=options)
    times = [0, 0.35, 0.41, 0.79, 1.65, 1.9, 3.9]
    keys = [0, 0, 12, 12, 48, 48, 108]
    pixels = read(path, times)
    assert make_video.numbers(pixels) == keys
    assert (pixels == read(path, [key / 30 + 1e-3 for key in keys], None)).all()
    assert make_video.numbers(read(path, [2.5, 3.0])) == [72, 84]
    with pytest.raises(InvalidVideoError):
        read(path, times, 0.2)


def test_a_late_picture_and_a_segment(tmp_path: Path, make_video) -> None:
    source = make_video(tmp_path / "a.mp4", frames=120, b_frames=2, options=EXACT)
    late = remux(source, tmp_path / "late.mkv", delay=1500, sound=6)
    assert make_video.numbers(read(late, [1.2, 1.6, 1.95])) == [0, 0, 12]
    for path, start in ((source, 0.5), (late, 2.0)):  # the key frame of frame 12 precedes the segment
        assert make_video.numbers(read(path, [0, 0.28, 0.31, 0.9], 0.5, (start, None))) == [24, 24, 24, 36]
        assert make_video.numbers(read(path, [0.1], 0.5, (start, start + 0.31))) == [24]
        with pytest.raises(InvalidVideoError):
            read(path, [0.1], 0.5, (start, start + 0.29))
    edited = remux(source, tmp_path / "cut.ts", skip=11)  # begins between key frames
    (key,), (shown,) = (make_video.numbers(read(edited, [1.5], age)) for age in (0.5, None))
    assert key == shown // 12 * 12


def test_files_without_suitable_key_frames(tmp_path: Path, make_video) -> None:
    refresh = {"x264-params": "intra-refresh=1:keyint=30", "preset": "veryfast"}

    def content(index: int, width: int, height: int) -> np.ndarray:
        picture = np.full((height, width, 3), (220, 30, 30), np.uint8)
        picture[height // 3 : -height // 3] = make_video.barcode(index, width, height)[0]
        return picture

    intra = make_video(
        tmp_path / "a.ts", frames=250, gop=30, codec="libx264", size=(160, 120), content=content, options=refresh
    )
    with av.open(str(intra)) as file:
        assert sum(packet.is_keyframe for packet in file.demux(video=0)) > 5
    for path in (
        intra,
        make_video(tmp_path / "sparse.mp4", frames=120, gop=250, options={"x264-params": "scenecut=0"}),
        make_video(tmp_path / "guessed.avi", frames=120, b_frames=2),
    ):
        assert len(read(path, [2.0, 3.0], None)) == 2
        with pytest.raises(InvalidVideoError):
            read(path, [2.0, 3.0], 1.5)


def test_cut_and_damaged_files(tmp_path: Path, make_video) -> None:
    whole = make_video(tmp_path / "a.mkv", frames=120, options=EXACT).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 6 // 10])
    assert make_video.numbers(read(cut, [1.0], 9)) == [24]
    for age in (None, 9):
        with pytest.raises(InvalidVideoError):
            read(cut, [1.0, 3.9], age)


def test_repeated_key_frames_are_returned_once(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mp4", frames=120, options=EXACT)
    times = np.array([[0.1], [0.3], [0.5], [1.3], [1.5]])
    job = DecodeJob(0, 0, Clip(str(path)), CONFIG, times, thumbnails=(1, 3), key_frame_age=0.5)
    decoded = decode_job(job)
    assert decoded.repeats.tolist() == [0, 0, 1, 2, 2]
    assert [bool(picture) for picture in decoded.thumbnails] == [False, True, False, True, False]
    side = round(CONFIG.test_scale * CONFIG.size)
    frames = read_frames(Clip(str(path)), lambda _: [0, 0.4, 1.2], lambda w, h: resize_short_side(w, h, side))
    left = round((frames.shape[2] - 32) / 2)
    assert decoded.clips.shape == (1, 3, 1, 32, 32, 3)
    top = round((frames.shape[1] - 32) / 2)
    assert (decoded.clips[0, :, 0] == frames[:, top : top + 32, left : left + 32]).all()
