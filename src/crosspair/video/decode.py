"""Choose the times of a clip's frames in s, independent of the frame rate, and decode the frames shown then."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter

from crosspair.config import Clip
from crosspair.errors import SYSTEM_ERRORS, TRY_LATER, InvalidVideoError, VideoError, VideoStatus, format_error
from crosspair.video.container import TAIL_TOLERANCE, TICK, OpenVideo, VideoInfo, check_size, open_video

REFERENCE_FPS = 30.0  # the paper's strides count frames of 30 FPS video (Section 3.3)
SEEK_FROM = 1.0  # s; before this, decoding from the beginning is as fast as a seek
SEEK_GAP = 2.0  # s between two times from which a seek costs less than decoding in between
REFRESH = 8.0  # s of decoding after which pictures without key frames (periodic intra refresh) are complete
REORDER_WINDOW = 4  # frames across which the timestamps of an AVI may be out of order

FrameTimes = Callable[[float], Sequence[float] | np.ndarray]
FrameSize = Callable[[float, float], tuple[float, float]]


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


def read_frames(clip: Clip, times: FrameTimes, size: FrameSize, key_frame_age: float | None = None) -> np.ndarray:
    """Decode the frames shown at given times of a clip.

    Args:
        clip: the file and the segment to read.
        times: maps the length of the segment in s to ascending times from its beginning, in s.
        size: maps the displayed (width, height) in pixels to the output (width, height).
        key_frame_age: read key frames instead, at most so many s away, see `key_frames_on_screen`.

    Returns:
        (T, H, W, 3) uint8, RGB, rotated upright.

    Raises:
        VideoError: the file is missing, empty, cut, damaged, has no video stream, or lacks the key frames.
    """
    with open_video(clip.path) as video:
        begin, length = resolve_segment(clip, video.info)
        # A frame that begins at the segment's end is excluded, even if a time rounds up to it.
        last = begin + length - (2 * TICK if clip.end is not None else 0)
        wanted = [max(begin, min(begin + float(t), last)) for t in times(length)]
        try:
            converter, pixels = FrameConverter(clip.path), list[np.ndarray]()
            if key_frame_age is None:
                frames = frames_on_screen(video, wanted)
            else:
                frames = key_frames_on_screen(video, wanted, (begin, begin + length), key_frame_age)
            previous = None
            for frame in frames:
                if not pixels:  # the first frame sets the size of all, as the stored size may change
                    width, height = map(round, size(*displayed_size(frame, video)))
                pixels.append(pixels[-1] if frame is previous else converter.to_rgb(frame, width, height))
                previous = frame
        except av.FFmpegError as error:
            if error.errno in (*SYSTEM_ERRORS, errno.EIO):  # of the disk or a network file system
                reason = f"cannot be read ({format_error(error)}){TRY_LATER}"
                raise InvalidVideoError(clip.path, VideoStatus.UNREADABLE, reason) from error
            raise InvalidVideoError(clip.path, VideoStatus.UNDECODABLE, f"damaged ({format_error(error)})") from error
    return np.stack(pixels)


def probe(path: str) -> VideoInfo:
    """Read the header of a video file or URL, and the size of its first frame as displayed.

    Raises:
        VideoError: the file is missing, empty, not a video, or has no video stream.
    """
    with open_video(path) as video:
        return displayed_info(video)


def displayed_info(video: OpenVideo) -> VideoInfo:
    """Return the header with the displayed size of the first frame, leaving the video at its beginning.

    Raises:
        VideoError: the frame's colours cannot be converted.
    """
    log = DecodeLog()
    for _, frame in decode_from(video, 0.0, log):
        FrameConverter(video.path).to_rgb(frame, 16, 16)
        width, height = map(round, displayed_size(frame, video))
        video.rewind()
        return replace(video.info, width=width, height=height)
    video.rewind()
    return video.info


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
    converter = FrameConverter("array")
    selected = [av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[i]), format="rgb24") for i in indices]
    width, height = map(round, size(frames.shape[2], frames.shape[1]))
    return np.stack([converter.to_rgb(frame, width, height) for frame in selected])


def check_frame_array(frames: np.ndarray, name: str) -> None:
    """Raise VideoError unless an array is a video in memory: (T, H, W, 3) uint8, not empty."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0 or frames.dtype != np.uint8:
        raise VideoError(
            f"{name} is {frames.dtype} of shape {frames.shape}; a video in memory is uint8 of "
            "shape (frames, height, width, 3), RGB"
        )


