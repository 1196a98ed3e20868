"""Write search results for other programs: clips, and the lists of `crosspair.library.lists`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream

from crosspair.config import Clip
from crosspair.corpora.transcode import VideoSegment, encode_segment
from crosspair.corpora.video_files import video_stem
from crosspair.errors import CrosspairError, VideoError, format_error
from crosspair.files import atomic_write, check_output, check_output_folder, write_atomically
from crosspair.library.lists import format_precise_time, hits_to_csv, hits_to_edl, hits_to_fcpxml, import_otio
from crosspair.library.search import SearchHit
from crosspair.video.container import SIDES, TICK, OpenVideo, open_video
from crosspair.video.decode import resolve_segment

logger = logging.getLogger(__name__)

# FFmpeg's muxer by the suffix of the source; clips of other sources are written to Matroska.
MUXERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".flv": "flv",
    ".ts": "mpegts", ".mts": "mpegts", ".m2ts": "mpegts", ".ogv": "ogg", ".wmv": "asf", ".3gp": "3gp", ".mxf": "mxf",
    ".gif": "gif",
}  # fmt: skip
ENCODER = {"preset": "veryfast", "crf": "18"}  # of --precise: visually lossless
LAYOUTS = {1: "mono", 2: "stereo", 4: "quad", 6: "5.1", 8: "7.1"}  # of sound with only a number of channels
AUDIO_LEAD = 1.0  # s to read before the start, as sound may be stored before its picture
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')  # in file names of some system
MAX_STEM = 120  # bytes of a source's name in the name of a clip


@dataclass(frozen=True)
class HitOutputs:
    """Files to write from search results; None: not written. Checked when created.

    Raises:
        CrosspairError: an output has a wrong suffix or replaces another file, or a package is missing.
    """

    clips: Path | None = None  # folder, see `export_clips`
    precise: bool = False
    edl: Path | None = None
    fcpxml: Path | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        if self.precise and self.clips is None:
            raise CrosspairError("--precise requires --export-clips")
        if self.clips is not None:
            check_output_folder(self.clips, "empty", "")
        for file, suffix, kind in (
            (self.edl, ".edl", "an edit decision list"),
            (self.fcpxml, ".fcpxml", "a Final Cut Pro project"),
            (self.csv, ".csv", "a list of search results"),
        ):
            if file is not None:
                if file.suffix.lower() != suffix:
                    raise CrosspairError(f"{file} must be a {suffix} file")
                check_output(file, kind)
        if self.edl or self.fcpxml:
            import_otio()

    def write(self, hits: Sequence[SearchHit]) -> list[str]:
        """Write all outputs and return a line about each; nothing but the CSV file if there are no results."""
        lines = []
        if self.csv:
            write_atomically(self.csv, hits_to_csv(hits))
            lines.append(f"{self.csv}: {len(hits)} results")
        for file, convert in ((self.edl, hits_to_edl), (self.fcpxml, hits_to_fcpxml)):
            if file and hits:
                write_atomically(file, convert(hits))
                lines.append(f"{file}: an edit list of the results")
        if self.clips and hits:
            count = len(export_clips(hits, self.clips, precise=self.precise))
            skipped = f", {len(hits) - count} skipped" if count < len(hits) else ""
            lines.append(f"{self.clips}: {count} clips{skipped}")
        return lines


def export_clips(hits: Sequence[SearchHit], folder: Path, *, precise: bool = False) -> list[Path]:
    """Write each search result to its own video file, named by rank, source and time.

    Sources that cannot be read are logged and skipped.

    Args:
        hits: best first.
        folder: a new or empty folder.
        precise: re-encode (H.264 and AAC in MP4) from the frame shown at the start to the last one that begins before
            the end. Otherwise, audio and video are copied from the last key frame at or before the start, in the
            source's container if possible, else Matroska.

    Returns:
        The files, in the order of the results.

    Raises:
        VideoError: no source can be read.
        RunError: the folder is not empty, or cannot be written.
    """
    check_output_folder(folder, "empty", "")
    digits = max(2, len(str(len(hits))))
    files, failures = list[Path](), list[VideoError]()
    for rank, hit in enumerate(hits, start=1):
        times = "-".join(format_precise_time(time)[:-4].replace(":", ".") for time in (hit.start, hit.end))
        name = f"{rank:0{digits}d} {_safe_name(hit.path)} {times}"
        try:
            files.append(_export_clip(hit, folder / name, precise))
        except VideoError as error:
            logger.warning("%s", error)
            failures.append(error)
    if failures and not files:
        raise VideoError(f"0 of {len(hits)} results can be exported; first error: {failures[0]}")
    return files


def _safe_name(path: str) -> str:
    """Return the stem of a path or URL as a part of a file name that is valid on all systems.

    >>> _safe_name("/a/What? A/B: test .mp4"), _safe_name("https://a.org/b/c.mp4?x=1")
    ('B_ test', 'c')
    """
    stem = UNSAFE.sub("_", video_stem(_file_part(path))).encode(errors="replace")[:MAX_STEM].decode(errors="ignore")
    return stem.strip(". ") or "video"


def _file_part(path: str) -> str:
    """Return a path, or a URL without archive and query."""
    return path.split("::")[0].split("?")[0] if "://" in path else path


def _export_clip(hit: SearchHit, stem: Path, precise: bool) -> Path:
    """Write a clip and return its path, the stem with a suffix."""
    with open_video(hit.path) as video:
        if video.restarts:
            raise VideoError(f"{hit.path}: its clock restarts; copy it to Matroska or MP4 to export clips of it")
        begin, length = resolve_segment(Clip(hit.path, hit.start, hit.end), video.info)
        # AVI stores no times, which are needed to copy reordered pictures in sync with the sound.
        if precise or (video.container.format.name == "avi" and video.stream.codec_context.has_b_frames):
            write, suffixes = _encode_clip, [".mp4"]
        else:
            suffix = Path(_file_part(hit.path)).suffix.lower()
            write, suffixes = _copy_clip, [each for each in dict.fromkeys((suffix, ".mkv")) if each in MUXERS]
        for suffix in suffixes:
            muxer, path = MUXERS[suffix], Path(f"{stem}{suffix}")
            options = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
            try:
                with (
                    atomic_write(path) as partial,
                    av.open(f"file:{partial}", "w", format=muxer, options=options) as output,
                ):
                    write(video, begin, length, output)
                return path
            except (av.FFmpegError, ValueError) as error:  # ValueError: the container does not support the codec
                reason = format_error(error)
    raise VideoError(f"{hit.path}: the clip at {begin:.2f} s cannot be written ({reason})")


def _copy_clip(video: OpenVideo, begin: float, length: float, output: OutputContainer) -> None:
    """Copy the packets from the last key frame at or before ``begin``, until each stream has reached the end."""
    key = _key_frame_time(video, begin)
    _move(video, key - AUDIO_LEAD)
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    targets: dict[int, Stream] = {video.stream.index: _add_stream(output, video.stream)}
    for stream in (*video.container.streams.video, *video.container.streams.audio):
        if stream.index not in targets and not stream.disposition & pictures:
            with suppress(ValueError):  # the container does not support its codec
                targets[stream.index] = _add_stream(output, stream)
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for packet in video.packets(all_streams=True):
        index, stamp = packet.stream.index, packet.pts if packet.pts is not None else packet.dts
        if index not in targets or stamp is None:
            continue
        time = _seconds(video, packet, stamp)
        decoded = _seconds(video, packet, packet.dts if packet.dts is not None else stamp)
        if decoded >= begin + length - TICK and time > last.get(index, -math.inf):  # no picture is left out before it
            if decoded > begin + length + AUDIO_LEAD:
                break
            continue
        if index not in first and packet.is_keyframe and time >= key - TICK / 2:
            first[index] = time
        if time < first.get(index, math.inf):  # before the clip, or a picture that depends on earlier ones
            continue
        last[index] = max(time, last.get(index, time))
        shift = round((_origin(video) + key) / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = targets[index]
        output.mux(packet)
    if video.stream.index not in first:
        raise VideoError(f"{video.path}: it has no key frame before {begin + length:.2f} s; use --precise")


def _add_stream(output: OutputContainer, source: Stream) -> Stream:
    target = output.add_stream_from_template(source, opaque=True)
    if source.codec_context.name == "hevc" and output.format.name in ("mp4", "mov"):
        target.codec_context.codec_tag = "hvc1"  # QuickTime plays no other
    return target


def _key_frame_time(video: OpenVideo, begin: float) -> float:
    """Return the time in s of the last key frame at or before ``begin``, else of the first one, else 0."""
    back, found = 0.0, None
    while True:
        whole = _move(video, begin - back)
        for packet in video.packets():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                continue
            if packet.is_keyframe and (found is None or video.seconds(stamp) <= begin + TICK):
                found = video.seconds(stamp)
            if found is not None and video.seconds(packet.dts if packet.dts is not None else stamp) > begin:
                break
        if found is not None and (whole or found <= begin + TICK):
            return found
        if whole:
            return 0.0
        back, found = 2 * back or 1.0, None


def _move(video: OpenVideo, seconds: float) -> bool:
    """Seek to a time if possible, else go to the beginning; return whether it is the beginning."""
    if video.is_sequential or seconds <= max(0.0, video.lead):
        video.rewind()
        return True
    with suppress(av.FFmpegError):
        video.seek(seconds)
        return False
    video.rewind()
    return True


def _origin(video: OpenVideo) -> float:
    """Return the stored time in s that a player shows as 0."""
    return float((video.stream.start_time or 0) * (video.stream.time_base or 0)) - video.lead


def _seconds(video: OpenVideo, packet: Packet[Any], stamp: int) -> float:
    return float(stamp * packet.time_base) - _origin(video)


def _encode_clip(video: OpenVideo, begin: float, length: float, output: OutputContainer) -> None:
    fps = Fraction(video.info.fps or 30).limit_denominator(1001)
    picture = output.add_stream("libx264", rate=fps, options=ENCODER)
    segment = VideoSegment(video.path, begin, length, video.info.fps, video)
    packets: list[Packet[Any]] = [*_encode_audio(video.path, begin, length, output)]
    packets += encode_segment(segment, SIDES[1], picture)
    output.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))


def _encode_audio(path: str, begin: float, length: float, output: OutputContainer) -> Iterator[Packet[Any]]:
    """Encode all audio streams as AAC, cut to one sample; damaged packets are silent."""
    with open_video(path) as video:
        _move(video, begin - AUDIO_LEAD)
        streams = list(video.container.streams.audio)
        rates = {each.index: each.rate if each.rate in (32000, 44100, 48000) else 48000 for each in streams}
        layouts = {
            each.index: LAYOUTS.get(each.channels, "") if "channels" in each.layout.name else each.layout.name
            for each in streams
        }
        resamplers = {index: av.AudioResampler("fltp", layouts[index], rate) for index, rate in rates.items()}
        sounds = {
            each.index: np.zeros((each.channels, round(length * rates[each.index])), np.float32) for each in streams
        }
        for packet in video.container.demux(streams) if streams else ():
            if packet.pts is not None and _seconds(video, packet, packet.pts) > begin + length + AUDIO_LEAD:
                break
            index = packet.stream.index
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    assert isinstance(frame, av.AudioFrame)
                    for part in resamplers[index].resample(frame):
                        if part.time is not None:
                            time = part.time - _origin(video) - begin
                            _paste(part.to_ndarray(), sounds[index], round(time * rates[index]))
        for index, rate in rates.items():
            target = output.add_stream("aac", rate=rate, layout=layouts[index])
            sound = av.AudioFrame.from_ndarray(sounds[index], format="fltp", layout=layouts[index])
            sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
            yield from target.encode(sound)
            yield from target.encode(None)


def _paste(samples: np.ndarray, sound: np.ndarray, offset: int) -> None:
    """Copy (channels, N) samples to (channels, M) at an offset, which may be negative, as far as they overlap."""
    first, last = max(0, offset), min(sound.shape[1], offset + samples.shape[1])
    if first < last:
        sound[:, first:last] = samples[:, first - offset : last - offset]
