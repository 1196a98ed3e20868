"""Open a video file or URL, read its header.

What is wrong with a file is told as a `crosspair.faults.BadVideoError`, a `VideoError`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from crosspair.faults import BadVideoError, Kind
from crosspair.video.remote import RemoteFile, open_remote
from crosspair.video.signature import signature

# What FFmpeg may take a file for: one that holds its own frames. A playlist (HLS, DASH, concat)
# would have it open others, which whoever uploads one must not read. Sound and pictures are here
# to be told as such.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,kux,mpegts,mpegtsraw,mpeg,mpegvideo,"
    "asf,asf_o,ogg,mxf,gxf,nut,ivf,rm,dv,wtv,nsv,swf,yuv4mpegpipe,h261,h263,h264,hevc,vvc,av1,obu,"
    "m4v,mjpeg,mpjpeg,vc1,dirac,cavsvideo,gif,apng,mp3,wav,w64,flac,aac,ac3,eac3,aiff,au,amr,"
    "bmp_pipe,gif_pipe,jpeg_pipe,jpegxl_pipe,png_pipe,tiff_pipe,webp_pipe"
)
MOST_FRAMES = 2**31 - 1  # what a manifest can hold, whatever a damaged header says


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. ``duration`` in s; ``frames`` may be an estimate."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    codec: str


def probe(path: str) -> VideoInfo:
    """Read the header of a video file or URL.

    Raises:
        VideoError: the file is missing, empty, no video, or has no video stream.
    """
    with opened(path) as (_, stream):
        return header(stream, path)


@contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or URL, ready to decode its video in this thread alone.

    Raises:
        VideoError: as `probe`; or, within, a remote file's server fails.
    """
    if "://" not in path:
        _check_file(path)
    with open_remote(path) if "://" in path else nullcontext() as remote:
        container = _container(path, remote)
        try:
            yield container, _stream(container, path)
        except (av.FFmpegError, BadVideoError) as error:
            # What FFmpeg tells of a file whose server failed is not the file's fault.
            if remote is not None and remote.fault is not None:
                raise remote.fault from error
            raise
        finally:
            container.close()
        if remote is not None and remote.fault is not None:  # it passed for the file's end
            raise remote.fault


def header(stream: VideoStream, path: str) -> VideoInfo:
    """What the header says of an opened video.

    Raises:
        VideoError: it gives no length or no size.
    """
    context = stream.codec_context
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    length = duration(stream)
    if length <= 0 and fps > 0:
        length = stream.frames / fps
    if length <= 0 or context.width <= 0 or context.height <= 0:
        assert isinstance(stream.container, InputContainer)
        if stream.container.format.name.endswith("_pipe"):
            raise BadVideoError(path, Kind.NOT_A_VIDEO, "is a picture, not a video")
        raise BadVideoError(
            path,
            Kind.DAMAGED_HEADER,
            f"the header gives no length or size ({context.width}×{context.height}, "
            f"{length:.2f} s); the file is cut or damaged",
        )
    frames = min(stream.frames or round(length * fps), MOST_FRAMES)
    return VideoInfo(context.width, context.height, fps, frames, length, context.name)


def duration(stream: VideoStream) -> float:
    """Seconds, from the first of the places where containers keep it; 0 where none does."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    with suppress(KeyError, ValueError):  # Matroska and WebM: "00:00:04.960000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    assert isinstance(stream.container, InputContainer)
    return float(Fraction(stream.container.duration or 0, av.time_base))


def told(error: Exception) -> str:
    """What an exception says, for people."""
    return str(getattr(error, "strerror", None) or error)


def _check_file(path: str) -> None:
    try:
        status = Path(path).stat()
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise BadVideoError(path, Kind.MISSING, "no such file") from error
        raise BadVideoError(path, Kind.UNREADABLE, told(error)) from error
    except ValueError as error:
        raise BadVideoError(path, Kind.UNREADABLE, f"cannot be opened ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise BadVideoError(path, Kind.UNREADABLE, "is a folder, not a video")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody to write
        raise BadVideoError(path, Kind.UNREADABLE, "is no regular file (a pipe, socket or device)")
    if status.st_size == 0:
        raise BadVideoError(path, Kind.EMPTY, "the file is empty (0 bytes)")


def _container(path: str, remote: RemoteFile | None) -> InputContainer:
    try:
        # The prefix keeps FFmpeg from taking a name such as "a:b.mp4" for a protocol's.
        source: Any = remote or f"file:{path}"
        container = av.open(
            source, metadata_errors="ignore", container_options={"format_whitelist": FORMATS}
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, remote, error) from error
    assert isinstance(container, InputContainer)
    return container


def _unreadable(path: str, remote: RemoteFile | None, error: Exception) -> BadVideoError:
    found = signature(path, remote)
    if remote is not None and remote.fault is not None:
        return remote.fault
    # An error of the disk, unless the bytes that could be read explain a demuxer's.
    if not found.reason and getattr(error, "errno", None) in (errno.EIO, errno.EACCES, errno.EPERM):
        return BadVideoError(path, Kind.UNREADABLE, f"cannot be opened ({told(error)})")
    reason = f"not a readable video, or cut ({found.reason or told(error)})"
    return BadVideoError(path, found.kind, reason)


def _stream(container: InputContainer, path: str) -> VideoStream:
    covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
    streams = [s for s in container.streams.video if s not in covers]
    if not streams:
        kind = Kind.AUDIO_ONLY if container.streams.audio else Kind.NO_VIDEO_STREAM
        raise BadVideoError(path, kind, "has no video stream")
    stream = streams[0]
    if not stream.codec_context:
        raise BadVideoError(path, Kind.UNDECODABLE, "its video stream's codec is unknown")
    # One thread a clip: the loader's workers are the parallelism.
    stream.codec_context.thread_type = "NONE"
    return stream
