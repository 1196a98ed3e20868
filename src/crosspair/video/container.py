"""Open a video file or URL and read its header; every problem with it raises `crosspair.errors.InvalidVideoError`."""

from __future__ import annotations

import atexit
import codecs
import errno
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from crosspair.errors import SYSTEM_ERRORS, TRY_LATER, CheckResult, InvalidVideoError, VideoStatus, format_error

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
MAX_RATE = 1000  # frames per second; the average rate of a raw DV file is its time base

# Demuxers without an index, whose time stamps may restart. They seek by decoding time, to packets of any kind.
TRANSPORT = ("mpegts", "mpeg")
SAMPLES = 16  # places of such a file where its clock is read
MAX_JUMP = 10.0  # s; a larger gap in a clock is a restart, as in FFmpeg
MAX_BACKWARD = 1.0  # s by which a clock may run backward without a restart
LENGTH_DOUBT = 0.1  # s by which the header's length may differ from that of the packets
END = 10**9  # s; after the end of any video
TAIL_TOLERANCE = 0.5  # s by which a header's length may exceed the frames' end
TICK = 1e-3  # s; resolution of timestamps in Matroska and WebM


@dataclass(frozen=True)
class VideoInfo:
    """Header of a video. ``duration`` is the end of its pictures on a player's clock, in s; ``frames`` may be an
    estimate.
    """

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    codec: str


@dataclass(frozen=True)
class OpenVideo:
    """An open video at its beginning. Its times are those of a player: 0 is the beginning of the container."""

    path: str
    container: InputContainer
    stream: VideoStream
    lead: float = 0.0  # time of the stream's first time stamp, in s; sound may begin earlier
    restarts: bool = False  # whether the clock jumps; time stamps are made continuous
    info: VideoInfo = VideoInfo(0, 0, 0, 0, 0, "")

    @property
    def is_transport(self) -> bool:
        """Whether the demuxer seeks by decoding time, to packets of any kind."""
        return self.container.format.name in TRANSPORT

    @property
    def is_sequential(self) -> bool:
        """Whether packets have their right times only when read from the beginning.

        In an MPEG program stream, frames share time stamps, which after a seek go to the wrong frames.
        """
        return self.restarts or self.container.format.name == "mpeg"

    def seconds(self, stamp: int) -> float:
        """Convert a time stamp of the stream to s."""
        return (stamp - (self.stream.start_time or 0)) * float(self.stream.time_base or 0) + self.lead

    def seek(self, seconds: float) -> None:
        """Move to the last key frame, or in `TRANSPORT` formats the last packet, that precedes a time in s."""
        assert self.stream.time_base is not None
        stamp = (self.stream.start_time or 0) + int((seconds - self.lead) / self.stream.time_base)
        self.container.seek(stamp, stream=self.stream, backward=True)

    def rewind(self) -> None:
        """Move to the first packet."""
        if self.is_transport:
            self.container.seek(0, unsupported_byte_offset=True)
        else:
            self.seek(self.lead)

    def packets(self, *, all_streams: bool = False) -> Iterator[Packet[Any]]:
        """Demux the stream, or all of them, from here on, on one continuous clock; the last packet is empty."""
        shift = expected = 0
        for packet in self.container.demux(*([] if all_streams else [self.stream])):
            if self.restarts and packet.stream is self.stream and packet.dts is not None:
                jump = (packet.dts + shift - expected) * float(packet.time_base)
                if expected and not -MAX_BACKWARD <= jump <= MAX_JUMP:
                    shift = expected - packet.dts
                packet.dts = packet.dts + shift
                packet.pts = None if packet.pts is None else packet.pts + shift
                expected = packet.dts + (packet.duration or 0)
            yield packet


@contextmanager
def open_video(path: str) -> Iterator[OpenVideo]:
    """Open a file or URL: choose its stream, and find its clock and length.

    Raises:
        VideoError: the file is missing, empty, not a video, or has no video stream; inside the context, the server of
            a remote file failed.
    """
    if "://" not in path:
        _check_file(path)
    with open_remote(path) if "://" in path else nullcontext() as remote:
        container = _open_container(path, remote)
        try:
            yield _read_header(OpenVideo(path, container, _select_stream(container, path)))
        except (av.FFmpegError, InvalidVideoError) as error:
            # After a server failure FFmpeg sees a truncated file: report the server instead.
            if remote is not None and remote.fault is not None:
                raise remote.fault from error
            raise
        finally:
            container.close()
        if remote is not None and remote.fault is not None:
            raise remote.fault


def _read_header(video: OpenVideo) -> OpenVideo:
    """Add clock, length and size to an opened video; InvalidVideoError if it has no length or no size."""
    container, stream = video.container, video.stream
    context = stream.codec_context
    if container.start_time is not None and stream.start_time is not None and stream.time_base:
        lead = float(stream.start_time * stream.time_base) - container.start_time / av.time_base
        video = replace(video, lead=lead if abs(lead) > TICK else 0.0)
    if video.is_transport and _clock_jumps(video):
        video = replace(video, restarts=True)
    rate = stream.average_rate
    fps = float(rate if rate and rate <= MAX_RATE else stream.guessed_rate or 0)
    length = _length(video, fps)
    if length <= 0 or context.width <= 0 or context.height <= 0:
        if container.format.name.endswith("_pipe"):
            reason = "is a picture, not a video"
            if container.format.name == "webp_pipe":
                reason += ", or an animated WebP, which is not supported: save it as GIF or MP4"
            raise InvalidVideoError(video.path, VideoStatus.NOT_A_VIDEO, reason)
        found = f"{context.width}×{context.height}, {length:.2f} s"
        reason = f"the header gives no length or size ({found}): cut, damaged, or a raw stream to convert to MP4"
        raise InvalidVideoError(video.path, VideoStatus.DAMAGED_HEADER, reason)
    frames = min(stream.frames or round((length - video.lead) * fps), MAX_FRAMES)
    return replace(video, info=VideoInfo(context.width, context.height, fps, frames, length, context.name))


