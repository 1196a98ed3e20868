"""Whether a video is what its header says, and whether every frame of it can be decoded."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from crosspair.errors import CheckResult, InvalidVideoError, VideoStatus
from crosspair.video.container import VideoInfo, format_error, open_video, read_header, signature
from crosspair.video.decode import TAIL_TOLERANCE, TICK, clip_span, decode_from, frame_end
from crosspair.workers import extend_timeout

SIDES = (8, 16384)  # pixels; beyond these a header is not to be believed
RATES = (1.0, 480.0)  # frames a second
CLIP = clip_span(frames=8, stride=4)  # s, the paper's
LENGTH_TOLERANCE = 0.02  # share of frames by which a header may be wrong without a word
VANISHING = 0.1  # share of packets that may give no frame: VP8 has such on purpose
NEAR = 10.0  # s between two parts that are gone through at once, as a seek might not be exact
LONGEST = 24 * 3600.0  # s that a header can claim to need for decoding

Segment = tuple[float | None, float | None]

CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": {".mp4", ".m4v", ".mov", ".3gp"},
    "matroska,webm": {".mkv", ".webm"},
    "avi": {".avi"},
    "flv": {".flv"},
    "mpegts": {".ts", ".mts", ".m2ts", ".mpg", ".mpeg"},
    "mpeg": {".mpg", ".mpeg", ".vob"},
    "mpegvideo": {".mpg", ".mpeg"},
    "ogg": {".ogv"},
    "asf": {".wmv", ".asf"},
}
SUFFIXES = frozenset().union(*CONTAINERS.values())


def inspect(
    path: str, parts: Sequence[Segment], *, decode: bool
) -> tuple[VideoInfo | None, list[CheckResult]]:
    """Look at a video, whatever state it is in.

    Args:
        path: a file or URL.
        parts: (start, end) in s, as in `Clip`.
        decode: decode every frame of the parts, too; what parts share is decoded once.

    Returns:
        What the header says, or None where it cannot be read; a verdict for each part. Where a
        whole video was decoded well and its header is wrong about its length, the length found.
    """
    info = None
    try:
        with open_video(path) as (container, stream):
            info = read_header(stream, path)
            spans = [_span(part, info) for part in parts]
            verdicts = [_of_header(container, info, path, span) for span in spans]
            if decode:
                good = [i for i, verdict in enumerate(verdicts) if not verdict.kind.broken]
                stretches = _stretches([spans[i] for i in good], info)
                extend_timeout(min(LONGEST, sum(min(e, info.duration) - b for b, e in stretches)))
                seen = [_go_through(container, stream, *stretch) for stretch in stretches]
                for i in good:
                    of_part = next(each for each in reversed(seen) if each.begin <= spans[i][0])
                    verdicts[i] = _of_frames(of_part, spans[i], info, verdicts[i])
                    if parts[i] == (None, None):
                        info, verdicts[i] = _of_whole(
                            of_part, info, stream.frames, path, verdicts[i]
                        )
    except InvalidVideoError as error:
        return info, [CheckResult(error.kind, error.reason)] * len(parts)
    except av.FFmpegError as error:
        return info, [
            CheckResult(VideoStatus.UNDECODABLE, f"damaged ({format_error(error)})")
        ] * len(parts)
    return info, verdicts


def inspect_job(
    job: tuple[str, Sequence[Segment], bool],
) -> tuple[dict[str, Any], list[CheckResult]]:
    """`inspect` for `crosspair.workers`: whoever asks need not import a decoder.

    Args:
        job: path, parts, whether to decode.

    Returns:
        The fields of `VideoInfo` or none, and a verdict for each part.
    """
    path, parts, decode = job
    info, verdicts = inspect(path, parts, decode=decode)
    return asdict(info) if info else {}, verdicts


Span = tuple[float, float]


def _span(part: Segment, info: VideoInfo) -> Span:
    start, end = part
    return start or 0.0, info.duration if end is None else min(end, info.duration)


def _of_header(container: InputContainer, info: VideoInfo, path: str, span: Span) -> CheckResult:
    """The verdict without decoding."""
    begin, end = span
    if not all(SIDES[0] <= side <= SIDES[1] for side in (info.width, info.height)):
        return CheckResult(
            VideoStatus.ABSURD_SIZE, f"the header gives a size of {info.width}×{info.height} pixels"
        )
    if begin >= end:
        return CheckResult(
            VideoStatus.OUTSIDE,
            f"the clip starts at {begin:g} s but the video ends at {info.duration:.2f} s",
        )
    notes = []
    suffix = PurePosixPath(path.split("::")[0].split("?")[0]).suffix.lower()
    if suffix in SUFFIXES and suffix not in CONTAINERS.get(container.format.name, ()):
        reason = f"it is {container.format.long_name}, not {suffix}"
        notes.append(CheckResult(VideoStatus.WRONG_CONTAINER, reason))
    if not RATES[0] <= info.fps <= RATES[1]:
        notes.append(
            CheckResult(VideoStatus.ODD_RATE, f"the header gives {info.fps:g} frames a second")
        )
    if end - begin < CLIP - TICK:
        reason = (
            f"{end - begin:.2f} s, shorter than a clip of {CLIP:.2f} s (8 frames, 4/30 s apart): "
            "training repeats its last frame"
        )
        notes.append(CheckResult(VideoStatus.SHORT, reason))
    return _all_of(notes)


def _all_of(notes: Sequence[CheckResult]) -> CheckResult:
    """One verdict, of the first note's kind, that tells all."""
    if not notes:
        return CheckResult(VideoStatus.FINE)
    return CheckResult(notes[0].kind, "; ".join(note.reason for note in notes if note.reason))


