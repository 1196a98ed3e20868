"""Open a video file or URL and read its header; every problem with it raises `crosspair.errors.InvalidVideoError`."""

from __future__ import annotations

import codecs
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from crosspair.errors import SYSTEM_ERRORS, TRY_LATER, CheckResult, InvalidVideoError, VideoStatus, format_error
from crosspair.video.remote import RemoteFile, open_remote

# FFmpeg demuxers that read their own file only. Playlists (HLS, DASH, concat) are excluded because they could open
# other files of this machine. Audio and image formats are included so that such a file is reported as what it is.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,kux,mpegts,mpegtsraw,mpeg,mpegvideo,"
    "asf,asf_o,ogg,mxf,gxf,nut,ivf,rm,dv,wtv,nsv,swf,yuv4mpegpipe,h261,h263,h264,hevc,vvc,av1,obu,"
    "m4v,mjpeg,mpjpeg,vc1,dirac,cavsvideo,gif,apng,mp3,wav,w64,flac,aac,ac3,eac3,aiff,au,amr,"
    "bmp_pipe,gif_pipe,jpeg_pipe,jpegxl_pipe,png_pipe,tiff_pipe,webp_pipe"
)
MAX_FRAMES = 2**31 - 1  # limit of the manifest's int32 column; damaged headers exceed it
MAX_LENGTH = 1e6  # s; a longer video has a damaged header
SIDES = (8, 16384)  # plausible frame sides, in pixels
MAX_PIXELS = 36_000_000  # of a frame, slightly more than 8K; a decoder may hold 17 frames
MAX_ASPECT = 64  # longer side / shorter side
MAX_RATE = 1000  # frames per second; the average rate of a raw DV file is its time base

# Demuxers without an index, whose time stamps may restart. They seek by decoding time, to packets of any kind.
TRANSPORT = ("mpegts", "mpeg")
UNINDEXED = (*TRANSPORT, "flv")
MAX_SCAN = 2**30  # bytes of such a file to be read for its clock and length; of larger ones:
SAMPLES = 16  # places where the clock is read
MAX_JUMP = 10.0  # s; a larger gap in a clock of TRANSPORT is a restart, as in FFmpeg
MAX_BACKWARD = 0.2  # s by which a clock may run backward without a restart
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


Version: TypeAlias = tuple[int, int] | None  # size in bytes and modification time in ns, of a local file


@dataclass
class OpenVideo:
    """An open video at its beginning. Its times are those of a player: 0 is the beginning of the container."""

    path: str
    container: InputContainer
    stream: VideoStream
    remote: RemoteFile | None = None
    version: Version = None
    lead: float = 0.0  # time of the stream's first time stamp, in s; sound may begin earlier
    restarts: bool = False  # whether the clock may jump; `packets` makes it continuous
    jumped: bool = False  # whether `packets` has met a jump
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
        """Move to the first packet; other formats than `TRANSPORT` are opened again, as an index may lack it."""
        if self.is_transport:
            self.container.seek(0, unsupported_byte_offset=True)
            return
        self.container.close()
        if self.remote is not None:
            self.remote.seek(0)
        self.container = _open_container(self.path, self.remote)
        self.stream = _select_stream(self.container, self.path)

    def packets(self, *, all_streams: bool = False) -> Iterator[Packet[Any]]:
        """Demux the stream, or all of them, from here on, on one continuous clock; the last packet is empty."""
        shift = expected = shown = 0  # expected and shown: ends by decoding and by presentation
        longest = MAX_JUMP if self.is_transport else END
        for packet in self.container.demux(*([] if all_streams else [self.stream])):
            if self.restarts and packet.stream is self.stream and packet.dts is not None:
                jump = (packet.dts + shift - expected) * float(packet.time_base)
                if expected and not -MAX_BACKWARD <= jump <= longest:
                    shift, self.jumped = shown - (packet.dts if packet.pts is None else packet.pts), True
                packet.dts = packet.dts + shift
                packet.pts = None if packet.pts is None else packet.pts + shift
                expected = packet.dts + (packet.duration or 0)
                shown = max(shown, (packet.pts or packet.dts) + (packet.duration or 0))
            yield packet


@contextmanager
def open_video(path: str) -> Iterator[OpenVideo]:
    """Open a file or URL: choose its stream, and find its clock and length.

    Raises:
        VideoError: the file is missing, empty, not a video, or has no video stream; inside the context, the server of
            a remote file failed.
    """
    with _open_stream(path) as video:
        _read_header(video)
        yield video


@contextmanager
def _open_stream(path: str) -> Iterator[OpenVideo]:
    version = None if "://" in path else _check_file(path)
    with open_remote(path) if "://" in path else nullcontext() as remote:
        container = _open_container(path, remote)
        video = None
        try:
            video = OpenVideo(path, container, _select_stream(container, path), remote, version)
            yield video
        except (av.FFmpegError, InvalidVideoError) as error:
            # After a server failure FFmpeg sees a truncated file: report the server instead.
            if remote is not None and remote.fault is not None:
                raise remote.fault from error
            raise
        finally:
            (video.container if video else container).close()
        if remote is not None and remote.fault is not None:
            raise remote.fault