def _clock_jumps(video: OpenVideo) -> bool:
    """Return whether the clock of a file without index seems to restart, from samples at equal distances in bytes."""
    size, times = video.container.size, []
    for place in range(SAMPLES):
        video.container.seek(size * place // SAMPLES, unsupported_byte_offset=True)
        stamps = (packet.dts for packet in video.container.demux(video.stream) if packet.dts is not None)
        times += [video.seconds(stamp) for stamp in itertools.islice(stamps, 1)]
    video.rewind()
    steps = sorted(after - before for before, after in itertools.pairwise(times))
    return bool(steps) and (steps[0] < 0 or steps[-1] > MAX_JUMP * (1 + steps[len(steps) // 2]))


def _length(video: OpenVideo, fps: float) -> float:
    """Return the end of the pictures in s, 0 if unknown: as the header says, unless the packets contradict it."""
    stream, container = video.stream, video.container
    tick = float(stream.time_base or 0)
    header = declared = _declared_length(stream) or (stream.frames / fps if fps else 0.0)
    if stream.duration and not video.restarts:
        header += video.lead
        index = stream.index_entries
        covered = len(index) and (index[-1].timestamp - index[0].timestamp) * tick + 1 / (fps or 30)
        if not video.is_transport and abs(covered - declared) < TAIL_TOLERANCE:
            return header
    if container.format.name.endswith("_pipe"):
        return header
    with suppress(av.FFmpegError):
        start = max(video.lead, header - MAX_JUMP) if video.is_transport else END
        end, last = (0.0, 0.0) if video.restarts else _ends(video, fps, start)
        if not end:  # the end cannot be sought
            video.rewind()
            end, last = _ends(video, fps)
        video.rewind()
        measured = end and video.seconds(0) + end
        # The header is right, or the file is cut: no packet reaches the end that it declares.
        whole = float(Fraction(container.duration or 0, av.time_base))
        cut = measured < header and last < max(whole, header) - TAIL_TOLERANCE
        if measured and (video.restarts or not (cut or abs(measured - header) <= LENGTH_DOUBT)):
            return min(measured, MAX_LENGTH)
    return header


def _ends(video: OpenVideo, fps: float, start: float | None = None) -> tuple[float, float]:
    """Return the latest end of a picture, and of a packet of any stream, from a time in s on; on the stored clock."""
    ends = {True: 0.0, False: 0.0}
    with suppress(av.FFmpegError):
        if start is not None:
            video.seek(start)
        for packet in video.packets(all_streams=True):
            if packet.pts is not None and packet.size:
                picture = packet.stream is video.stream
                length = float((packet.duration or 0) * packet.time_base) or (1 / fps if picture and fps else 0.0)
                ends[picture] = max(ends[picture], float(packet.pts * packet.time_base) + length)
    return ends[True], max(ends.values())


def _declared_length(stream: VideoStream) -> float:
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
        later = TRY_LATER if isinstance(error, OSError) else ""
        raise InvalidVideoError(path, VideoStatus.UNREADABLE, f"{format_error(error)}{later}") from error
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
    code = getattr(error, "errno", None)
    if code in SYSTEM_ERRORS or (not result.reason and code in disk_errors):
        reason = f"cannot be opened ({format_error(error)}){TRY_LATER}"
        return InvalidVideoError(path, VideoStatus.UNREADABLE, reason)
    reason = f"not a readable video, or cut ({result.reason or format_error(error)})"
    return InvalidVideoError(path, result.kind, reason)


def _select_stream(container: InputContainer, path: str) -> VideoStream:
    """Return the default video stream, else the first, set to one thread; never a cover picture."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kind = VideoStatus.AUDIO_ONLY if container.streams.audio else VideoStatus.NO_VIDEO_STREAM
        raise InvalidVideoError(path, kind, "has no video stream")
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
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

# Copies of "simplecache::" and the like, which fsspec would not remove; those of killed workers, too.
COPIES = Path(tempfile.gettempdir(), f"crosspair-{secrets.token_hex(8)}")
atexit.register(shutil.rmtree, COPIES, ignore_errors=True)

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
        for name in re.findall(r"(\w*cached?)::", url):  # keeps copies of files
            if "cache_storage" not in fsspec.config.conf.get(name, {}):
                options[name] = {"cache_storage": str(COPIES / str(os.getpid()))}
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
    missing = InvalidVideoError(url, VideoStatus.MISSING, f"no such file{TRY_LATER}")
    if isinstance(error, FileNotFoundError):
        # fsspec raises this for every failed request: the cause has the server's status.
        cause = error.__cause__
        if not isinstance(cause, Exception) or isinstance(cause, FileNotFoundError | KeyError):
            return missing
        if getattr(cause, "status", None) in (404, 410):
            return missing
        error = cause
    if isinstance(error, TimeoutError):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, f"the server does not answer (time-out){TRY_LATER}")
    if isinstance(error, ValueError) and "range requests" in str(error):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, NO_RANGES)
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    reason: Any = (status and f"status {status}: {message}") or getattr(error, "strerror", None)
    line = " ".join(str(reason or error or type(error).__name__).split())
    return InvalidVideoError(url, VideoStatus.UNREADABLE, f"cannot be opened ({line}){TRY_LATER}")


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
