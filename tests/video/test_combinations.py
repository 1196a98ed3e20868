"""Containers, codecs and clocks at random: every time shows the frame that plain sequential decoding shows.

`CROSSPAIR_COMBINATIONS` sets the number of combinations.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from crosspair.config import Clip
from crosspair.video.container import TICK
from crosspair.video.decode import probe, read_frames

COUNT = int(os.environ.get("CROSSPAIR_COMBINATIONS", "20"))
MPEG = ("libx264", "libx265", "mpeg2video", "mpeg4")
CODECS = {
    ".mp4": (*MPEG, "libvpx-vp9"),
    ".ts": MPEG,
    ".mkv": (*MPEG, "libvpx"),
    ".mpg": ("mpeg2video",),
    ".m2ts": MPEG,
    ".vob": ("mpeg2video",),
    ".webm": ("libvpx", "libvpx-vp9"),
    ".flv": ("libx264",),
    ".mov": ("libx264", "mpeg4"),
    ".avi": ("mpeg4", "libx264"),
}
FORMATS = {".m2ts": "mpegts", ".mpg": "vob", ".vob": "vob"}
SOUND = {".webm": "libopus", ".mpg": "mp2", ".vob": "mp2", ".avi": "mp2"}
SPEED = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
SIZE = (128, 64)
SECONDS = 3


@dataclass(frozen=True)
class Combination:
    suffix: str
    codec: str
    gop: int
    b_frames: int
    open_gop: bool
    start: float  # s
    sound: bool  # which begins up to a second earlier
    turn: int  # clockwise, in degrees
    fps: Fraction


def combine(seed: int) -> Combination:
    draw = random.Random(seed)
    suffix = list(CODECS)[seed % len(CODECS)]
    return Combination(
        suffix=suffix,
        codec=draw.choice(CODECS[suffix]),
        gop=draw.choice([1, 5, 12, 30, 75, 250]),
        b_frames=0 if suffix == ".avi" else draw.choice([0, 1, 2, 3]),  # AVI stores no time stamps
        open_gop=draw.random() < 0.5,
        start=draw.choice([0, 0, 0.4, 1.7, 30.0]) if suffix != ".avi" else 0,
        sound=draw.random() < 0.4,
        turn=draw.choice([0, 90, 180, 270]) if suffix in (".mp4", ".mov", ".mkv") else 0,
        fps=draw.choice([Fraction(15), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(50)])
        if suffix not in (".mpg", ".vob") and draw.random() < 0.9 else Fraction(25),
    )  # fmt: skip


def write(path: Path, made: Combination, make_video) -> None:
    options = dict(SPEED.get(made.codec, {"deadline": "realtime", "cpu-used": "8"} if "vpx" in made.codec else {}))
    if made.open_gop and made.codec == "libx264":
        options["x264-params"] = "open-gop=1"
    fps = Fraction(25) if made.codec == "mpeg2video" else made.fps
    with av.open(str(path), "w", format=FORMATS.get(made.suffix)) as container:
        stream = container.add_stream(made.codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.gop_size, stream.codec_context.max_b_frames = made.gop, made.b_frames
        stream.bit_rate = 1_000_000
        stream.codec_context.thread_count = 1
        if made.turn:
            stream.set_display_rotation(-made.turn)
        sound = None
        if made.sound:
            sound = container.add_stream(SOUND.get(made.suffix, "aac"), rate=48000, layout="stereo")
        packets = []
        first = round(made.start * fps)
        count = round(SECONDS * fps)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(make_video.barcode(index, *SIZE), format="rgb24")
            frame.pts, frame.time_base = first + index, 1 / fps
            packets += stream.encode(frame)
        packets += stream.encode()
        if sound is not None:
            begin = max(0.0, made.start - 0.8)
            size = sound.codec_context.frame_size or 1152
            form = sound.codec_context.format.name
            shape = (2, size) if form.endswith("p") else (1, 2 * size)
            kind = {"flt": np.float32, "s16": np.int16}[form.removesuffix("p")]
            for block in range(int((made.start + SECONDS - begin) * 48000 / size)):
                silence = av.AudioFrame.from_ndarray(np.zeros(shape, kind), format=form, layout="stereo")
                silence.sample_rate, silence.pts = 48000, round(begin * 48000) + block * size
                silence.time_base = Fraction(1, 48000)
                packets += sound.encode(silence)
            packets += sound.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def decode_plainly(path: Path, make_video) -> list[tuple[float, int]]:
    """Return (time on a player's clock in s, number) of every frame."""
    with av.open(str(path)) as container:
        origin = (container.start_time or 0) / 1e6
        frames = list(container.decode(container.streams.video[0]))
    pixels = [frame.to_ndarray(format="rgb24") for frame in frames]
    times = [float(frame.pts * frame.time_base) - origin for frame in frames]
    return list(zip(times, make_video.numbers(np.stack(pixels)), strict=True))


@pytest.mark.parametrize("seed", range(COUNT))
def test_any_time_shows_the_frame_of_sequential_decoding(tmp_path: Path, make_video, seed: int) -> None:
    made = combine(seed)
    path = tmp_path / f"a{made.suffix}"
    write(path, made, make_video)
    plain = decode_plainly(path, make_video)
    assert len(plain) > 40
    info = probe(str(path))
    end = plain[-1][0] + 1 / float(made.fps)
    assert info.duration == pytest.approx(end, abs=0.1), made
    assert (info.width, info.height) == (SIZE if made.turn % 180 == 0 else SIZE[::-1])

    def read(times: np.ndarray) -> list[int]:
        frames = read_frames(Clip(str(path)), lambda _: times, lambda w, h: (w, h))
        return make_video.numbers(np.rot90(frames, made.turn // 90, axes=(1, 2)))

    times = np.sort(np.random.default_rng(seed).uniform(0, info.duration, 10))
    borders = np.array([time for time, _ in plain])
    times = times[np.abs(times[:, None] + TICK - borders).min(axis=1) > TICK / 2]  # not between two frames
    expected = [([number for time, number in plain if time <= at + TICK] or [plain[0][1]])[-1] for at in times]
    assert read(times) == expected, made
    assert [read(np.array([at]))[0] for at in times] == expected, made
