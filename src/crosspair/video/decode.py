"""Which instants of a video make a clip: by time, so that a file's frame rate does not matter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from crosspair.config import Clip
from crosspair.errors import InvalidVideoError, VideoError, VideoStatus
from crosspair.video.container import (
    VideoInfo,
    duration,
    format_error,
    open_video,
    read_header,
)

REFERENCE_FPS = 30.0  # the paper's strides count frames of 30 FPS video (Section 3.3)


def clip_span(frames: int, stride: int) -> float:
    """Seconds from the first to the last frame of a clip.

    >>> round(clip_span(frames=8, stride=4), 3)
    0.933
    """
    return (frames - 1) * stride / REFERENCE_FPS


def clip_times(position: float, length: float, frames: int, stride: int) -> np.ndarray:
    """Instants of one clip within a video of ``length`` seconds.

    Args:
        position: where the clip lies, 0 (at the beginning) to 1 (as late as it fits).
        length: what may be sampled from, in s.
        frames: frames in the clip (the paper: 8; 16 when fine-tuning).
        stride: distance between frames in 30ths of a second (the paper: 4).

    Returns:
        (frames,) float64, in s, ascending. A video shorter than the clip repeats its end.

    >>> clip_times(0.5, length=0.2, frames=3, stride=3)
    array([0. , 0.1, 0.2])
    """
    room = max(0.0, length - clip_span(frames, stride))
    times = position * room + np.arange(frames) * stride / REFERENCE_FPS
    return np.minimum(times, length)


def uniform_positions(clips: int) -> list[float]:
    """Positions of evenly spread clips, for features and tests (the paper: 10 clips a video).

    >>> uniform_positions(3), uniform_positions(1)
    ([0.0, 0.5, 1.0], [0.5])
    """
    return [0.5] if clips == 1 else [i / (clips - 1) for i in range(clips)]


SEEK_FROM = 1.0  # s; before this, decoding from the beginning costs no more than a seek
SEEK_GAP = 2.0  # s between wanted frames from which a seek costs less than decoding them all
TAIL_TOLERANCE = 0.5  # s by which a header may promise more than the file holds
TICK = 1e-3  # s; Matroska and WebM round a frame's instant to it
REORDERED = 4  # frames over which the instants of an AVI may be out of order


class Source(Protocol):
    """What going through frames takes of a container."""

    def seek(self, offset: int, /, *, stream: VideoStream, backward: bool) -> None: ...

    def decode(self, stream: VideoStream, /) -> Iterator[VideoFrame]: ...


Instants = Callable[[float], Sequence[float] | np.ndarray]
Shape = Callable[[int, int], tuple[int, int]]


def read_frames(clip: Clip, instants: Instants, shape: Shape) -> np.ndarray:
    """The frames on screen at given instants of a clip.

    Args:
        clip: the file, and the part of it to look at.
        instants: from the length of that part in s to ascending instants from its beginning, in s.
        shape: from (width, height) in pixels as shown to the (width, height) to scale to.

    Returns:
        (T, H, W, 3) uint8, RGB, upright.

    Raises:
        VideoError: the file is missing, empty, cut, damaged, or has no video stream.
    """
    with open_video(clip.path) as (container, stream):
        begin, length = resolve_segment(clip, read_header(stream, clip.path))
        # A frame that begins where a part ends is not of it, though an instant may round up to it.
        last = begin + length - (2 * TICK if clip.end is not None else 0)
        wanted = [max(begin, min(begin + float(t), last)) for t in instants(length)]
        try:
            frames = list(frames_on_screen(container, stream, wanted, clip.path))
            # One reformatter for the clip: each frame has its own too, which sets up the scaler
            # anew and costs ten times as much.
            reformatter = VideoReformatter()
            pixels = [_pixels(frame, shape, reformatter) for frame in frames]
        except av.FFmpegError as error:
            raise InvalidVideoError(
                clip.path, VideoStatus.UNDECODABLE, f"damaged ({format_error(error)})"
            ) from error
    if len({of_frame.shape for of_frame in pixels}) > 1:
        raise InvalidVideoError(
            clip.path, VideoStatus.CORRUPT_FRAMES, "damaged: its frames change their proportions"
        )
    return np.stack(pixels)


def resolve_segment(clip: Clip, info: VideoInfo) -> tuple[float, float]:
    """Where in its file a clip begins, and how long it is, in s.

    Raises:
        VideoError: it begins where the video has ended.
    """
    begin = clip.start or 0.0
    end = min(info.duration if clip.end is None else clip.end, info.duration)
    if begin >= end:
        raise InvalidVideoError(
            clip.path,
            VideoStatus.OUTSIDE,
            f"the clip starts at {begin:g} s but the video ends at {info.duration:.2f} s",
        )
    return begin, end - begin


def frames_on_screen(
    container: InputContainer, stream: VideoStream, wanted: Sequence[float], path: str
) -> Iterator[VideoFrame]:
    """For each wanted instant, the last frame that begins at or before it."""
    frames = decode_from(container, stream, wanted[0])
    shown = next(frames, None)
    following = next(frames, None)
    for instant in wanted:
        if following is not None and instant - following[0] > SEEK_GAP:
            frames = decode_from(container, stream, instant)
            shown, following = next(frames, None), next(frames, None)
        while following is not None and following[0] <= instant + TICK:
            shown, following = following, next(frames, None)
        if shown is None or (following is None and instant > frame_end(*shown) + TAIL_TOLERANCE):
            ends = "it has no frames" if shown is None else f"its frames end at {shown[0]:.2f} s"
            raise InvalidVideoError(
                path,
                VideoStatus.CUT,
                f"cut: the header promises {duration(stream):.2f} s, but {ends}",
            )
        if shown[1].is_corrupt:
            raise InvalidVideoError(
                path,
                VideoStatus.CORRUPT_FRAMES,
                f"damaged: the frame at {shown[0]:.2f} s is corrupt",
            )
        yield shown[1]


def frame_end(seconds: float, frame: VideoFrame) -> float:
    """When a frame leaves the screen: a slide show's stay for seconds."""
    return seconds + float((frame.duration or 0) * (frame.time_base or 0))