def frames_on_screen(video: OpenVideo, times: Sequence[float]) -> Iterator[VideoFrame]:
    """Yield, for each of the ascending times in s, the last frame that begins at or before it, else the first frame.

    Raises:
        VideoError: the video ends earlier than its header says, or a frame is corrupt.
    """
    frames = decode_from(video, times[0])
    current = next(frames, None)
    following = next(frames, None)
    for time in times:
        if following is not None and time - following[0] > SEEK_GAP and not video.is_sequential:
            frames = decode_from(video, time)
            current, following = next(frames, None), next(frames, None)
        while following is not None and following[0] <= time + TICK:
            current, following = following, next(frames, None)
        if current is None or (following is None and time > frame_end(*current) + TAIL_TOLERANCE):
            end = "it has no frames" if current is None else f"the frames end at {current[0]:.2f} s"
            reason = f"cut: the header gives {video.info.duration:.2f} s, but {end}"
            raise InvalidVideoError(video.path, VideoStatus.CUT, reason)
        if current[1].is_corrupt:
            reason = f"damaged: the frame at {current[0]:.2f} s is corrupt"
            raise InvalidVideoError(video.path, VideoStatus.CORRUPT_FRAMES, reason)
        yield current[1]


def key_frames_on_screen(
    video: OpenVideo, times: Sequence[float], segment: tuple[float, float], max_age: float
) -> Iterator[VideoFrame]:
    """Yield, for each of the ascending times in s, the last key frame that begins at or before it.

    Only these key frames are decoded, each alone. Key frames outside of the segment are not used; until the first one
    inside begins, it is used in advance.

    Args:
        video: at its beginning.
        times: in s, within the segment.
        segment: beginning and end in s.
        max_age: maximum distance in s between a time and its key frame.

    Raises:
        InvalidVideoError: a time has no such key frame, or a key frame depends on other frames, as with periodic intra
            refresh. Decode all frames instead.
    """
    decoded = frame = None
    for packet in _key_packets(video, times, segment, max_age):
        if packet is not decoded:
            context = video.stream.codec_context
            frames = [*packet.decode(), *context.decode(None)]
            context.flush_buffers()
            frame = next((each for each in frames if each.key_frame and each.pict_type == PictureType.I), None)
            decoded = packet
        if frame is None or frame.is_corrupt:
            raise _no_key_frame(video)
        yield frame


def _key_packets(
    video: OpenVideo, times: Sequence[float], segment: tuple[float, float], max_age: float
) -> Iterator[Packet[Any]]:
    """Yield the packet of the key frame of each time, see `key_frames_on_screen`."""
    if video.container.format.name == "avi" and video.stream.codec_context.has_b_frames:
        raise _no_key_frame(video)  # its time stamps are guessed
    first = max(segment[0], video.lead)
    earliest = max(first, times[0] - max_age)
    if earliest >= SEEK_FROM and earliest > video.lead and not video.is_sequential:
        video.seek(earliest)
    waiting, shown, end, longest = deque(times), -math.inf, 0.0, 0
    key: Packet[Any] | None = None  # the last one, shown from ``shown`` on
    for packet in video.packets():
        if packet.pts is None or packet.size == 0:
            continue
        begin = video.seconds(packet.pts)
        # All packets before a key frame begin before it: later key frames begin after this packet.
        while waiting and waiting[0] + TICK < begin and (key or waiting[0] + max_age < begin):
            early = shown > waiting[0] + TICK and earliest > first  # where earlier key frames were not searched
            if key is None or early or abs(waiting.popleft() - shown) > max_age + TICK:
                raise _no_key_frame(video)
            yield key
        if not waiting:
            return
        if packet.is_keyframe and not packet.is_discard and segment[0] - TICK <= begin < segment[1]:
            key, shown = packet, begin
        end, longest = max(end, begin), max(longest, packet.duration or 0)
    end += longest * float(video.stream.time_base or 0) + TAIL_TOLERANCE
    for time in waiting:
        if key is None or abs(time - shown) > max_age + TICK or time > end:
            raise _no_key_frame(video)
        yield key


