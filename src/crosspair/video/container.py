"""Open a video file or URL and read its header; every problem with it raises `crosspair.errors.InvalidVideoError`."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from crosspair.errors import CheckResult, InvalidVideoError, VideoStatus, format_error

# FFmpeg demuxers that read their own file only. Playlists (HLS, DASH, concat) are excluded because they could open
# other files of this machine. Audio and image formats are included so that such a file is reported as what it is.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,kux,mpegts,mpegtsraw,mpeg,mpegvideo,"
    "asf,asf_o,ogg,mxf,gxf,nut,ivf,rm,dv,wtv,nsv,swf,yuv4mpegpipe,h261,h263,h264,hevc,vvc,av1,obu,"
    "m4v,mjpeg,mpjpeg,vc1,dirac,cavsvideo,gif,apng,mp3,wav,w64,flac,aac,ac3,eac3,aiff,au,amr,"
    "bmp_pipe,gif_pipe,jpeg_pipe,jpegxl_pipe,png_pipe,tiff_pipe,webp_pipe"
)
MAX_FRAMES = 2**31 - 1  # limit of the manifest's int32 column; damaged headers exceed it
MAX_LENGTH = 1e9  # s: a longer video has a damaged header


@dataclass(frozen=True)
class VideoInfo:
    """Header of a video. ``duration`` is in s; ``frames`` may be an estimate."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    codec: str


def probe(path: str) -> VideoInfo:
    """Read the header of a video file or URL.

    Raises:
        VideoError: the file is missing, empty, not a video, or has no video stream.
    """
    with open_video(path) as (_, stream):
        return read_header(stream, path)


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or URL, and yield its container and its first video stream that is not a cover picture.

    Raises:
        VideoError: see `probe`; inside the context, the server of a remote file failed.
    """
    if "://" not in path:
        _check_file(path)
    with open_remote(path) if "://" in path else nullcontext() as remote:
        container = _open_container(path, remote)
        try:
            yield container, _select_stream(container, path)
        except (av.FFmpegError, InvalidVideoError) as error:
            # After a server failure FFmpeg sees a truncated file: report the server instead.
            if remote is not None and remote.fault is not None:
                raise remote.fault from error
            raise
        finally:
            container.close()
        if remote is not None and remote.fault is not None:
            raise remote.fault


def read_header(stream: VideoStream, path: str) -> VideoInfo:
    """Read the header of an opened video; VideoError if it gives no length or no size."""
    context = stream.codec_context
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    length = duration(stream)
    if length <= 0 and fps > 0:
        length = stream.frames / fps
    if length <= 0 or context.width <= 0 or context.height <= 0:
        assert isinstance(stream.container, InputContainer)
        if stream.container.format.name.endswith("_pipe"):
            raise InvalidVideoError(path, VideoStatus.NOT_A_VIDEO, "is a picture, not a video")
        found = f"{context.width}×{context.height}, {length:.2f} s"
        reason = f"the header gives no length or size ({found}); the file is cut or damaged"
        raise InvalidVideoError(path, VideoStatus.DAMAGED_HEADER, reason)
    frames = min(stream.frames or round(length * fps), MAX_FRAMES)
    return VideoInfo(context.width, context.height, fps, frames, length, context.name)


def duration(stream: VideoStream) -> float:
    """Return the length in s from the stream, its tags or the container; 0 if unknown."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    with suppress(KeyError, ValueError):  # Matroska and WebM: "00:00:04.960000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        if 0 < (length := int(hours) * 3600 + int(minutes) * 60 + float(seconds)) < MAX_LENGTH:  # and no NaN
            return length
    assert isinstance(stream.container, InputContainer)
    return float(Fraction(stream.container.duration or 0, av.time_base))