def rotation_quarters(frame: VideoFrame) -> int:
    """Turns counterclockwise: phones film sideways and say so beside the pixels."""
    return round(frame.rotation / 90) % 4


def decode_from(
    container: Source, stream: VideoStream, instant: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with their seconds, beginning at or before ``instant`` where the file has such."""
    if instant >= SEEK_FROM:
        origin = stream.start_time or 0
        assert stream.time_base is not None
        container.seek(origin + int(instant / stream.time_base), stream=stream, backward=True)
        frames = _timed(container, stream)
        first = next(frames, None)
        if first is not None and first[0] <= instant + TICK:
            yield first
            yield from frames
            return
        # A wrong index or a cut file took the seek too far: go through it from the beginning.
        container.seek(origin, stream=stream, backward=True)
    yield from _timed(container, stream)


def _timed(container: Source, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    stamped = _stamped(container, stream)
    jumps = stream.container.format.name == "avi" and stream.codec_context.has_b_frames
    return _in_order(stamped) if jumps else stamped


def _stamped(container: Source, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    tick = float(stream.time_base or 0)
    origin = stream.start_time or 0
    step = 1 / float(stream.average_rate or 30)
    seconds = -step
    for frame in container.decode(stream):
        stamp = frame.pts if frame.pts is not None else frame.dts
        seconds = seconds + step if stamp is None else (stamp - origin) * tick
        yield seconds, frame


def _in_order(decoded: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Give the frames, which come in order, instants in order.

    AVI keeps none. Those guessed for a file with B-frames packed two to a chunk, as many of Xvid
    are, jump to and fro; frames would be lost as if they were late.
    """
    frames: deque[VideoFrame] = deque()
    instants: list[float] = []
    for seconds, frame in decoded:
        frames.append(frame)
        heappush(instants, seconds)
        if len(frames) > REORDERED:
            yield heappop(instants), frames.popleft()
    for frame in frames:
        yield heappop(instants), frame


def _pixels(frame: VideoFrame, shape: Shape, reformatter: VideoReformatter) -> np.ndarray:
    turns = rotation_quarters(frame)
    sideways = turns % 2 == 1
    shown = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    width, height = shape(*shown)
    if sideways:
        width, height = height, width
    scaled = reformatter.reformat(
        frame, width, height, format="rgb24", interpolation="BILINEAR", threads=1
    )
    pixels: np.ndarray = scaled.to_ndarray()
    return np.rot90(pixels, turns) if turns else pixels


def check_frame_array(frames: np.ndarray, name: str) -> None:
    """See that an array is a video.

    Raises:
        VideoError: it is not (T, H, W, 3) uint8, or holds nothing.
    """
    shaped = frames.ndim == 4 and frames.shape[-1] == 3 and frames.size > 0
    if not shaped or frames.dtype != np.uint8:
        raise VideoError(
            f"{name} is {frames.dtype} of shape {frames.shape}; a video in memory is uint8 of "
            "shape (frames, height, width, 3), RGB"
        )


def array_frames(
    frames: np.ndarray, instants: np.ndarray, shape: Callable[[int, int], tuple[int, int]]
) -> np.ndarray:
    """The frames on screen at given instants.

    Args:
        frames: (T, H, W, 3) uint8, RGB, 30 a second.
        instants: in s.
        shape: from (width, height) in pixels to the (width, height) to scale to.

    Returns:
        (instants, H', W', 3) uint8.
    """
    height, width = frames.shape[1:3]
    wanted = shape(width, height)
    reformatter = VideoReformatter()
    places = np.minimum(np.floor(instants * REFERENCE_FPS + 1e-6).astype(int), len(frames) - 1)
    scaled = [
        reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[place]), format="rgb24"),
            *wanted,
            format="rgb24",
            interpolation="BILINEAR",
        ).to_ndarray()
        for place in places
    ]
    return np.stack(scaled)
