"""Transcoding: same frames at the same times, resized and upright."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from crosspair.config import Clip
from crosspair.corpora.transcode import AVX2, TranscodeSettings, _instructions, transcode
from crosspair.errors import ManifestError, VideoError
from crosspair.video.decode import clip_times, probe, read_frames

NTSC = Fraction(30000, 1001)
SMALL = TranscodeSettings(short_side=32)


def prepared(clip: Clip, settings: TranscodeSettings = SMALL) -> Clip:
    path = Path(clip.path).with_name("prepared.mp4")
    path.write_bytes(transcode(clip, settings))
    return Clip(str(path))


def numbers(make_video: Any, clip: Clip, instants: Sequence[float] | np.ndarray) -> list[int]:
    found: list[int] = make_video.numbers(read_frames(clip, lambda _: instants, lambda w, h: (w, h)))
    return found


def boxes(content: bytes) -> list[bytes]:
    """The kinds of an MP4's outermost boxes, in order."""
    found, at = [], 0
    while at < len(content):
        found.append(content[at + 4 : at + 8])
        at += int.from_bytes(content[at : at + 4], "big")
    return found


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
@pytest.mark.parametrize("fps", [25, NTSC, 60], ids=str)
def test_frames_at_all_times_equal_the_source(tmp_path: Path, make_video, suffix: str, fps: Fraction | int) -> None:
    source = Clip(str(make_video(tmp_path / f"a{suffix}", fps=fps, frames=int(2 * fps))))
    small = prepared(source)
    for position in (0.0, 0.37, 1.0):
        wanted = clip_times(position, probe(source.path).duration, frames=8, stride=4)
        assert numbers(make_video, small, wanted) == numbers(make_video, source, wanted)
    assert probe(small.path).duration == pytest.approx(probe(source.path).duration, abs=1e-4)
    assert probe(small.path).frames == probe(source.path).frames


@pytest.mark.parametrize("fps", [24, 25, 30, NTSC, 60], ids=str)
def test_frames_at_a_constant_rate(tmp_path: Path, make_video, fps: Fraction | int) -> None:
    source = Clip(str(make_video(tmp_path / "a.mp4", fps=fps, frames=int(2 * fps))))
    small = prepared(source, TranscodeSettings(short_side=32, fps=30))
    wanted = np.arange(1, 59) / 30
    assert numbers(make_video, small, wanted) == numbers(make_video, source, wanted)
    assert probe(small.path).fps == pytest.approx(30, rel=0.02)
    assert probe(small.path).duration == pytest.approx(probe(source.path).duration, abs=1e-4)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (1.31, None), (0.02, 0.9), (2.5, 9.0)])
def test_a_segment_is_cut(tmp_path: Path, make_video, suffix: str, start: float, end: float | None) -> None:
    path = make_video(tmp_path / f"a{suffix}", fps=25, frames=75, b_frames=2 * (suffix == ".mp4"))
    part = Clip(str(path), start, end)
    small = prepared(part)
    length = min(end or 3.0, 3.0) - start
    assert probe(small.path).duration == pytest.approx(length, abs=1e-4)
    wanted = np.linspace(0, length - 0.01, 8)
    assert numbers(make_video, small, wanted) == numbers(make_video, part, wanted)


def test_the_middle_of_longer_videos_is_kept(tmp_path: Path, make_video) -> None:
    source = Clip(str(make_video(tmp_path / "a.mp4", fps=30, frames=90)))
    middle = prepared(source, TranscodeSettings(short_side=32, middle=1.0))
    assert probe(middle.path).frames == 30
    assert numbers(make_video, middle, [0.0, 0.5, 0.99]) == [30, 45, 59]
    assert probe(prepared(source, TranscodeSettings(short_side=32, middle=3.5)).path).frames == 90
    of_part = prepared(Clip(source.path, 2.0, 3.0), TranscodeSettings(short_side=32, middle=0.4))
    assert numbers(make_video, of_part, [0.0]) == [69]