def _no_key_frame(video: OpenVideo) -> InvalidVideoError:
    return InvalidVideoError(video.path, VideoStatus.UNDECODABLE, "its key frames are too sparse, or not usable alone")


def frame_end(seconds: float, frame: VideoFrame) -> float:
    """Return the time in s when a frame shown from ``seconds`` on is replaced, from its stored duration."""
    return seconds + float((frame.duration or 0) * (frame.time_base or 0))


@dataclass
class DecodeLog:
    """Packets that were decoded since the last seek."""

    failed: list[tuple[float, str]] = field(default_factory=list)  # time in s and error
    packets: int = 0  # that should give a visible frame


def decode_from(video: OpenVideo, begin: float, log: DecodeLog | None = None) -> Iterator[tuple[float, VideoFrame]]:
    """Yield frames with their times in s, starting at or before ``begin`` if possible.

    With a log, packets that cannot be decoded are recorded and skipped.
    """
    if begin >= SEEK_FROM and begin > video.lead:
        # A seek by decoding time, or by a wrong index, may go too far: seek earlier.
        back = settle = 0.0
        while back < begin - video.lead and not video.is_sequential:
            first = None
            with suppress(av.FFmpegError):  # some demuxers refuse a time, or go to a packet that cannot be decoded
                video.seek(begin - back)
                packets = _skip_packets(video, begin - settle) if video.is_transport else video.packets()
                frames = _timed_frames(video, packets, log)
                first = next(frames, None)
            if first is not None and first[0] <= begin - settle + TICK:
                if settle or first[1].pict_type != PictureType.P:
                    yield first
                    yield from frames
                    return
                settle = REFRESH
            back = max(2 * back, settle, 1.0)
        video.rewind()
    yield from _timed_frames(video, _skip_packets(video, begin) if video.is_sequential else video.packets(), log)


def _skip_packets(video: OpenVideo, begin: float) -> Iterator[Packet[Any]]:
    """Yield the packets from the last key frame before a time in s on; after a seek, none without such a frame."""
    packets = video.packets()
    group: list[Packet[Any]] = []
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and video.seconds(packet.pts) <= begin:
            group.clear()
        group.append(packet)
        if packet.dts is not None and video.seconds(packet.dts) > begin:
            break
    if video.is_sequential or (group and group[0].is_keyframe):
        yield from group
        yield from packets