def _check_file(path: str) -> None:
    """Raise `InvalidVideoError` unless the path is a regular file with content."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if getattr(error, "errno", None) == errno.ENOENT:
            raise InvalidVideoError(path, VideoStatus.MISSING, "no such file") from error
        raise InvalidVideoError(path, VideoStatus.UNREADABLE, format_error(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise InvalidVideoError(path, VideoStatus.UNREADABLE, "is a folder, not a video")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise InvalidVideoError(path, VideoStatus.UNREADABLE, "is not a regular file (a pipe, socket or device)")
    if status.st_size == 0:
        raise InvalidVideoError(path, VideoStatus.EMPTY, "the file is empty (0 bytes)")


def _open_container(path: str, remote: RemoteFile | None) -> InputContainer:
    """Open a file, or ``remote`` instead, with the demuxers of `FORMATS`."""
    try:
        # Without the prefix, FFmpeg takes a name such as "a:b.mp4" for a URL.
        source: Any = remote or f"file:{path}"
        container = av.open(source, metadata_errors="ignore", container_options={"format_whitelist": FORMATS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _explain_open_error(path, remote, error) from error
    assert isinstance(container, InputContainer)
    return container


def _explain_open_error(path: str, remote: RemoteFile | None, error: Exception) -> InvalidVideoError:
    """Return the error to raise: of the server, of the disk, or one that says what the file is instead of a video."""
    result = check_signature(path, remote)
    if remote is not None and remote.fault is not None:
        return remote.fault
    # A disk error, unless the file's first bytes explain why the demuxer failed.
    disk_errors = (errno.EIO, errno.EACCES, errno.EPERM)
    if not result.reason and getattr(error, "errno", None) in disk_errors:
        return InvalidVideoError(path, VideoStatus.UNREADABLE, f"cannot be opened ({format_error(error)})")
    reason = f"not a readable video, or cut ({result.reason or format_error(error)})"
    return InvalidVideoError(path, result.kind, reason)


def _select_stream(container: InputContainer, path: str) -> VideoStream:
    """Return the first video stream that is not a cover picture, set to one thread; raise InvalidVideoError if none."""
    covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
    streams = [s for s in container.streams.video if s not in covers]
    if not streams:
        kind = VideoStatus.AUDIO_ONLY if container.streams.audio else VideoStatus.NO_VIDEO_STREAM
        raise InvalidVideoError(path, kind, "has no video stream")
    stream = streams[0]
    if not stream.codec_context:
        raise InvalidVideoError(path, VideoStatus.UNDECODABLE, "its video stream's codec is unknown")
    stream.codec_context.thread_type = "NONE"  # the loader's workers run in parallel already
    return stream


# --- URLs: any that fsspec supports, read in byte ranges ----------------------------------------

# A second of video, or a container's index, takes about one block, so a clip needs few requests.
BLOCK = 2**18  # bytes
CACHE = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": 16}}
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 20.0  # s until a server answers, and between two parts of its answer
REQUEST_TIMEOUT = 120.0  # s for a block
NO_RANGES = "the server does not support range requests. Download the file"

Result = TypeVar("Result")


class RemoteFile:
    """File object for FFmpeg that stores the first error as ``fault`` instead of raising it.

    An exception would have to pass through C code. FFmpeg sees the end of the file, and the caller checks ``fault``.
    """

    def __init__(self, handle: IO[bytes], url: str) -> None:
        self._handle, self._url = handle, url
        self.fault: InvalidVideoError | None = None

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes (-1: all); empty after an error."""
        return self._guard(lambda: self._handle.read(size), b"")

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position and return it in bytes; -1 after an error."""
        return self._guard(lambda: self._handle.seek(offset, whence), -1)

    def tell(self) -> int:
        """Return the position in bytes; -1 after an error."""
        return self._guard(self._handle.tell, -1)

    def _guard(self, action: Callable[[], Result], default: Result) -> Result:
        if self.fault is not None:
            return default
        try:
            return action()
        except Exception as error:  # each protocol has its own exceptions
            self.fault = _explain(self._url, error)
            return default


@contextmanager
def open_remote(url: str) -> Iterator[RemoteFile]:
    """Open a URL for reading in ranges; InvalidVideoError if the server, the protocol or its package is missing."""
    import fsspec

    try:
        # The archive of a chained URL (zip://…::https://…) is read in ranges, too. fsspec keeps it
        # open while its filesystem is cached.
        options: dict[str, Any] = {}
        if "http://" in url or "https://" in url:
            from aiohttp import ClientTimeout

            # Without a timeout of its parts, a stalled server would hold each request for 5 minutes.
            timeout = ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
            options = {"client_kwargs": {"timeout": timeout}}
            if "::" in url:
                options = {name: {**CACHE, **options} for name in ("http", "https")}
        filesystem, path = fsspec.url_to_fs(url, **options)
        handle: IO[bytes] = filesystem.open(path, "rb", **CACHE)
    except Exception as error:  # each protocol has its own exceptions
        raise _explain(url, error) from error
    try:
        if not handle.seekable() or getattr(handle, "size", 0) is None:
            raise InvalidVideoError(url, VideoStatus.UNREADABLE, NO_RANGES)
        yield RemoteFile(handle, url)
    finally:
        with suppress(Exception):  # nothing was written that could be lost
            handle.close()


def _explain(url: str, error: Exception) -> InvalidVideoError:
    """Convert an exception of fsspec: MISSING for no such file (HTTP 404, 410), else UNREADABLE with the reason."""
    missing = InvalidVideoError(url, VideoStatus.MISSING, "no such file")
    if isinstance(error, FileNotFoundError):
        # fsspec raises this for every failed request: the cause has the server's status.
        cause = error.__cause__
        if not isinstance(cause, Exception) or isinstance(cause, FileNotFoundError | KeyError):
            return missing
        if getattr(cause, "status", None) in (404, 410):
            return missing
        error = cause
    if isinstance(error, TimeoutError):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, "the server does not answer (time-out)")
    if isinstance(error, ValueError) and "range requests" in str(error):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, NO_RANGES)
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    reason: Any = (status and f"status {status}: {message}") or getattr(error, "strerror", None)
    line = " ".join(str(reason or error or type(error).__name__).split())
    return InvalidVideoError(url, VideoStatus.UNREADABLE, f"cannot be opened ({line})")


# --- first bytes of a file ----------------------------------------------------------------------

HEAD = 512  # bytes
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"uuid"})
# Matroska, FLV, Ogg, ASF, and MPEG program and video streams.
MAGIC = (b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\0\0\1\xba", b"\0\0\1\xb3")
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8")
MARKUP = re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)
UNKNOWN = CheckResult(VideoStatus.NOT_A_VIDEO)


def check_signature(path: str, remote: RemoteFile | None) -> CheckResult:
    """Explain from its first bytes why a file, or ``remote`` instead, could not be opened as a video.

    Returns:
        The status and a reason; `UNKNOWN`, which has no reason, if the bytes match nothing.
    """
    try:
        if remote is not None:
            return _check_content(remote)
        with Path(path).open("rb") as file:
            return _check_content(file)
    except OSError:
        return UNKNOWN


def _check_content(file: RemoteFile | BinaryIO) -> CheckResult:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    if MARKUP.match(head):
        return CheckResult(VideoStatus.NOT_A_VIDEO, "it is an HTML page: a failed download?")
    if head.startswith(PICTURES):
        return CheckResult(VideoStatus.NOT_A_VIDEO, "it is a picture")
    sized = head[4:8] in BOXES or head[:4] == b"RIFF"
    if sized and _is_cut(file, size):
        return CheckResult(VideoStatus.CUT, "it begins as a video, but its end is missing")
    if sized or head.startswith(MAGIC) or (head[:1] == b"G" and head[188:189] in (b"G", b"")):
        return CheckResult(VideoStatus.DAMAGED_HEADER, "it begins as a video, but its header is damaged")
    return CheckResult(VideoStatus.NOT_A_VIDEO, "it is text") if _is_text(head) else UNKNOWN


def _is_cut(file: RemoteFile | BinaryIO, size: int) -> bool:
    """Return whether the boxes of an mp4, or the RIFF chunk of an AVI, exceed the file size."""
    file.seek(0)
    first = file.read(8)
    if first[:4] == b"RIFF":
        return 8 + int.from_bytes(first[4:], "little") > size
    position = 0
    while position < size:
        file.seek(position)
        length = int.from_bytes(file.read(4), "big")
        if file.read(4) == b"":
            return True
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:
            # Length 0 means up to the end of the file; then no index precedes this box.
            return length == 0 and position > 0
        position += length
    return position > size


def _is_text(head: bytes) -> bool:
    """Return whether bytes are printable UTF-8 text, the last character of which may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
