"""Check that a video matches its header, and optionally that all its frames can be decoded."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import av

from crosspair.errors import CheckResult, InvalidVideoError, VideoStatus, format_error
from crosspair.video.container import (
    MAX_BACKWARD,
    TAIL_TOLERANCE,
    TICK,
    OpenVideo,
    VideoInfo,
    check_signature,
    open_video,
)
from crosspair.video.decode import DecodeLog, clip_span, decode_from, displayed_info, frame_end
from crosspair.workers import extend_timeout

RATES = (1.0, 480.0)  # plausible frame rates, in frames per second
CLIP = clip_span(frames=8, stride=4)  # s, as in the paper
LENGTH_TOLERANCE = 0.02  # tolerated error of a header's frame count, as a fraction
EMPTY_PACKETS = 0.1  # tolerated fraction of packets without a frame, which are legal in VP8
NEAR = 10.0  # s; segments closer than this are decoded together, as a seek may be inexact
MAX_EXTENSION = 24 * 3600.0  # s; limits the time that a header can request for decoding

Segment = tuple[float | None, float | None]
Span = tuple[float, float]

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


def inspect_job(job: tuple[str, Sequence[Segment], bool]) -> tuple[dict[str, Any], list[CheckResult]]:
    """Run `inspect` on a (path, segments, decode) in a worker process; returns the fields of `VideoInfo`, or none."""
    path, segments, decode = job
    info, results = inspect(path, segments, decode=decode)
    return asdict(info) if info else {}, results


def inspect(path: str, segments: Sequence[Segment], *, decode: bool) -> tuple[VideoInfo | None, list[CheckResult]]:
    """Check a video and the given segments of it; problems are returned, not raised.

    Args:
        path: file or URL.
        segments: (start, end) in s, as in `crosspair.config.Clip`.
        decode: also decode every frame of the segments; overlaps are decoded once.

    Returns:
        The header, or None if it cannot be read, and a result per segment. If a whole video was
        decoded and the header's length is wrong, the header has the measured length instead.
    """
    info = None
    try:
        with open_video(path) as video:
            info = displayed_info(video)
            spans = [_to_span(segment, info) for segment in segments]
            results = [_check_header(video, info, span) for span in spans]
            if decode:
                valid = [i for i, result in enumerate(results) if not result.kind.broken]
                merged = _merge_spans([spans[i] for i in valid], info)
                seconds = sum(min(end, info.duration) - begin for begin, end in merged)
                extend_timeout(min(MAX_EXTENSION, seconds))
                scans = [_scan(video, *span) for span in merged]
                for i in valid:
                    scan = next(scan for scan in reversed(scans) if scan.begin <= spans[i][0])
                    results[i] = _check_frames(scan, spans[i], info, results[i])
                    if segments[i] == (None, None):
                        info, results[i] = _check_length(scan, info, video.stream.frames, path, results[i])
    except InvalidVideoError as error:
        results = [CheckResult(error.kind, error.reason)] * len(segments)
    except av.FFmpegError as error:
        results = [CheckResult(VideoStatus.UNDECODABLE, f"damaged ({format_error(error)})")] * len(segments)
    return info, results


def _to_span(segment: Segment, info: VideoInfo) -> Span:
    """Return start and end of a segment in s, the whole video if it has none."""
    start, end = segment
    return start or 0.0, info.duration if end is None else min(end, info.duration)


def _check_header(video: OpenVideo, info: VideoInfo, span: Span) -> CheckResult:
    """Check a segment by the header alone."""
    begin, end = span
    if begin >= end:
        reason = f"the clip starts at {begin:g} s but the video ends at {info.duration:.2f} s"
        return CheckResult(VideoStatus.OUTSIDE, reason)
    notes = []
    suffix = PurePosixPath(video.path.split("::")[0].split("?")[0]).suffix.lower()
    form = video.container.format
    if suffix in SUFFIXES and suffix not in CONTAINERS.get(form.name, ()):
        notes.append(CheckResult(VideoStatus.WRONG_CONTAINER, f"it is {form.long_name}, not {suffix}"))
    if not RATES[0] <= info.fps <= RATES[1]:
        notes.append(CheckResult(VideoStatus.ODD_RATE, f"the header gives {info.fps:g} frames per second"))
    if end - begin < CLIP - TICK:
        reason = f"{end - begin:.2f} s, shorter than a clip of {CLIP:.2f} s (8 frames, 4/30 s apart)"
        notes.append(CheckResult(VideoStatus.SHORT, f"{reason}: training repeats its last frame"))
    return _merge_notes(notes)


def _merge_notes(notes: Sequence[CheckResult]) -> CheckResult:
    """Merge check results into one: the status of the first, the reasons of all."""
    if not notes:
        return CheckResult(VideoStatus.FINE)
    return CheckResult(notes[0].kind, "; ".join(note.reason for note in notes if note.reason))


def _merge_spans(spans: Sequence[Span], info: VideoInfo) -> list[Span]:
    """Sort spans and merge those that overlap or are near each other."""
    merged: list[Span] = []
    # A span that ends with the video has no end, to reach the last frame if the header is wrong.
    for begin, end in sorted((b, math.inf if e == info.duration else e) for b, e in spans):
        if merged and begin <= merged[-1][1] + NEAR:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


@dataclass
class _Scan:
    """Frames and errors found while decoding a span; times in s from the video's beginning."""

    begin: float
    log: DecodeLog = field(default_factory=DecodeLog)
    frames: list[float] = field(default_factory=list)
    corrupt: list[float] = field(default_factory=list)
    end: float = 0.0
    restart: float | None = None  # where the clock restarts, if that was not seen before decoding


