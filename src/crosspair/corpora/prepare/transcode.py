"""One video becomes one prepared file: trimmed, scaled, upright, quick to read anywhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from crosspair.clip import Clip
from crosspair.corpora.prepare.passage import Passage, opened_passage
from crosspair.corpora.prepare.settings import Settings
from crosspair.errors import VideoError
from crosspair.isolation import allow
from crosspair.video.container import told
from crosspair.video.decode import quarters

# Measured on UCF101 at short side 128: against x264's defaults, decoding without CABAC and
# deblocking takes a quarter off the time of a clip for 6 % more disk; B-frames give nothing.
ENCODER = {"preset": "veryfast", "tune": "fastdecode"}
TIME_BASE = Fraction(1, 120_000)  # s; frames of all usual rates, 30000/1001 too, begin on a tick

CPU = Path("/proc/cpuinfo")
AVX2 = "MMX2,SSE2,SSE3,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,LZCNT,AVX2"
SECONDS_A_SECOND = 20  # of video, before a process is taken to hang; large frames take 2


def transcode(clip: Clip, settings: Settings) -> bytes:
    """Make a whole MP4 file; the same arguments give the same bytes (on x86, from AVX2 on).

    A source of which a frame within the part fails is an error, never silently shortened: the
    title may tell of what is lost, and damage should be known. What lies outside the part is not
    looked at, nor is a lack of up to half a second at the end, which many headers promise in vain.

    Args:
        clip: the file or URL, and the part of it to take.
        settings: size, frame rate, distance of key frames, quality.

    Returns:
        H.264 in MP4, its index in front, without sound and without metadata. Read at any instant,
        it shows the frame that the source shows then (with ``fps``, at the instants of that rate).

    Raises:
        VideoError: the source is missing, empty, cut, damaged, or has no video stream.
    """
    with opened_passage(clip, settings.middle) as passage:
        allow(SECONDS_A_SECOND * (passage.begin + passage.length))
        try:
            return _encoded(passage, settings)
        except av.FFmpegError as error:
            raise VideoError(f"{clip.path}: damaged ({told(error)})") from error


def _encoded(passage: Passage, settings: Settings) -> bytes:
    fps = Fraction(settings.fps or passage.fps or 30).limit_denominator(1001)
    file = io.BytesIO()
    with av.open(
        file,
        "w",
        format="mp4",
        # No creation time, no name of the muxer; the index in front of the frames.
        options={"fflags": "+bitexact", "movflags": "+faststart"},
        # To move the index to the front, the muxer reads back what it wrote.
        io_open=lambda *_: io.BytesIO(file.getvalue()),
    ) as container:
        stream = container.add_stream(
            "libx264",
            rate=fps,
            options={
                **ENCODER,
                "crf": f"{settings.crf:g}",
                "x264-params": f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0"
                + _instructions(CPU),
            },
        )
        packets = list(_packets(passage, settings, stream))
        # The last frame stays until the end, so that the file is as long as the part.
        last = packets[-1]
        last.duration = max(1, round(passage.length / TIME_BASE) - (last.pts or 0))
        container.mux(packets)
    return file.getvalue()


@cache
def _instructions(cpu: Path) -> str:
    """x264's option to do without AVX-512, where there is any.

    With it, x264 165 gave other bytes for 2 in 100 encodings of the same small frames, with AVX2
    for 0 in 600; at these sizes it is no faster.
    """
    try:
        known = "avx512" in cpu.read_text()
    except (OSError, UnicodeDecodeError):  # not Linux
        known = False
    return f":asm={AVX2}" if known else ""


def _packets(
    passage: Passage, settings: Settings, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    reformatter = VideoReformatter()
    taken = passage.frames() if settings.fps is None else passage.frames_at(settings.fps)
    before: VideoFrame | None = None
    scaled: VideoFrame | None = None
    for seconds, frame in taken:
        if scaled is None or frame is not before:
            upright = _upright(frame, settings.short_side, reformatter)
            if scaled is None:
                _start(stream, upright, _aspect(passage, frame))
            elif (upright.width, upright.height) != (scaled.width, scaled.height):
                raise VideoError(f"{passage.path}: damaged: its frames change their proportions")
            before, scaled = frame, upright
        scaled.pts, scaled.time_base = round(seconds / TIME_BASE), TIME_BASE
        yield from stream.encode(scaled)
    yield from stream.encode(None)


def _start(stream: VideoStream, first: VideoFrame, aspect: Fraction | None) -> None:
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
    context = stream.codec_context
    context.time_base = TIME_BASE
    context.thread_count = 1  # a process a core
    context.max_b_frames = 0
    # So that decoding finds the source's colours.
    context.colorspace, context.color_range = first.colorspace, first.color_range
    if aspect:
        context.sample_aspect_ratio = aspect


def _aspect(passage: Passage, frame: VideoFrame) -> Fraction | None:
    """Of a pixel. It is handed on, not made square: loaders take pixels as they are."""
    ratio = passage.stream.sample_aspect_ratio
    return 1 / ratio if ratio and quarters(frame) % 2 else ratio


def _upright(frame: VideoFrame, short_side: int, reformatter: VideoReformatter) -> VideoFrame:
    factor = min(1.0, short_side / min(frame.width, frame.height))
    width, height = (_even(side * factor) for side in (frame.width, frame.height))
    scaled = reformatter.reformat(
        frame, width, height, format="yuv420p", interpolation="BICUBIC", dst_color_range="MPEG",
        threads=1,
    )  # fmt: skip
    if turns := quarters(frame):
        scaled = _turned(scaled, turns)
    scaled.pict_type = 0  # else x264 would make a key frame of each that was one in the source
    return scaled


def _even(length: float) -> int:
    """The even number nearest to a length in pixels; of two, the smaller.

    >>> _even(170.7), _even(128.0), _even(127.0)
    (170, 128, 126)
    """
    return max(2, 2 * int(length / 2 + 0.499))


def _turned(frame: VideoFrame, turns: int) -> VideoFrame:
    """A yuv420p frame turned counterclockwise by so many quarters."""
    packed = frame.to_ndarray()  # (H * 3/2, W)
    luma = packed[: frame.height]
    chroma = packed[frame.height :].reshape(2, frame.height // 2, frame.width // 2)
    planes = [np.rot90(plane, turns) for plane in (luma, *chroma)]
    together = np.concatenate([plane.ravel() for plane in planes])
    turned = VideoFrame.from_ndarray(together.reshape(-1, planes[0].shape[1]), format="yuv420p")
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned
