"""Convert search results to CSV and to edit lists of video editors: CMX 3600 EDL and FCPXML."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from crosspair.corpora.video_files import video_stem
from crosspair.errors import CrosspairError, VideoError, escape_controls
from crosspair.library.search import SearchHit
from crosspair.video.container import open_video
from crosspair.video.decode import displayed_info

logger = logging.getLogger(__name__)

CSV_COLUMNS = ["rank", "path", "start", "end", "start_time", "end_time", "score", "title"]
PROJECT = "crosspair"  # name of the edit
RATES = {  # frames per second of edit lists, and their names in FCPXML
    Fraction(24000, 1001): "23.98", Fraction(24): "24", Fraction(25): "25", Fraction(30000, 1001): "29.97",
    Fraction(30): "30", Fraction(48): "48", Fraction(50): "50", Fraction(60000, 1001): "59.94", Fraction(60): "60",
}  # fmt: skip
RATE_TOLERANCE = 2e-4  # relative, of a measured frame rate; 29.97 and 30 differ by 1e-3


def format_precise_time(seconds: float) -> str:
    """Format a time in ms.

    >>> format_precise_time(3725.9996), format_precise_time(61.5)
    ('1:02:06.000', '0:01:01.500')
    """
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def hits_to_csv(hits: Sequence[SearchHit]) -> str:
    """Return the results as CSV with `CSV_COLUMNS`; start and end in s, and as H:MM:SS.mmm."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for rank, hit in enumerate(hits, start=1):
        times = round(hit.start, 3), round(hit.end, 3)
        formatted = map(format_precise_time, times)
        writer.writerow([rank, hit.path, *times, *formatted, round(hit.score, 4), hit.title])
    return file.getvalue()


def hits_to_edl(hits: Sequence[SearchHit]) -> str:
    """Return the pictures of the results as a CMX 3600 EDL with one event each, by OpenTimelineIO.

    All time codes are at the rate of the first source, or the nearest usual one; at 29.97 and 59.94 they drop frames.

    Raises:
        VideoError: no source can be read.
        CrosspairError: OpenTimelineIO is not installed.
    """
    otio = import_otio()
    timeline, track = otio.schema.Timeline(PROJECT), otio.schema.Track("V")
    timeline.tracks.append(track)
    edits = _read_edits(hits)
    rate = _nearest_rate(edits[0].source.rate)
    for edit in edits:
        start, end = (round(frame / edit.source.rate * rate) for frame in (edit.start, edit.start + edit.frames))
        times = (otio.opentime.RationalTime(frames, float(rate)) for frames in (start, max(1, end - start)))
        media = otio.schema.ExternalReference(edit.source.url)
        track.append(otio.schema.Clip(edit.name, media, otio.opentime.TimeRange(*times)))
    edl: str = otio.adapters.write_to_string(timeline, "cmx_3600", rate=float(rate))
    return edl


def hits_to_fcpxml(hits: Sequence[SearchHit]) -> str:
    """Return the results as FCPXML 1.8: a project with one clip each, picture and sound.

    The timeline has the rate and the size of the first source; source times are in frames of each source.

    Raises:
        VideoError: no source can be read.
        CrosspairError: OpenTimelineIO is not installed.
    """
    # Not by OpenTimelineIO: its adapter 1.0 writes no rate of 29.97, no sound, and no title with an apostrophe.
    edits = _read_edits(hits)
    main = edits[0].source
    root = ElementTree.Element("fcpxml", version="1.8")
    resources = _add(root, "resources")
    project = _add(_add(_add(root, "library"), "event", name=PROJECT), "project", name=PROJECT)
    formats: dict[tuple[Fraction, int, int], str] = {}
    assets: dict[_Source, str] = {}
    sequence = _add(project, "sequence", format="r1")
    spine, offset = _add(sequence, "spine"), 0  # in frames of the timeline
    for edit in edits:
        source, length = edit.source, max(1, round(edit.frames / edit.source.rate * main.rate))
        kind = source.rate, source.width, source.height
        if kind not in formats:
            formats[kind] = f"r{len(formats) + len(assets) + 1}"
            _add(
                resources, "format", id=formats[kind], frameDuration=1 / source.rate, width=source.width,
                height=source.height,
            )  # fmt: skip
        if source not in assets:
            assets[source] = f"r{len(formats) + len(assets) + 1}"
            sound = {"hasAudio": 1, "audioSources": 1, "audioChannels": source.channels} if source.channels else {}
            _add(
                resources, "asset", id=assets[source], name=video_stem(source.url), src=source.url, hasVideo=1,
                format=formats[kind], start=source.first / source.rate, duration=source.frames / source.rate, **sound,
            )  # fmt: skip
        clip = _add(
            spine, "asset-clip", ref=assets[source], name=edit.name, offset=offset / main.rate,
            start=edit.start / source.rate, duration=length / main.rate, format=formats[kind],
        )  # fmt: skip
        if source.rate != main.rate:  # repeat or drop frames instead of changing the speed
            _add(clip, "conform-rate", scaleEnabled=0, srcFrameRate=RATES.get(source.rate))
        offset += length
    sequence.set("duration", _xml_value(offset / main.rate))
    ElementTree.indent(root)
    content = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n<!-- Written by crosspair -->\n{content}\n'


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    """Append an element with the attributes that are not None."""
    values = {name: _xml_value(value) for name, value in attributes.items() if value is not None}
    return ElementTree.SubElement(parent, tag, values)