def _scan(video: OpenVideo, begin: float, end: float) -> _Scan:
    """Decode all frames from `begin` to `end` s; record their times, which are corrupt, and packets that fail."""
    scan = _Scan(begin)
    for seconds, frame in decode_from(video, begin, scan.log):
        scan.end = max(scan.end, frame_end(seconds, frame))
        if seconds >= end:
            break
        if scan.frames and seconds < scan.frames[-1] - MAX_BACKWARD:
            scan.restart = scan.frames[-1]
        scan.frames.append(seconds)
        if frame.is_corrupt:
            scan.corrupt.append(seconds)
    scan.frames.sort()
    return scan


def _check_frames(scan: _Scan, span: Span, info: VideoInfo, result: CheckResult) -> CheckResult:
    """Return ``result``, of the header, or what is wrong with the decoded frames of a segment."""
    begin, end = span
    if not scan.frames and scan.log.failed:
        return CheckResult(VideoStatus.UNDECODABLE, f"no frame can be decoded ({scan.log.failed[0][1]})")
    if not scan.frames or scan.end < end - TAIL_TOLERANCE:
        found = f"the frames end at {scan.end:.2f} s" if scan.frames else "it has no frames"
        return CheckResult(VideoStatus.CUT, f"cut: the header gives {info.duration:.2f} s, but {found}")
    # The frame that is shown when the segment begins may start earlier.
    first = max(0, bisect_right(scan.frames, begin + TICK) - 1)
    last = bisect_left(scan.frames, end)
    bad = [*scan.corrupt, *(seconds for seconds, _ in scan.log.failed)]
    bad = [seconds for seconds in bad if scan.frames[first] <= seconds < end]
    if bad:
        return CheckResult(
            VideoStatus.CORRUPT_FRAMES,
            f"damaged: {len(bad)} of {max(last - first, len(bad))} frames are corrupt, the first at {min(bad):.2f} s",
        )
    return result


def _check_length(
    scan: _Scan, info: VideoInfo, declared: int, path: str, result: CheckResult
) -> tuple[VideoInfo, CheckResult]:
    """Compare a whole decoded video with its header, which has ``declared`` frames (0: unknown); correct its length."""
    if result.kind.broken and result.kind is not VideoStatus.CORRUPT_FRAMES:
        return info, result
    found = len(scan.frames)
    missing = declared - found
    tolerance = max(2.0, LENGTH_TOLERANCE * declared)
    # For an AVI whose end is missing, FFmpeg replaces the header's length by the remaining one.
    if missing > tolerance and check_signature(path, None).kind is VideoStatus.CUT:
        return info, CheckResult(VideoStatus.CUT, f"cut: the header gives {declared} frames, decoding finds {found}")
    if result.kind.broken:
        return info, result
    if scan.restart is not None:
        reason = f"the clock restarts after {scan.restart:.2f} s; the frames before or after are not used"
        return info, _merge_notes([CheckResult(VideoStatus.WRONG_LENGTH, reason), result])
    packets = scan.log.packets
    if packets - found > EMPTY_PACKETS * packets:
        reason = f"damaged: {packets - found} of {packets} packets give no frame"
        return info, CheckResult(VideoStatus.CORRUPT_FRAMES, reason)
    if scan.end <= info.duration + TAIL_TOLERANCE:
        # An edit list hides frames, and an AVI may count dropped ones.
        return replace(info, frames=found) if abs(missing) > tolerance else info, result
    reason = f"the header gives {info.duration:.2f} s, the frames end at {scan.end:.2f} s"
    note = CheckResult(VideoStatus.WRONG_LENGTH, reason)
    return replace(info, frames=found, duration=scan.end), _merge_notes([note, result])
