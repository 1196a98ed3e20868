"""Choose the times of a clip's frames in s, independent of the frame rate, and decode the frames shown then."""

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
from crosspair.errors import InvalidVideoError, VideoError, VideoStatus, format_error
from crosspair.video.container import VideoInfo, duration, open_video, read_header

REFERENCE_FPS = 30.0  # the paper's strides count frames of 30 FPS video (Section 3.3)
SEEK_FROM = 1.0  # s; before this, decoding from the beginning is as fast as a seek
SEEK_GAP = 2.0  # s between two times from which a seek costs less than decoding in between
TAIL_TOLERANCE = 0.5  # s by which a header's length may exceed the frames' end
TICK = 1e-3  # s; resolution of timestamps in Matroska and WebM
REORDER_WINDOW = 4  # frames across which the timestamps of an AVI may be out of order

FrameTimes = Callable[[float], Sequence[float] | np.ndarray]
FrameSize = Callable[[int, int], tuple[int, int]]


def clip_span(frames: int, stride: int) -> float:
    """Return the time in s from the first to the last frame of a clip.

    >>> round(clip_span(frames=8, stride=4), 3)
    0.933
    """
    return (frames - 1) * stride / REFERENCE_FPS


def clip_times(position: float, length: float, frames: int, stride: int) -> np.ndarray:
    """Return the times (frames,) of a clip's frames in s, ascending; times past the end of a short video are its end.

    Args:
        position: position of the clip in the video, 0 (at the beginning) to 1 (at the end).
        length: length of the video in s.
        frames: number of frames (8 in the paper; 16 for fine-tuning).
        stride: distance between frames in 1/30 s (4 in the paper).

    >>> clip_times(0.5, length=0.2, frames=3, stride=3)
    array([0. , 0.1, 0.2])
    """
    room = max(0.0, length - clip_span(frames, stride))
    times = position * room + np.arange(frames) * stride / REFERENCE_FPS
    return np.minimum(times, length)


def uniform_positions(clips: int) -> list[float]:
    """Return evenly spaced positions, 0 to 1, of the clips of a video (10 in the paper's tests).

    >>> uniform_positions(3), uniform_positions(1)
    ([0.0, 0.5, 1.0], [0.5])
    """
    return [0.5] if clips == 1 else [i / (clips - 1) for i in range(clips)]


def read_frames(clip: Clip, times: FrameTimes, size: FrameSize) -> np.ndarray:
    """Decode the frames shown at given times of a clip.

    Args:
        clip: the file and the segment to read.
        times: maps the length of the segment in s to ascending times from its beginning, in s.
        size: maps the displayed (width, height) in pixels to the output (width, height).

    Returns:
        (T, H, W, 3) uint8, RGB, rotated upright.

    Raises:
        VideoError: the file is missing, empty, cut, damaged, or has no video stream.
    """
    with open_video(clip.path) as (container, stream):
        begin, length = resolve_segment(clip, read_header(stream, clip.path))
        # A frame that begins at the segment's end is excluded, even if a time rounds up to it.
        last = begin + length - (2 * TICK if clip.end is not None else 0)
        wanted = [max(begin, min(begin + float(t), last)) for t in times(length)]
        try:
            frames = list(frames_on_screen(container, stream, wanted, clip.path))
            # One reformatter for the clip: a frame's own would set up the scaler each time, which is ten times slower.
            reformatter = VideoReformatter()
            pixels = [_to_rgb(frame, size, reformatter) for frame in frames]
        except av.FFmpegError as error:
            raise InvalidVideoError(clip.path, VideoStatus.UNDECODABLE, f"damaged ({format_error(error)})") from error
    if len({frame.shape for frame in pixels}) > 1:
        raise InvalidVideoError(clip.path, VideoStatus.CORRUPT_FRAMES, "damaged: the frames' proportions change")
    return np.stack(pixels)


def resolve_segment(clip: Clip, info: VideoInfo) -> tuple[float, float]:
    """Return the beginning and the length of a clip's segment in s; VideoError if it begins after the video's end."""
    begin = clip.start or 0.0
    end = min(info.duration if clip.end is None else clip.end, info.duration)
    if begin >= end:
        reason = f"the clip starts at {begin:g} s but the video ends at {info.duration:.2f} s"
        raise InvalidVideoError(clip.path, VideoStatus.OUTSIDE, reason)
    return begin, end - begin


def array_frames(frames: np.ndarray, times: np.ndarray, size: FrameSize) -> np.ndarray:
    """Select the frames shown at given times from a video in memory, and resize them.

    Args:
        frames: (T, H, W, 3) uint8, RGB, 30 frames per second.
        times: (N,) in s.
        size: maps (width, height) in pixels to the output (width, height).

    Returns:
        (N, H', W', 3) uint8.
    """
    indices = np.minimum(np.floor(times * REFERENCE_FPS + 1e-6).astype(int), len(frames) - 1)
    reformatter = VideoReformatter()
    selected = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[i]), format="rgb24") for i in indices)
    return np.stack([_to_rgb(frame, size, reformatter) for frame in selected])


