"""Concatenate short videos to long ones with known content, and write degraded copies."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av

TICKS = 90_000  # per second
JOINED = {"preset": "ultrafast", "crf": "20"}
POOR = {"preset": "ultrafast", "crf": "30"}


def join(paths: Sequence[str], out: Path) -> list[tuple[float, float]]:
    """Concatenate videos at the size of the first one, keeping their frame rates.

    Returns:
        Start and end of each video in s.
    """
    spans = []
    with av.open(str(out), "w") as container:
        stream = None
        begin = 0.0
        for path in paths:
            end = begin
            with av.open(path) as source:
                video = source.streams.video[0]
                interval = float(1 / (video.average_rate or 30))
                for frame in source.decode(video):
                    if stream is None:
                        stream = _stream(container, frame.width, frame.height, JOINED)
                    frame = frame.reformat(stream.width, stream.height, "yuv420p")
                    frame.pts, frame.time_base = round(end * TICKS), Fraction(1, TICKS)
                    container.mux(stream.encode(frame))
                    end += interval
            spans.append((begin, end))
            begin = end
        if stream is not None:
            container.mux(stream.encode())
    return spans


def poor_copy(path: str, out: Path) -> None:
    """Write a copy of half the size and lower quality."""
    with av.open(path) as source, av.open(str(out), "w") as container:
        video = source.streams.video[0]
        stream = _stream(container, video.width // 2, video.height // 2, POOR)
        for frame in source.decode(video):
            frame = frame.reformat(stream.width, stream.height, "yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_looped(path: str, out: Path, *, size: tuple[int, int], gop: int, seconds: float) -> None:
    """Repeat a video at 30 frames per second until it has the given length in s."""
    options = {"x264-params": f"keyint={gop}"}
    with av.open(str(out), "w") as container:
        stream = _stream(container, *size, options)
        count = 0
        while count < 30 * seconds:
            with av.open(path) as source:
                for frame in islice(source.decode(video=0), round(30 * seconds) - count):
                    frame = frame.reformat(*size, "yuv420p")
                    frame.pict_type = 0  # otherwise x264 keeps the source's key frames
                    frame.pts, frame.time_base = count * TICKS // 30, Fraction(1, TICKS)
                    container.mux(stream.encode(frame))
                    count += 1
        container.mux(stream.encode())


def _stream(
    container: av.container.OutputContainer, width: int, height: int, options: dict[str, str]
) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=30, options=options)
    stream.width, stream.height = width // 2 * 2, height // 2 * 2
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
    return stream
