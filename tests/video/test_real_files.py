"""Files as cameras, browsers and recorders write them, each made by its test."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.stream import VideoStream

from crosspair.config import Clip
from crosspair.corpora.transcode import TranscodeSettings, transcode
from crosspair.errors import InvalidVideoError, VideoStatus
from crosspair.video import container
from crosspair.video.decode import probe, read_frames
from crosspair.video.integrity import inspect
from crosspair.video.views import resize_short_side

SIZE = (128, 64)


def read(path: Path, times: list[float], start: float | None = None, end: float | None = None) -> np.ndarray:
    return read_frames(Clip(str(path), start, end), lambda _: times, lambda w, h: (w, h))


def check(path: Path, start: float | None = None) -> VideoStatus:
    """Decode a file, and return its status."""
    return inspect(str(path), [(start, None)], decode=True)[1][0].kind


def remux(source: Path, path: Path, skip: int = 0, delay: int = 0, sound: float = 0) -> Path:
    """Copy packets from number ``skip`` on, ``delay`` ms later, optionally with ``sound`` seconds of silence."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        silence = written.add_stream("aac", rate=48000, layout="mono") if sound else None
        for index, packet in enumerate(read.demux(video=0)):
            if packet.dts is not None and index >= skip:
                shift = round(Fraction(delay, 1000) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                written.mux(packet)
        for block in range(int(sound * 48000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, block * 1024, Fraction(1, 48000)
            written.mux(silence.encode(frame))
    return path


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video")])
def test_one_group_with_b_frames(tmp_path: Path, make_video, monkeypatch, suffix: str, codec: str) -> None:
    monkeypatch.setitem(make_video.__call__.__globals__["OPTIONS"], codec, {})
    path = make_video(tmp_path / f"a{suffix}", frames=100, gop=250, b_frames=2, codec=codec)
    assert make_video.numbers(read(path, [0, 0.5, 0.98], 1.5, 3.0)) == [45, 60, 74]
    assert check(path) is VideoStatus.FINE


def test_joined_recordings_have_one_clock(tmp_path: Path, make_video) -> None:
    parts = [make_video(tmp_path / f"{count}.ts", frames=count, codec="libx264") for count in (60, 90)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe(str(path)).duration == pytest.approx(5, abs=0.05)
    assert make_video.numbers(read(path, [1.51, 2.51, 4.51])) == [45, 15, 75]
    assert make_video.numbers(read(path, [2.51])) == [15]
    assert check(path) is VideoStatus.FINE


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".mkv", ".webm", ".flv"])
def test_a_short_recording_before_a_long_one(tmp_path: Path, make_video, suffix: str) -> None:
    codec = {".webm": "libvpx-vp9", ".mpg": "mpeg4"}.get(suffix, "libx264")
    parts = [make_video(tmp_path / f"{n}{suffix}", frames=n, fps=30, codec=codec).read_bytes() for n in (30, 300)]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(parts[0] + parts[1][13 if suffix == ".flv" else 0 :])  # without a second header
    assert probe(str(path)).duration == pytest.approx(11, abs=0.1)
    assert make_video.numbers(read(path, [0.51, 6.06])) == [15, 151]
    assert make_video.numbers(read(path, [6.06])) == [151]
    assert check(path) is VideoStatus.FINE


def test_a_restart_between_samples_is_reported(tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(2 * make_video(tmp_path / "a.ts", frames=60, codec="libx264").read_bytes())
    monkeypatch.setattr(container, "SAMPLES", 1)
    monkeypatch.setattr(container, "MAX_SCAN", 0)
    assert check(path) is VideoStatus.WRONG_LENGTH


def test_a_recording_without_length(tmp_path: Path, make_video) -> None:
    source = make_video(tmp_path / "a.webm", frames=90)
    data = io.BytesIO()
    pipe = type("Pipe", (), {"write": data.write})()  # cannot seek, so that no length is written
    with av.open(str(source)) as read_, av.open(pipe, "w", format="webm") as written:
        stream = written.add_stream_from_template(read_.streams.video[0])
        for packet in read_.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    path = tmp_path / "live.webm"
    path.write_bytes(data.getvalue())
    with av.open(str(path)) as file:
        assert not file.duration
    assert probe(str(path)).duration == pytest.approx(3, abs=0.05)
    assert make_video.numbers(read(path, [2.51])) == [75]


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_sound_that_is_longer(tmp_path: Path, make_video, suffix: str) -> None:
    path = remux(make_video(tmp_path / "a.mp4"), tmp_path / f"b{suffix}", sound=5)
    assert probe(str(path)).duration == pytest.approx(2, abs=0.05)
    assert check(path) is VideoStatus.FINE


def test_a_picture_that_begins_after_the_sound(tmp_path: Path, make_video) -> None:
    """Times are those of a player; its first frame is shown before it begins."""
    path = remux(make_video(tmp_path / "a.mp4", frames=90), tmp_path / "b.mkv", delay=1500, sound=4)
    assert make_video.numbers(read(path, [0, 0.01, 0.5], 2.5)) == [30, 30, 45]
    assert make_video.numbers(read(path, [0.2, 2.51])) == [0, 30]
    assert probe(str(path)).duration == pytest.approx(4.5, abs=0.05)


def test_a_header_that_gives_the_end_as_length(tmp_path: Path, make_video) -> None:
    path = remux(make_video(tmp_path / "a.mp4"), tmp_path / "b.mkv", delay=1500)
    assert probe(str(path)).duration == pytest.approx(2, abs=0.05)
    assert check(path) is VideoStatus.FINE


@pytest.mark.parametrize("tag", [b"00:00:01.0", b"00:00:09.0"])
def test_a_wrong_length_in_a_tag(tmp_path: Path, make_video, tag: bytes) -> None:
    path = make_video(tmp_path / "a.mkv", frames=90)
    path.write_bytes(path.read_bytes().replace(b"00:00:03.0", tag))
    assert probe(str(path)).duration == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("length", [float("nan"), float("inf"), 1e12, 1e300, -5.0, 0.0])
def test_an_absurd_length_is_measured_instead(tmp_path: Path, make_video, length: float) -> None:
    path = make_video(tmp_path / "a.mkv", frames=90)
    stored = path.read_bytes().replace(b"DURATION", b"XXXXXXXX")  # the tag
    place = stored.index(b"\x44\x89\x88") + 3  # EBML: element Duration of 8 bytes
    path.write_bytes(stored[:place] + struct.pack(">d", length) + stored[place + 8 :])
    assert probe(str(path)).duration == pytest.approx(3, abs=0.05)
    assert check(path) is VideoStatus.FINE


def test_a_recording_that_begins_between_key_frames(tmp_path: Path, make_video) -> None:
    source = make_video(tmp_path / "a.ts", frames=120, gop=30, b_frames=2, codec="libx264")
    path = remux(source, tmp_path / "b.ts", skip=11)
    assert make_video.numbers(read(path, [0, 2.0]))[0] == 30
    assert check(path) is VideoStatus.FINE


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx-vp9")])
def test_times_before_zero(tmp_path: Path, make_video, suffix: str, codec: str) -> None:
    """Matroska stores no negative times, so that the first entry of its index is the second key frame."""
    source = make_video(tmp_path / f"a{suffix}", frames=120, fps=30, gop=60, codec=codec)
    path = tmp_path / f"b{suffix}"
    with av.open(str(source)) as stored, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as written:
        stream = written.add_stream_from_template(stored.streams.video[0])
        for packet in stored.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 500, packet.dts - 500, stream
                written.mux(packet)
    assert make_video.numbers(read(path, [1.01, 3.01])) == [45, 105]
    assert make_video.numbers(read(path, [1.31])) == [54]


def test_pictures_that_are_refreshed_without_key_frames(tmp_path: Path, make_video) -> None:
    def content(index: int, width: int, height: int) -> np.ndarray:
        picture = np.full((height, width, 3), (220, 30, 30), np.uint8)
        picture[height // 3 : -height // 3] = make_video.barcode(index, width, height)[0]
        return picture

    options = {"x264-params": "intra-refresh=1:keyint=60", "preset": "veryfast"}
    path = make_video(
        tmp_path / "a.ts", frames=250, gop=60, codec="libx264", size=(160, 120), content=content, options=options
    )
    for number in range(190, 250, 10):
        (frame,) = read(path, [number / 30 + 0.01])
        assert np.abs(frame.astype(int) - content(number, 160, 120)).mean() < 8


def test_a_beginning_that_an_edit_list_hides(tmp_path: Path, make_video) -> None:
    """As of a recording that was trimmed without encoding it again."""
    source = make_video(tmp_path / "a.mp4", frames=90, gop=250, codec="libx264")
    path = remux(source, tmp_path / "b.mp4", delay=-1000)
    assert probe(str(path)).duration == pytest.approx(2, abs=0.05)
    assert make_video.numbers(read(path, [0.01, 1.01])) == [30, 60]
    assert check(path) is VideoStatus.FINE


# --- geometry and colours -----------------------------------------------------------------------


def write_pictures(path: Path, pictures: list[np.ndarray], prepare: Callable[[VideoStream], object] = bool) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        prepare(stream)
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def corner_picture() -> np.ndarray:
    picture = np.zeros((*SIZE[::-1], 3), np.uint8)
    picture[:24, :40] = 255, 0, 0
    picture[-24:, :40] = 0, 255, 0
    return picture


MATRICES = {
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "quarter": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "three quarters": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored quarter": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices(tmp_path: Path, name: str) -> None:
    (a, b, c, d), expected = MATRICES[name]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    path = write_pictures(tmp_path / "a.mp4", [corner_picture()] * 20, lambda s: s.set_display_matrix(matrix))
    upright = expected(corner_picture())
    assert np.abs(read(path, [1.5])[0].astype(int) - upright).mean() < 8
    assert (probe(str(path)).height, probe(str(path)).width) == upright.shape[:2]
    prepared = tmp_path / "b.mp4"
    prepared.write_bytes(transcode(Clip(str(path)), TranscodeSettings()))
    assert np.abs(read(prepared, [1.5])[0].astype(int) - upright).mean() < 8
    with av.open(str(prepared)) as file:
        assert next(file.decode(video=0)).side_data.get("DISPLAYMATRIX") is None


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def prepare(stream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write_pictures(tmp_path / "a.mp4", [np.zeros((240, 320, 3), np.uint8)] * 5, prepare)
    assert (probe(str(path)).width, probe(str(path)).height) == (427, 240)
    for clip in (path, tmp_path / "b.mp4"):
        frames = read_frames(Clip(str(clip)), lambda _: [0.0], lambda w, h: resize_short_side(w, h, 70))
        assert frames.shape == (1, 70, 124, 3)
        (tmp_path / "b.mp4").write_bytes(transcode(Clip(str(path)), TranscodeSettings()))


def test_a_size_that_changes(tmp_path: Path, make_video) -> None:
    """As of a browser whose connection becomes slow: two H.264 streams in a row, each with its own headers."""
    parts = [make_video(tmp_path / f"{w}.h264", size=(w, h), codec="libx264") for w, h in ((256, 128), (128, 96))]
    joined = tmp_path / "a.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    path = tmp_path / "a.ts"
    with av.open(str(joined)) as source, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream, packet.time_base = stream, Fraction(1, 30)
                packet.pts = packet.dts = index
                written.mux(packet)
    frames = read(path, [0.51, 3.01])
    assert frames.shape[1:3] == (128, 256)
    assert make_video.numbers(frames) == [15, 30]
    prepared = tmp_path / "b.mp4"
    prepared.write_bytes(transcode(Clip(str(path)), TranscodeSettings()))
    assert make_video.numbers(read(prepared, [0.51, 3.01])) == [15, 30]


def test_frames_that_become_huge_are_not_decoded(tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [make_video(tmp_path / f"{w}.ts", size=(w, 128), codec="libx264") for w in (256, 1024)]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    monkeypatch.setattr(container, "MAX_PIXELS", 500 * 128)
    assert len(read(path, [1.0])) == 1
    with pytest.raises(InvalidVideoError):
        read(path, [3.0])
    assert check(path).broken


def test_the_default_stream_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, (width, height), default in zip(streams, ((64, 32), SIZE), (False, True), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if default else Disposition(0)
        for _ in range(10):
            for stream in streams:
                black = np.zeros((stream.height, stream.width, 3), np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    assert probe(str(path)).width == SIZE[0]


def test_colours_that_cannot_be_converted(tmp_path: Path) -> None:
    def prepare(stream) -> None:
        stream.codec_context.colorspace = 8  # YCgCo

    path = write_pictures(tmp_path / "a.mp4", [corner_picture()] * 20, prepare)
    for attempt in (lambda: read(path, [0.0]), lambda: transcode(Clip(str(path)), TranscodeSettings())):
        with pytest.raises(InvalidVideoError) as caught:
            attempt()
        assert caught.value.kind is VideoStatus.UNDECODABLE
    assert inspect(str(path), [(None, None)], decode=False)[1][0].kind is VideoStatus.UNDECODABLE


@pytest.mark.parametrize("transfer", [16, 18], ids=["pq", "hlg"])
def test_high_dynamic_range_is_tone_mapped(tmp_path: Path, transfer: int) -> None:
    """Diffuse white, 203 cd/m², is as bright as in an ordinary video: about 0.5 of the linear range."""
    code = {16: 0.58, 18: 0.75}[transfer]
    white = av.VideoFrame(64, 32, "yuv420p10le")
    for plane, level in zip(white.planes, (64 + 876 * code, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(level), np.uint16).tobytes())
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for index in range(20):
            white.pts, white.time_base = index, Fraction(1, 10)
            file.mux(stream.encode(white))
        file.mux(stream.encode())
    frame = read(path, [0.0])[0]
    assert np.ptp(frame) <= 6  # no tint
    assert (frame.mean() / 255) ** 2.4 == pytest.approx(0.52, abs=0.03)
    prepared = tmp_path / "b.mp4"
    prepared.write_bytes(transcode(Clip(str(path)), TranscodeSettings(short_side=32)))
    assert read(prepared, [0.0])[0].mean() == pytest.approx(frame.mean(), abs=4)


@pytest.mark.parametrize(("suffix", "codec", "form"), [(".gif", "gif", "rgb8"), (".apng", "apng", "rgb24")])
def test_animated_pictures(tmp_path: Path, make_video, suffix: str, codec: str, form: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, form
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(make_video.barcode(index, *SIZE), format="rgb24")
            file.mux(stream.encode(frame.reformat(format=form)))
        file.mux(stream.encode())
    assert make_video.numbers(read(path, [0.01, 1.51, 2.51])) == [0, 15, 25]
    assert probe(str(path)).duration == pytest.approx(3, abs=0.2)


# --- real files ---------------------------------------------------------------------------------

REAL = {  # the length in s, and the numbers of the frames shown at times in s
    "seg.ts": (6, {1.51: 45, 5.01: 150}),
    "long180.ts": (6, {1.51: 45, 2.49: 74}),
    "cat2.ts": (8, {2.51: 75}),
    "cutlate.mp4": (4.98, {2.5: 105, 2.99: 120}),
    "late_noaudio.mkv": (4, {2.51: 75}),
    "audlong.flv": (4.02, {2.54: 75}),
    "audlong_gst.mkv": (4.02, {2.54: 75}),
    "live.webm": (4, {2.51: 75}),
    "two_small_first.mp4": (4, {2.51: 75}),
    "res_ab.webm": (4, {1.51: 45, 2.51: 75}),
    "stale_short.mkv": (4, {2.51: 75}),
    "headcut.ts": (3.9, {0.0: 30, 1.91: 60}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_recordings(shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(shared_data.parent / "tools")
    from clock import read_clock

    length, shown = REAL[name]
    path = shared_data / "files" / name
    assert probe(str(path)).duration == pytest.approx(length, abs=0.05)
    assert {time: read_clock(read(path, [time])[0])[0] for time in shown} == shown
    assert [read_clock(frame)[0] for frame in read(path, list(shown))] == list(shown.values())


def test_frames_that_repeat_the_last_one(shared_data: Path) -> None:
    """Theora stores them as empty packets."""
    assert len(read(shared_data / "files" / "static.ogv", [0.0, 1.5, 3.5])) == 3
    assert check(shared_data / "files" / "static.ogv") is VideoStatus.FINE