def check_frame_array(frames: np.ndarray, name: str) -> None:
    """Raise VideoError unless an array is a video in memory: (T, H, W, 3) uint8, not empty."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0 or frames.dtype != np.uint8:
        raise VideoError(
            f"{name} is {frames.dtype} of shape {frames.shape}; a video in memory is uint8 of "
            "shape (frames, height, width, 3), RGB"
        )


class FrameSource(Protocol):
    """Methods of a container that decoding uses."""

    def seek(self, offset: int, /, *, stream: VideoStream, backward: bool) -> None: ...

    def decode(self, stream: VideoStream, /) -> Iterator[VideoFrame]: ...


def frames_on_screen(
    container: InputContainer, stream: VideoStream, times: Sequence[float], path: str
) -> Iterator[VideoFrame]:
    """Yield, for each of the ascending times in s, the last frame that begins at or before it.

    Raises:
        VideoError: the video ends earlier than its header says, or a frame is corrupt.
    """
    frames = decode_from(container, stream, times[0])
    current = next(frames, None)
    following = next(frames, None)
    for time in times:
        if following is not None and time - following[0] > SEEK_GAP:
            frames = decode_from(container, stream, time)
            current, following = next(frames, None), next(frames, None)
        while following is not None and following[0] <= time + TICK:
            current, following = following, next(frames, None)
        if current is None or (following is None and time > frame_end(*current) + TAIL_TOLERANCE):
            end = "it has no frames" if current is None else f"the frames end at {current[0]:.2f} s"
            raise InvalidVideoError(path, VideoStatus.CUT, f"cut: the header gives {duration(stream):.2f} s, but {end}")
        if current[1].is_corrupt:
            reason = f"damaged: the frame at {current[0]:.2f} s is corrupt"
            raise InvalidVideoError(path, VideoStatus.CORRUPT_FRAMES, reason)
        yield current[1]


def frame_end(seconds: float, frame: VideoFrame) -> float:
    """Return the time in s when a frame shown from ``seconds`` on is replaced, from its stored duration."""
    return seconds + float((frame.duration or 0) * (frame.time_base or 0))


def rotation_quarters(frame: VideoFrame) -> int:
    """Return the counterclockwise quarter turns that display a frame upright, from its metadata."""
    return round(frame.rotation / 90) % 4


def decode_from(container: FrameSource, stream: VideoStream, begin: float) -> Iterator[tuple[float, VideoFrame]]:
    """Yield frames with their times in s, starting at or before ``begin`` if possible."""
    if begin >= SEEK_FROM:
        origin = stream.start_time or 0
        assert stream.time_base is not None
        container.seek(origin + int(begin / stream.time_base), stream=stream, backward=True)
        frames = _timed_frames(container, stream)
        first = next(frames, None)
        if first is not None and first[0] <= begin + TICK:
            yield first
            yield from frames
            return
        # The seek went too far (wrong index or cut file): decode from the beginning instead.
        container.seek(origin, stream=stream, backward=True)
    yield from _timed_frames(container, stream)


def _timed_frames(container: FrameSource, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds from the start, frame) in the order of presentation."""
    frames = _decode_with_times(container, stream)
    unordered = stream.container.format.name == "avi" and stream.codec_context.has_b_frames
    return _sort_times(frames) if unordered else frames


def _decode_with_times(container: FrameSource, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds from the start, frame); missing time stamps are extrapolated from the frame rate."""
    tick = float(stream.time_base or 0)
    origin = stream.start_time or 0
    step = 1 / float(stream.average_rate or 30)
    seconds = -step
    for frame in container.decode(stream):
        stamp = frame.pts if frame.pts is not None else frame.dts
        seconds = seconds + step if stamp is None else (stamp - origin) * tick
        yield seconds, frame


def _sort_times(decoded: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Assign times in ascending order to frames, which are in order already."""
    # AVI stores no timestamps. The guessed ones are out of order if B-frames are packed two to a chunk, as in many
    # Xvid files; frames would then be dropped as late.
    frames: deque[VideoFrame] = deque()
    times: list[float] = []
    for seconds, frame in decoded:
        frames.append(frame)
        heappush(times, seconds)
        if len(frames) > REORDER_WINDOW:
            yield heappop(times), frames.popleft()
    for frame in frames:
        yield heappop(times), frame


def _to_rgb(frame: VideoFrame, size: FrameSize, reformatter: VideoReformatter) -> np.ndarray:
    """Resize a frame, convert it to RGB (H, W, 3) and rotate it upright."""
    turns = rotation_quarters(frame)
    sideways = turns % 2 == 1
    displayed = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    width, height = size(*displayed)
    if sideways:
        width, height = height, width
    scaled = reformatter.reformat(frame, width, height, format="rgb24", interpolation="BILINEAR", threads=1)
    pixels: np.ndarray = scaled.to_ndarray()
    return np.rot90(pixels, turns) if turns else pixels