def _timed_frames(
    video: OpenVideo, packets: Iterator[Packet[Any]], log: DecodeLog | None
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (time in s, frame) in the order of presentation."""
    frames = _decode_with_times(video, packets, log)
    unordered = video.container.format.name == "avi" and video.stream.codec_context.has_b_frames
    return _sort_times(frames) if unordered else frames


def _decode_with_times(
    video: OpenVideo, packets: Iterator[Packet[Any]], log: DecodeLog | None
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (time in s, frame); missing time stamps are extrapolated from the frame rate."""
    if log is not None:
        log.failed, log.packets = [], 0
    step = 1 / (video.info.fps or REFERENCE_FPS)
    seconds, arrival = -step, 0.0
    started = False  # at a key frame
    frame: VideoFrame | None = None
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            stamp = packet.pts if packet.pts is not None else packet.dts
            arrival = arrival if stamp is None else video.seconds(stamp)
            started |= packet.is_keyframe
            if packet.size == 0 and stamp is not None:  # repeats the last frame, in AVI and Theora
                if frame is not None and not video.stream.codec_context.has_b_frames:
                    seconds = arrival
                    yield seconds, frame
                continue
            if log is not None:
                log.packets += started and packet.size > 0 and not packet.is_discard
            decoded = packet.decode()
        except av.FFmpegError as error:
            if log is None:
                raise
            log.failed.append((arrival, format_error(error)))
            continue
        for frame in decoded:
            stamp = frame.pts if frame.pts is not None else frame.dts
            seconds = seconds + step if stamp is None else video.seconds(stamp)
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


# --- geometry and colours -----------------------------------------------------------------------

BT709 = 1  # colour matrix
BT2020_LUMA = np.array([0.2627, 0.678, 0.0593], np.float32)
PQ, HLG = 16, 18  # transfer functions of HDR video
WHITE, PEAK = 203.0, 1000.0  # cd/m² of diffuse white (BT.2408) and of the brightest highlights
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
CONVERTIBLE = frozenset({0, 1, 2, 4, 5, 6, 7, 9})  # colour matrices that swscale knows
SQUARENESS = 8  # of pixels: a header with a more extreme aspect ratio is damaged


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return what displays a frame upright: whether to transpose it, then to mirror it in x, and in y."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def turn_upright(plane: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Rotate and mirror (H, W) or (H, W, 3) pixels of a frame as its metadata says."""
    transposed, in_x, in_y = orientation(frame)
    plane = plane.swapaxes(0, 1) if transposed else plane
    return plane[:: -1 if in_y else 1, :: -1 if in_x else 1]


def pixel_aspect(video: OpenVideo) -> Fraction:
    """Return width / height of a stored pixel, 1 if unknown."""
    ratio = video.stream.sample_aspect_ratio
    return ratio if ratio and 1 / SQUARENESS <= ratio <= SQUARENESS else Fraction(1)


def displayed_size(frame: VideoFrame, video: OpenVideo) -> tuple[float, float]:
    """Return the (width, height) of a frame with square pixels, upright; not rounded.

    Raises:
        InvalidVideoError: the size is absurd.
    """
    check_size(frame.width, frame.height, video.path)  # it may differ from the header's
    aspect = pixel_aspect(video)
    width, height = frame.width if aspect == 1 else float(frame.width * aspect), frame.height
    return (height, width) if orientation(frame)[0] else (width, height)


class FrameConverter:
    """Resizes frames and converts their colours: one for each video, as setting up a scaler takes time.

    PQ and HLG are tone-mapped to BT.709.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reformatter, self._mapper = VideoReformatter(), VideoReformatter()

    def to_rgb(self, frame: VideoFrame, width: int, height: int) -> np.ndarray:
        """Return (height, width, 3) uint8, RGB, upright."""
        if orientation(frame)[0]:
            width, height = height, width
        return turn_upright(self.resize(frame, width, height, "rgb24", "BILINEAR").to_ndarray(), frame)

    def resize(
        self, frame: VideoFrame, width: int, height: int, pixels: str, method: str, **options: Any
    ) -> VideoFrame:
        """Resize a frame as stored, and convert it to a pixel format; ``options`` are PyAV's.

        Raises:
            InvalidVideoError: its colour matrix is not supported.
        """
        if int(frame.colorspace) not in CONVERTIBLE:
            reason = f"the colour matrix {frame.colorspace!s} cannot be converted"
            raise InvalidVideoError(self._path, VideoStatus.UNDECODABLE, reason)
        if int(frame.color_trc) not in (PQ, HLG):
            return self._reformatter.reformat(
                frame, width, height, format=pixels, interpolation=method, threads=1, **options
            )
        codes = self._reformatter.reformat(frame, width, height, format="rgb48le", interpolation=method, threads=1)
        mapped = VideoFrame.from_ndarray(tone_map(codes.to_ndarray(), int(frame.color_trc)), format="rgb24")
        return self._mapper.reformat(mapped, format=pixels, dst_colorspace=BT709, threads=1, **options)


def tone_map(codes: np.ndarray, transfer: int) -> np.ndarray:
    """Convert HDR colours (BT.2020) to BT.709, with diffuse white at about three quarters of the range.

    Args:
        codes: (H, W, 3) uint16, RGB.
        transfer: `PQ` (SMPTE ST 2084) or `HLG` (ARIB STD-B67).

    Returns:
        (H, W, 3) uint8, RGB.
    """
    code = codes.astype(np.float32) / 65535
    if transfer == PQ:
        root = code ** (1 / 78.84375)
        light = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    else:
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = 1000 * scene * (scene @ BT2020_LUMA)[..., None] ** 0.2
    light = light / WHITE
    brightest = light.max(axis=-1, keepdims=True)
    light = light * (1 + brightest / (PEAK / WHITE) ** 2) / (1 + brightest)  # Reinhard's curve keeps the hue
    display = np.clip(light @ BT2020_TO_BT709.T, 0, 1) ** (1 / 2.4)
    rgb: np.ndarray = np.rint(255 * display).astype(np.uint8)
    return rgb
