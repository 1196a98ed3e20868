"""Transcode a segment of a video to a small H.264 file that loads fast."""

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
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from crosspair.config import Clip
from crosspair.errors import ManifestError, VideoError, format_error
from crosspair.video.container import TAIL_TOLERANCE, TICK, OpenVideo, open_video
from crosspair.video.decode import FrameConverter, decode_from, frame_end, orientation, resolve_segment, turn_upright
from crosspair.workers import extend_timeout

# Measured on UCF101 at short side 128, compared with x264's defaults: without CABAC and deblocking,
# decoding a clip takes a quarter less time for 6 % more disk space; B-frames bring no gain.
ENCODER = {"preset": "veryfast", "tune": "fastdecode"}
TIME_BASE = Fraction(1, 120_000)  # s; an integer number of ticks per frame at all usual rates
CPU = Path("/proc/cpuinfo")
AVX2 = "MMX2,SSE2,SSE3,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,LZCNT,AVX2"
TIMEOUT_PER_SECOND = 20  # time limit per second of video; large frames take 2


@dataclass(frozen=True)
class TranscodeSettings:
    """Settings shared by all files of a prepared corpus.

    Raises:
        ManifestError: a value is out of range.
    """

    short_side: int = 128
    """Short side of the frames, in pixels, even; smaller videos keep their size."""
    gop: int = 16
    """Frames between key frames: the most frames that a random access decodes in vain."""
    fps: float | None = None
    """Constant frame rate; None keeps each video's time stamps."""
    middle: float | None = None
    """Seconds to keep from the middle of longer videos (Instagram-300k: 20); None keeps all."""
    crf: float = 20
    """x264's constant rate factor, 0 (lossless) to 51; 3 less is about a third more disk space."""

    def __post_init__(self) -> None:
        for name, is_valid, rule in (
            ("short_side", self.short_side >= 16 and self.short_side % 2 == 0, "even and at least 16"),
            ("gop", self.gop >= 1, "at least 1"),
            ("fps", self.fps is None or 1 <= self.fps <= 1000, "own, or in [1, 1000]"),
            ("middle", self.middle is None or 0 < self.middle < float("inf"), "above 0 s"),
            ("crf", 0 <= self.crf <= 51, "in [0, 51]"),
        ):
            if not is_valid:
                raise ManifestError(f"{name} is {getattr(self, name)}; it must be {rule}")


def transcode(clip: Clip, settings: TranscodeSettings) -> bytes:
    """Transcode a clip to an MP4 file; equal arguments give equal bytes (on x86 with AVX2).

    A frame within the clip that cannot be decoded is an error; the clip is never silently
    shortened. Frames outside the clip are not checked, and up to half a second may be missing at
    the end, as many headers promise too much.

    Returns:
        H.264 in MP4 with the index in front, without audio and metadata. At any time, it shows the
        frame that the source shows (with ``fps``, at the times of that rate).

    Raises:
        VideoError: the source is missing, empty, cut, damaged, or has no video stream.
    """
    with _open_segment(clip, settings.middle) as segment:
        extend_timeout(TIMEOUT_PER_SECOND * (segment.begin + segment.length))
        try:
            return _encode(segment, settings)
        except av.FFmpegError as error:
            raise VideoError(f"{clip.path}: damaged ({format_error(error)})") from error


@dataclass(frozen=True)
class VideoSegment:
    """An open segment of a video; its frames can be read once."""

    path: str
    begin: float  # start in the video, in s
    length: float  # s
    fps: float  # average of the whole video
    video: OpenVideo

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Decode the frames that are shown during the segment.

        Yields:
            Time from the start of the segment in s, ascending from 0, and the frame shown from then
            on. The first frame may start before the segment.

        Raises:
            VideoError: a frame is corrupt, or the video ends within the segment.
        """
        for count, (seconds, frame) in enumerate(self._shown_frames()):
            if frame.is_corrupt:
                raise VideoError(f"{self.path}: damaged: the frame at {seconds:.2f} s is corrupt")
            yield seconds - self.begin if count else 0.0, frame

    def frames_at(self, fps: float) -> Iterator[tuple[float, VideoFrame]]:
        """Decode as `frames` does, repeating or dropping frames to reach a constant rate."""
        count = 0
        shown: VideoFrame | None = None
        for seconds, frame in self.frames():
            while shown is not None and count / fps < seconds - TICK:
                yield count / fps, shown
                count += 1
            shown = frame
        while shown is not None and (count == 0 or count / fps < self.length - TICK):
            yield count / fps, shown
            count += 1

    def _shown_frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (time in the video in s, frame) as `frames` does, without a check for corruption."""
        end = self.begin + self.length
        shown: tuple[float, VideoFrame] | None = None
        for seconds, frame in decode_from(self.video, self.begin):
            if seconds >= end - TICK and shown is not None:
                break
            # A frame that starts no later than the one before replaces it.
            if shown is not None and seconds > max(shown[0], self.begin + TICK):
                yield shown
            shown = (seconds if shown is None else max(seconds, shown[0]), frame)
        else:
            if shown is None or end > frame_end(*shown) + TAIL_TOLERANCE:
                last = "it has no frames" if shown is None else f"the last starts at {shown[0]:.2f} s"
                raise VideoError(f"{self.path}: cut: frames are missing before {end:.2f} s; {last}")
        yield shown