def slide_show(path: Path, barcode: Any, instants: Sequence[float]) -> Clip:
    """Frames that come when they come, and a last one that stays for a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        packets = []
        for number, instant in enumerate(instants):
            frame = av.VideoFrame.from_ndarray(barcode(number, 128, 64), format="rgb24")
            frame.pts, frame.time_base = round(instant * 1000), Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        packets[-1].duration = 1000
        container.mux(packets)
    return Clip(str(path))


def test_variable_frame_rate_is_kept(tmp_path: Path, make_video) -> None:
    begin = [0.0, 0.01, 0.4, 0.41, 1.3, 1.8]
    source = slide_show(tmp_path / "a.mp4", make_video.barcode, begin)
    wanted = [0.0, 0.02, 0.39, 0.405, 0.5, 1.29, 1.31, 1.9, 2.7]
    shown = [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert numbers(make_video, source, wanted) == shown
    assert numbers(make_video, prepared(source), wanted) == shown
    at_a_rate = prepared(source, TranscodeSettings(short_side=32, fps=25))
    assert numbers(make_video, at_a_rate, [0.0, 0.04, 0.44, 1.32, 2.76]) == [0, 1, 3, 4, 5]
    assert probe(at_a_rate.path).frames == 70


def test_packed_b_frames_of_untouched_files_are_all_kept(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "originals" / "v_BabyCrawling_g10_c02.avi"
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)  # else this file tests nothing
    (tmp_path / "part.mp4").write_bytes(transcode(Clip(str(path), 1.0, 3.0), SMALL))
    assert probe(str(tmp_path / "part.mp4")).frames == 50


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short_side", "made"),
    [
        ((320, 240), 128, (170, 128)),
        ((240, 320), 128, (128, 170)),
        ((100, 80), 128, (100, 80)),
        ((640, 64), 32, (320, 32)),
    ],
)
def test_the_short_side_is_scaled_and_never_enlarged(
    tmp_path: Path, make_video, grey_frames, size, short_side: int, made: tuple[int, int]
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3, size=size, content=grey_frames(90))
    info = probe(prepared(Clip(str(path)), TranscodeSettings(short_side=short_side)).path)
    assert (info.width, info.height) == made


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 101, 75, "bgr0"
        pixels = np.full((75, 101, 3), 90, np.uint8)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    info = probe(prepared(Clip(str(path)), TranscodeSettings(short_side=128)).path)
    assert (info.width, info.height) == (100, 74)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "space", "scale"),
    [
        ("libx264", "yuv420p", None, None),
        ("libx264", "yuv420p", 1, 1),  # BT.709, as HD video has it
        ("libx264", "yuv420p", 1, 2),  # in the full range, as phones have it
        ("mjpeg", "yuvj420p", None, None),
        ("libx264", "yuv420p10le", None, None),
        ("ffv1", "bgr0", None, None),
    ],
)
def test_colours_stay(tmp_path: Path, codec: str, pix_fmt: str, space: int | None, scale: int | None) -> None:
    path = tmp_path / "a.mkv"
    pixels = np.repeat([[(200, 30, 40), (20, 180, 60), (30, 60, 220)]], 32, axis=1)
    pixels = np.broadcast_to(pixels, (64, 96, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = space or 2, scale or 0
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=space, dst_color_range=scale
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(prepared(Clip(str(path))), lambda _: [0.0], lambda *_: (96, 64))[0]
    for column in (16, 48, 80):
        np.testing.assert_allclose(frames[32, column], pixels[32, column], atol=8)


def test_pixels_of_untouched_files_stay_near(tmp_path: Path, shared_data: Path) -> None:
    for source in sorted((shared_data / "originals").glob("*.avi"))[2:6]:
        file = tmp_path / "a.mp4"
        file.write_bytes(transcode(Clip(str(source)), TranscodeSettings()))
        one, two = (
            read_frames(Clip(str(path)), lambda _: [0.2, 0.9, 1.6], lambda *_: (170, 128)) for path in (source, file)
        )
        assert np.abs(one.astype(int) - two).mean() < 5  # of 255


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gop", [1, 8, 16])
def test_key_frames_come_at_the_given_distance_whatever_happens(tmp_path: Path, make_video, gop: int) -> None:
    # Barcodes change the whole frame each time; the source's own key frames lie elsewhere.
    path = make_video(tmp_path / "a.mp4", frames=40, gop=5)
    with av.open(prepared(Clip(str(path)), TranscodeSettings(short_side=32, gop=gop)).path) as container:
        frames = list(container.decode(video=0))
        assert not container.streams.video[0].codec_context.has_b_frames
    assert [n for n, frame in enumerate(frames) if frame.key_frame] == list(range(0, 40, gop))


def test_the_same_request_gives_the_same_bytes(tmp_path: Path, make_video) -> None:
    clip = Clip(str(make_video(tmp_path / "a.mp4", frames=40, content=noise)), 0.2, 1.0)
    assert transcode(clip, SMALL) == transcode(clip, SMALL)
    sizes = [len(transcode(clip, TranscodeSettings(short_side=64, crf=crf))) for crf in (10, 20, 40)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("flags", "given"), [("avx2", ""), ("avx2 avx512f", f":asm={AVX2}")])
def test_avx512_is_disabled(tmp_path: Path, flags: str, given: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : any\nflags : sse {flags}\n")
    assert _instructions(tmp_path / "cpuinfo") == given
    assert _instructions(tmp_path / "none") == ""


def noise(index: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def test_index_first_and_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["location"] = "+48.8577+002.295/"
        container.metadata["title"] = "My garden"
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(5):
            grey = np.full((64, 64, 3), 99, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(video.encode())
        container.mux(sound.encode())
    assert b"+48.8577" in path.read_bytes()
    content = Path(prepared(Clip(str(path))).path).read_bytes()
    assert boxes(content)[:2] == [b"ftyp", b"moov"]
    for word in (b"48.8577", b"My garden", b"Lavf", b"soun"):
        assert word not in content, word
    with av.open(str(tmp_path / "prepared.mp4")) as container:
        assert len(container.streams) == 1


# --- what is wrong with a source ----------------------------------------------------------------


def test_a_cut_source_is_an_error_and_not_shortened(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.avi", fps=30, frames=120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for settings in (SMALL, TranscodeSettings(short_side=32, fps=30)):
        with pytest.raises(VideoError, match=r"a\.avi: (cut|damaged): "):
            transcode(Clip(str(path)), settings)
    whole = prepared(Clip(str(path), 0.0, 0.5))  # what lies before the cut
    assert numbers(make_video, whole, [0.0, 0.2, 0.4]) == [0, 6, 12]


def test_damage_in_the_middle_is_an_error(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mp4", frames=60, gop=60, content=noise)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : third + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4: damaged") as caught:
        transcode(Clip(str(path)), SMALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match=r"a\.mp4: .*5 s.*2\.00 s"):
        transcode(Clip(str(path), 5.0), SMALL)


def test_settings_out_of_range() -> None:
    invalid: list[tuple[str, Any]] = [
        ("short_side", 127), ("short_side", 8), ("gop", 0), ("fps", 0.0), ("fps", float("nan")), ("middle", 0.0),
        ("crf", 52),
    ]  # fmt: skip
    for name, value in invalid:
        with pytest.raises(ManifestError, match=re.escape(f"{name} is {value}")):
            TranscodeSettings(**{name: value})
