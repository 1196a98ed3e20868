"""How prepared files are made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from crosspair.config import Clip
from crosspair.errors import ManifestError, VideoError
from crosspair.video.container import format_error, open_video, read_header
from crosspair.video.decode import (
    TAIL_TOLERANCE,
    TICK,
    decode_from,
    frame_end,
    resolve_segment,
    rotation_quarters,
)
from crosspair.workers import extend_timeout


@dataclass(frozen=True)
class TranscodeSettings:
    """What all files of a prepared corpus have in common.

    Raises:
        ManifestError: a value is out of range.
    """

    short_side: int = 128
    """Of the frames, in pixels, even; a video that is smaller keeps its size."""
    gop: int = 16
    """Frames from one key frame to the next: what a random access decodes in vain, at most."""
    fps: float | None = None
    """Frames a second; None keeps each video's own instants."""
    middle: float | None = None
    """Seconds to keep of the middle of a longer video (Instagram-300k: 20); None keeps all."""
    crf: float = 20
    """x264's constant rate factor: 0 (lossless) to 51; 3 less is about a third more disk."""

    def __post_init__(self) -> None:
        # Each written so that a value that is not a number does not pass.
        if not (self.short_side >= 16 and self.short_side % 2 == 0):
            raise ManifestError(
                f"the short side is {self.short_side} pixels; it must be even, and 16 or more"
            )
        if not self.gop >= 1:
            raise ManifestError(f"the GOP is {self.gop} frames; it must be 1 or more")
        if self.fps is not None and not 1 <= self.fps <= 1000:
            raise ManifestError(f"the frame rate is {self.fps}; it must be 1 to 1000, or own")
        if self.middle is not None and not 0 < self.middle < float("inf"):
            raise ManifestError(f"the middle is {self.middle} s; it must be more than 0")
        if not 0 <= self.crf <= 51:
            raise ManifestError(f"the rate factor (crf) is {self.crf}; it must be 0 to 51")


@dataclass(frozen=True)
class VideoSegment:
    """An open passage, to be gone through once.

    Attributes:
        begin: where it begins in the video, in s.
        length: in s.
        fps: frames a second, on the average of the whole video.
    """

    path: str
    begin: float
    length: float
    fps: float
    container: InputContainer
    stream: VideoStream

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """What `crosspair.video.decode.read_frames` would show, from its beginning to its end.

        Yields:
            Seconds from the beginning of the passage, ascending from 0, and the frame that is on
            screen from then on. The first frame may have begun before the passage.

        Raises:
            VideoError: a frame of the passage is corrupt, or the video ends within it.
        """
        for count, (seconds, frame) in enumerate(self._shown()):
            if frame.is_corrupt:
                raise VideoError(f"{self.path}: damaged: the frame at {seconds:.2f} s is corrupt")
            yield seconds - self.begin if count else 0.0, frame

    def frames_at(self, fps: float) -> Iterator[tuple[float, VideoFrame]]:
        """The same at a constant rate: frames are repeated or left out."""
        count = 0
        held: VideoFrame | None = None
        for seconds, frame in self.frames():
            while held is not None and count / fps < seconds - TICK:
                yield count / fps, held
                count += 1
            held = frame
        while held is not None and (count == 0 or count / fps < self.length - TICK):
            yield count / fps, held
            count += 1

    def _shown(self) -> Iterator[tuple[float, VideoFrame]]:
        end = self.begin + self.length
        shown: tuple[float, VideoFrame] | None = None
        for seconds, frame in decode_from(self.container, self.stream, self.begin):
            if seconds >= end - TICK and shown is not None:
                break
            # A frame that begins no later than the one before takes its place on screen.
            if shown is not None and seconds > max(shown[0], self.begin + TICK):
                yield shown
            shown = (seconds if shown is None else max(seconds, shown[0]), frame)
        else:
            if shown is None or end > frame_end(*shown) + TAIL_TOLERANCE:
                last = (
                    "it has no frames" if shown is None else f"the last begins at {shown[0]:.2f} s"
                )
                raise VideoError(f"{self.path}: cut: frames are missing before {end:.2f} s; {last}")
        yield shown


@contextmanager
def open_segment(clip: Clip, middle: float | None) -> Iterator[VideoSegment]:
    """Open the part of a video that ``clip`` names, or the ``middle`` seconds of it.

    Raises:
        VideoError: the file is missing, empty, cut, or has no video stream, or the part begins
            after its end.
    """
    with open_video(clip.path) as (container, stream):
        info = read_header(stream, clip.path)
        begin, length = resolve_segment(clip, info)
        if middle is not None and length > middle:
            begin, length = begin + (length - middle) / 2, middle
        yield VideoSegment(clip.path, begin, length, info.fps, container, stream)


# Measured on UCF101 at short side 128: against x264's defaults, decoding without CABAC and
# deblocking takes a quarter off the time of a clip for 6 % more disk; B-frames give nothing.
ENCODER = {"preset": "veryfast", "tune": "fastdecode"}
TIME_BASE = Fraction(1, 120_000)  # s; frames of all usual rates, 30000/1001 too, begin on a tick

CPU = Path("/proc/cpuinfo")
AVX2 = "MMX2,SSE2,SSE3,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,LZCNT,AVX2"
SECONDS_A_SECOND = 20  # of video, before a process is taken to hang; large frames take 2


def transcode(clip: Clip, settings: TranscodeSettings) -> bytes:
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
    with open_segment(clip, settings.middle) as passage:
        extend_timeout(SECONDS_A_SECOND * (passage.begin + passage.length))
        try:
            return _encoded(passage, settings)
        except av.FFmpegError as error:
            raise VideoError(f"{clip.path}: damaged ({format_error(error)})") from error


def _encoded(passage: VideoSegment, settings: TranscodeSettings) -> bytes:
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
    passage: VideoSegment, settings: TranscodeSettings, stream: VideoStream
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


def _aspect(passage: VideoSegment, frame: VideoFrame) -> Fraction | None:
    """Of a pixel. It is handed on, not made square: loaders take pixels as they are."""
    ratio = passage.stream.sample_aspect_ratio
    return 1 / ratio if ratio and rotation_quarters(frame) % 2 else ratio


def _upright(frame: VideoFrame, short_side: int, reformatter: VideoReformatter) -> VideoFrame:
    factor = min(1.0, short_side / min(frame.width, frame.height))
    width, height = (_even(side * factor) for side in (frame.width, frame.height))
    scaled = reformatter.reformat(
        frame, width, height, format="yuv420p", interpolation="BICUBIC", dst_color_range="MPEG",
        threads=1,
    )  # fmt: skip
    if turns := rotation_quarters(frame):
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