@contextmanager
def _open_segment(clip: Clip, middle: float | None) -> Iterator[VideoSegment]:
    """Open the segment of a clip, reduced to the central ``middle`` seconds if it is longer."""
    with open_video(clip.path) as video:
        begin, length = resolve_segment(clip, video.info)
        if middle is not None and length > middle:
            begin, length = begin + (length - middle) / 2, middle
        yield VideoSegment(clip.path, begin, length, video.info.fps, video)


def _encode(segment: VideoSegment, settings: TranscodeSettings) -> bytes:
    fps = Fraction(settings.fps or segment.fps or 30).limit_denominator(1001)
    file = io.BytesIO()
    with av.open(
        file,
        "w",
        format="mp4",
        # bitexact: no creation time, no muxer name. faststart: the index in front of the frames.
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
                "x264-params": f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0" + _instructions(CPU),
            },
        )
        container.mux(encode_segment(segment, settings.short_side, stream, settings.fps))
    return file.getvalue()


@cache
def _instructions(cpu: Path) -> str:
    """Return the x264 option that disables AVX-512 if the processor has it, else an empty string.

    With AVX-512, x264 165 produced other bytes in 2 of 100 encodings of the same small frames, with
    AVX2 in 0 of 600; at these sizes AVX-512 is no faster.
    """
    try:
        has_avx512 = "avx512" in cpu.read_text()
    except (OSError, UnicodeDecodeError):  # not Linux
        has_avx512 = False
    return f":asm={AVX2}" if has_avx512 else ""


def encode_segment(
    segment: VideoSegment, short_side: int, stream: VideoStream, fps: float | None = None
) -> list[Packet[VideoStream]]:
    """Encode the frames of a segment; the first frame sets the size, and the last one lasts until the end.

    Args:
        segment: read once.
        short_side: short side of the frames in pixels, even; smaller videos keep their size.
        stream: a new output stream, configured here.
        fps: constant frame rate; None keeps the time stamps.

    Raises:
        VideoError: see `VideoSegment.frames`.
    """
    packets = list(_encode_frames(segment, short_side, stream, fps))
    last = packets[-1]
    last.duration = max(1, round(segment.length / TIME_BASE) - (last.pts or 0))
    return packets


def _encode_frames(
    segment: VideoSegment, short_side: int, stream: VideoStream, fps: float | None
) -> Iterator[Packet[VideoStream]]:
    converter = FrameConverter(segment.path)
    frames = segment.frames() if fps is None else segment.frames_at(fps)
    previous: VideoFrame | None = None
    scaled: VideoFrame | None = None
    size: tuple[int, int] | None = None
    for seconds, frame in frames:
        if scaled is None or frame is not previous:
            resized = _resize_upright(frame, short_side, converter, size)
            if scaled is None:
                _configure(stream, resized, _pixel_aspect(segment, frame))
                size = resized.width, resized.height
            previous, scaled = frame, resized
        scaled.pts, scaled.time_base = round(seconds / TIME_BASE), TIME_BASE
        yield from stream.encode(scaled)
    yield from stream.encode(None)


def _configure(stream: VideoStream, first: VideoFrame, aspect: Fraction | None) -> None:
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
    context = stream.codec_context
    context.time_base = TIME_BASE
    context.thread_count = 1  # there is one process per core
    context.max_b_frames = 0
    context.colorspace, context.color_range = first.colorspace, first.color_range
    if aspect:
        context.sample_aspect_ratio = aspect


def _pixel_aspect(segment: VideoSegment, frame: VideoFrame) -> Fraction | None:
    """Return the source's pixel aspect ratio, inverted if the frame is rotated by 90°; None if unknown."""
    ratio = segment.video.stream.sample_aspect_ratio
    return 1 / ratio if ratio and orientation(frame)[0] else ratio


def _resize_upright(
    frame: VideoFrame, short_side: int, converter: FrameConverter, size: tuple[int, int] | None
) -> VideoFrame:
    """Resize a frame to ``size``, or reduce it to a short side in pixels, as yuv420p, and turn it upright."""
    factor = min(1.0, short_side / min(frame.width, frame.height))
    width, height = size or (_round_even(side * factor) for side in (frame.width, frame.height))
    if size and orientation(frame)[0]:
        width, height = height, width
    scaled = converter.resize(frame, width, height, "yuv420p", "BICUBIC", dst_color_range="MPEG")
    if any(orientation(frame)):
        scaled = _turn_upright(scaled, frame)
    scaled.pict_type = 0  # otherwise x264 would make each key frame of the source a key frame
    return scaled


def _round_even(length: float) -> int:
    """Round a length in pixels to the nearest even number, at least 2; halfway cases are rounded down.

    >>> _round_even(170.7), _round_even(128.0), _round_even(127.0)
    (170, 128, 126)
    """
    return max(2, 2 * int(length / 2 + 0.499))


def _turn_upright(frame: VideoFrame, source: VideoFrame) -> VideoFrame:
    """Turn a yuv420p frame upright as its source's metadata says."""
    packed = frame.to_ndarray()  # (H * 3/2, W)
    luma = packed[: frame.height]
    chroma = packed[frame.height :].reshape(2, frame.height // 2, frame.width // 2)
    planes = [turn_upright(plane, source) for plane in (luma, *chroma)]
    flat = np.concatenate([plane.ravel() for plane in planes])
    rotated = VideoFrame.from_ndarray(flat.reshape(-1, planes[0].shape[1]), format="yuv420p")
    rotated.colorspace, rotated.color_range = frame.colorspace, frame.color_range
    return rotated