def _xml_value(value: object) -> str:
    """Format an attribute; a fraction is a time in s."""
    return f"{value.numerator}/{value.denominator}s" if isinstance(value, Fraction) else str(value)


@dataclass(frozen=True)
class _Source:
    """A video of an edit list. Frames are counted from its first one."""

    url: str
    rate: Fraction
    lead: float  # time of its first frame, in s
    frames: int
    first: int  # time code of its first frame, in frames
    width: int
    height: int
    channels: int  # of its sound


@dataclass(frozen=True)
class _Edit:
    """A result in frames of its source."""

    name: str
    source: _Source
    start: int  # time code
    frames: int


def _read_edits(hits: Sequence[SearchHit]) -> list[_Edit]:
    """Return the edit of each result; sources that cannot be read are logged and skipped."""
    sources: dict[str, _Source | VideoError] = {}
    edits = []
    for hit in hits:
        if hit.path not in sources:
            try:
                sources[hit.path] = _read_source(hit.path)
            except VideoError as error:
                logger.warning("%s", error)
                sources[hit.path] = error
        if isinstance(source := sources[hit.path], _Source):
            start, end = (round((time - source.lead) * source.rate) for time in (hit.start, hit.end))
            start = max(0, min(start, source.frames - 1))
            name = escape_controls(" ".join((hit.title or video_stem(hit.path)).split()))
            edits.append(_Edit(name, source, source.first + start, max(1, min(end, source.frames) - start)))
    if not edits:
        raise VideoError(f"0 of {len(sources)} videos can be read; first error: {next(iter(sources.values()), '')}")
    return edits


def _read_source(path: str) -> _Source:
    from_timecode = import_otio().opentime.from_timecode
    with open_video(path) as video:
        info = displayed_info(video)
        fps = Fraction(info.fps or 30.0)
        usual = _nearest_rate(fps)
        rate = usual if abs(usual / fps - 1) < RATE_TOLERANCE else fps.limit_denominator(1001)
        streams = video.container.streams
        tags = {**video.container.metadata, **{k: v for each in streams for k, v in each.metadata.items()}}
        first = 0
        with suppress(KeyError, ValueError):  # no time code, or of an unusual rate
            first = round(from_timecode(tags["timecode"], float(rate)).value)
        return _Source(
            path if "://" in path else Path(path).absolute().as_uri(), rate, video.lead,
            max(1, round((info.duration - video.lead) * rate)), first, info.width, info.height,
            streams.audio[0].channels if streams.audio else 0,
        )  # fmt: skip


def _nearest_rate(fps: Fraction) -> Fraction:
    return min(RATES, key=lambda rate: abs(rate - fps))


def import_otio() -> Any:
    """Import OpenTimelineIO with its EDL adapter; CrosspairError if it is not installed."""
    try:
        import opentimelineio
        import otio_cmx3600_adapter  # noqa: F401
    except ImportError as error:
        raise CrosspairError('OpenTimelineIO is not installed; run pip install "crosspair[edit]"') from error
    return opentimelineio