def _read_header(video: OpenVideo) -> None:
    """Add clock, length and size to an opened video; InvalidVideoError if it has no length or an absurd size."""
    container, stream = video.container, video.stream
    context = stream.codec_context
    if container.start_time is not None and stream.start_time is not None and stream.time_base:
        lead = float(stream.start_time * stream.time_base) - container.start_time / av.time_base
        video.lead = lead if abs(lead) > TICK else 0.0
    fps = _frame_rate(stream)
    length = _length(video, fps)
    if not 0 < length <= MAX_LENGTH or context.width <= 0 or context.height <= 0:
        if container.format.name.endswith("_pipe"):
            reason = "is a picture, not a video"
            if container.format.name == "webp_pipe":
                reason += ", or an animated WebP, which is not supported: save it as GIF or MP4"
            raise InvalidVideoError(video.path, VideoStatus.NOT_A_VIDEO, reason)
        found = f"{context.width}×{context.height}, {length:.2f} s"
        reason = f"the header gives no length or size ({found}): cut, damaged, or a raw stream to convert to MP4"
        raise InvalidVideoError(video.path, VideoStatus.DAMAGED_HEADER, reason)
    check_size(context.width, context.height, video.path)
    frames = min(stream.frames or round((length - video.lead) * fps), MAX_FRAMES)
    video.info = VideoInfo(context.width, context.height, fps, frames, length, context.name)


def check_size(width: float, height: float, path: str) -> None:
    """Raise `InvalidVideoError` for frames that would take much memory, decoded or scaled by their short side."""
    short, long = sorted((width, height))
    if not SIDES[0] <= short <= long <= SIDES[1] or short * long > MAX_PIXELS or long > MAX_ASPECT * short:
        reason = f"its frames have {width:.0f}×{height:.0f} pixels, which is too large, small or narrow for a video"
        raise InvalidVideoError(path, VideoStatus.ABSURD_SIZE, reason)


def _frame_rate(stream: VideoStream) -> float:
    """Return the average number of frames per second, 0 if unknown."""
    rate = stream.average_rate
    return float(rate if rate and rate <= MAX_RATE else stream.guessed_rate or 0)


def _length(video: OpenVideo, fps: float) -> float:
    """Return the end of the pictures in s, 0 if unknown: as the header says, unless the packets contradict it."""
    stream, form = video.stream, video.container.format.name
    header = declared = _declared_length(stream) or (stream.frames / fps if fps else 0.0)
    whole = float(Fraction(video.container.duration or 0, av.time_base))
    if stream.duration:
        header += video.lead
        index = stream.index_entries
        ticks = index[-1].timestamp - index[0].timestamp if len(index) else 0
        covered = ticks * float(stream.time_base or 0) + 1 / (fps or 30)
        agree = abs(covered - declared) < TAIL_TOLERANCE and whole < header + TAIL_TOLERANCE
        if len(index) and agree and form not in UNINDEXED:
            return header
    if form.endswith("_pipe"):
        return header
    measured = _measure(video.path, video.version)
    video.restarts = measured.restarts
    # The header is right, or the file is cut: no packet reaches the end that it declares.
    cut = measured.end < header and measured.last < (whole or header) - TAIL_TOLERANCE
    wrong = not cut and abs(measured.end - header) > LENGTH_DOUBT
    return measured.end if measured.end and (wrong or measured.restarts) else header


class Measured(NamedTuple):
    """Clock of a file by its packets; times in s, 0 if unknown."""

    end: float  # of the pictures
    last: float  # end of all streams by their time stamps, as in headers that do not subtract the start
    restarts: bool


@lru_cache(maxsize=2**16)
def _measure(path: str, version: Version) -> Measured:
    """Read the packets of a file, the last ones if they can be sought; cached for a ``version`` of the file."""
    with _open_stream(path) as video:
        name, size = video.container.format.name, version[0] if version else END
        tail: float | None = END
        if name in UNINDEXED and size <= MAX_SCAN:
            tail = None
        elif video.is_transport:
            tail = None if _clock_jumps(video) else max(0.0, _declared_length(video.stream) - MAX_JUMP)
        # After its own end, a Matroska file may go on with another one.
        video.restarts = tail is None or name.startswith("matroska")
        end, last = _ends(video, tail)
        if tail is not None and (video.jumped or not end):  # or the end cannot be sought
            video.rewind()
            end, last = _ends(video, None)
        origin = (video.container.start_time or 0) / av.time_base
        return Measured(end and end - origin, last, video.jumped)


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


def _ends(video: OpenVideo, begin: float | None) -> tuple[float, float]:
    """Return the latest end of a picture, and of a packet of any stream, from a time in s on; on the stored clock."""
    ends = {True: 0.0, False: 0.0}
    fps = _frame_rate(video.stream)
    with suppress(av.FFmpegError):
        if begin is not None:
            video.seek(begin)
        for packet in video.packets(all_streams=True):
            if packet.pts is not None and packet.size and not packet.is_discard:
                picture = packet.stream is video.stream
                length = float((packet.duration or 0) * packet.time_base) or (1 / fps if picture and fps else 0.0)
                ends[picture] = max(ends[picture], float(packet.pts * packet.time_base) + length)
    return ends[True], max(ends.values())


def _declared_length(stream: VideoStream) -> float:
    """Return the length in s from the stream, its tags or the container; 0 if unknown or absurd."""
    lengths = [float(stream.duration * stream.time_base)] if stream.duration and stream.time_base else []
    with suppress(KeyError, ValueError):  # Matroska and WebM: "00:00:04.960000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        lengths.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
    assert isinstance(stream.container, InputContainer)
    lengths.append(float(Fraction(stream.container.duration or 0, av.time_base)))
    return next((length for length in lengths if 0 < length <= MAX_LENGTH), 0.0)  # of several streams, or NaN


def _check_file(path: str) -> Version:
    """Return a file's version; `InvalidVideoError` unless it is a regular file with content."""
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
    return status.st_size, status.st_mtime_ns


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
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may also change later
    return stream


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