def _stretches(spans: Sequence[Span], info: VideoInfo) -> list[Span]:
    """The spans in their order, those that overlap or lie near each other as one.

    One that ends with the video goes on for as long as there are frames.
    """
    merged: list[Span] = []
    for begin, end in sorted((b, math.inf if e == info.duration else e) for b, e in spans):
        if merged and begin <= merged[-1][1] + NEAR:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


@dataclass
class _Seen:
    """What was found on the way through a stretch, all in s from the video's beginning."""

    begin: float
    frames: list[float] = field(default_factory=list)
    corrupt: list[float] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    packets: int = 0
    end: float = 0.0


def _go_through(container: InputContainer, stream: VideoStream, begin: float, end: float) -> _Seen:
    seen = _Seen(begin)
    source = _Forgiving(container)
    for seconds, frame in decode_from(source, stream, begin):
        seen.end = max(seen.end, frame_end(seconds, frame))
        if seconds >= end:
            break
        seen.frames.append(seconds)
        if frame.is_corrupt:
            seen.corrupt.append(seconds)
    seen.frames.sort()
    seen.failed, seen.packets = source.failed, source.packets
    return seen


class _Forgiving:
    """A container whose decoder goes on after what it cannot decode, and notes it."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self.failed: list[tuple[float, str]] = []
        self.packets = 0  # that hold a frame to be shown

    def seek(self, offset: int, /, *, stream: VideoStream, backward: bool) -> None:
        self.failed.clear()
        self.packets = 0
        self._container.seek(offset, stream=stream, backward=backward)

    def decode(self, stream: VideoStream, /) -> Iterator[VideoFrame]:
        origin, tick = stream.start_time or 0, float(stream.time_base or 0)
        seconds = 0.0
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
                stamp = packet.pts if packet.pts is not None else packet.dts
                seconds = seconds if stamp is None else (stamp - origin) * tick
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.failed.append((seconds, format_error(error)))
                return
            self.packets += packet.size > 0 and not packet.is_discard
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self.failed.append((seconds, format_error(error)))


def _of_frames(seen: _Seen, span: Span, info: VideoInfo, verdict: CheckResult) -> CheckResult:
    """The verdict after decoding a part, which had ``verdict`` by its header."""
    begin, end = span
    if not seen.frames and seen.failed:
        return CheckResult(
            VideoStatus.UNDECODABLE, f"no frame can be decoded ({seen.failed[0][1]})"
        )
    if not seen.frames or seen.end < end - TAIL_TOLERANCE:
        ends = f"its frames end at {seen.end:.2f} s" if seen.frames else "it has no frames"
        return CheckResult(
            VideoStatus.CUT, f"cut: the header promises {info.duration:.2f} s, but {ends}"
        )
    # The frame that is on the screen when the part begins has come before.
    first = max(0, bisect_right(seen.frames, begin + TICK) - 1)
    last = bisect_left(seen.frames, end)
    from_on = seen.frames[first]
    bad = [*seen.corrupt, *(seconds for seconds, _ in seen.failed)]
    bad = [seconds for seconds in bad if from_on <= seconds < end]
    if bad:
        return CheckResult(
            VideoStatus.CORRUPT_FRAMES,
            f"damaged: {len(bad)} of {max(last - first, len(bad))} frames are corrupt, "
            f"the first at {min(bad):.2f} s",
        )
    return verdict


def _of_whole(
    seen: _Seen, info: VideoInfo, promised: int, path: str, verdict: CheckResult
) -> tuple[VideoInfo, CheckResult]:
    """The verdict on a whole video, whose header promises so many frames (0: it says nothing)."""
    if verdict.kind.broken and verdict.kind is not VideoStatus.CORRUPT_FRAMES:
        return info, verdict
    found = len(seen.frames)
    missing = promised - found
    tolerated = max(2.0, LENGTH_TOLERANCE * promised)
    # FFmpeg believes its own eyes about an AVI without its end, and then finds it in order.
    if missing > tolerated and signature(path, None).kind is VideoStatus.CUT:
        return info, CheckResult(
            VideoStatus.CUT, f"cut: the header promises {promised} frames, decoding finds {found}"
        )
    if verdict.kind.broken:
        return info, verdict
    lost = seen.packets - found
    if lost > VANISHING * seen.packets:
        return info, CheckResult(
            VideoStatus.CORRUPT_FRAMES, f"damaged: {lost} of {seen.packets} frames come to nothing"
        )
    longer = seen.end > info.duration + TAIL_TOLERANCE
    if not longer and not (promised and abs(missing) > tolerated):
        return info, verdict
    note = CheckResult(
        VideoStatus.WRONG_LENGTH,
        f"the header says {info.frames} frames in {info.duration:.2f} s, "
        f"decoding finds {found} in {seen.end:.2f} s",
    )
    return replace(info, frames=found, duration=seen.end), _all_of([note, verdict])
