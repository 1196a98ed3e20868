"""Export of search results: clips decoded again, edit lists read back, and outputs that exist already."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from crosspair.errors import CrosspairError, VideoError
from crosspair.library.export import HitOutputs, export_clips
from crosspair.library.lists import hits_to_csv, hits_to_edl, hits_to_fcpxml
from crosspair.library.search import SearchHit
from crosspair.video.container import open_video
from crosspair.video.decode import decode_from
from tests.conftest import VideoMaker

NTSC = Fraction(30000, 1001)
TONE_FROM = 2.5  # s; before, the sound is silent


def make_hit(path: Path | str, start: float, end: float, title: str | None = None) -> SearchHit:
    return SearchHit(str(path), start, end, 0.5, title, b"")


def add_sound(source: Path, target: Path, seconds: float, *, shift: float = 0.0, **options: object) -> Path:
    """Copy a video with a sound that begins at `TONE_FROM`; pictures begin after ``shift`` s."""
    times = np.arange(round(seconds * 32000)) / 32000
    sound = av.AudioFrame.from_ndarray(
        (0.5 * np.sin(2 * np.pi * 800 * times) * (times >= TONE_FROM)).astype(np.float32)[None], "fltp", "mono"
    )
    sound.sample_rate, sound.pts = 32000, 0
    with av.open(str(source)) as input_file, av.open(str(target), "w", **options) as output:
        pictures = output.add_stream_from_template(input_file.streams.video[0])
        audio = output.add_stream("aac", rate=32000, layout="mono")
        packets = [packet for packet in input_file.demux(video=0) if packet.dts is not None]
        for packet in packets:
            packet.stream = pictures
            packet.pts += round(shift / packet.time_base)
            packet.dts += round(shift / packet.time_base)
        packets += [*audio.encode(sound), *audio.encode(None)]
        for packet in sorted(packets, key=lambda each: (each.dts or 0) * each.time_base):
            output.mux(packet)
    return target


def read_numbers(path: Path) -> tuple[list[float], list[int]]:
    """Return the times and the numbers of all frames."""
    with open_video(str(path)) as video:
        frames = [(time, frame.to_ndarray(format="rgb24")) for time, frame in decode_from(video, 0.0)]
    return [time for time, _ in frames], VideoMaker.numbers(np.stack([pixels for _, pixels in frames]))


def tone_time(path: Path) -> float:
    """Return when the sound begins, in s on the player's clock."""
    with av.open(str(path)) as container:
        origin = (container.start_time or 0) / av.time_base
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray()).max(axis=0)
            if samples.max() > 0.1:
                return float(frame.time) - origin + float(np.argmax(samples > 0.1)) / frame.sample_rate
    raise AssertionError("no sound")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> dict[str, tuple[Path, float]]:
    """Videos, each with its frame rate and the time of its first picture."""
    folder = tmp_path_factory.mktemp("sources")
    pal = make_video(folder / "pal.mp4", fps=25, frames=125, gop=50)
    ntsc = make_video(
        folder / "ntsc.mp4", fps=NTSC, frames=150, b_frames=2, options={"x264-params": "keyint=37:scenecut=0"}
    )
    return {
        "mp4": (add_sound(pal, folder / "holiday.mp4", 5), 25, 0.0),
        "mkv": (add_sound(ntsc, folder / "b-frames.mkv", 5), NTSC, 0.0),
        # The first time stamp, of the sound, is about 1.4 s; the AAC encoder adds 32 ms before it.
        "ts": (add_sound(pal, folder / "late.ts", 5, shift=0.48), 25, 0.512),
        "avi": (make_video(folder / "old.avi", fps=25, frames=125, gop=25), 25, 0.0),
        "webm": (make_video(folder / "web.webm", fps=25, frames=125, gop=40), 25, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "avi", "webm"])
def test_copied_clips(sources, name: str, tmp_path: Path) -> None:
    path, fps, lead = sources[name]
    start, end = 2.2, 3.6
    (clip,) = export_clips([make_hit(path, start, end)], tmp_path / "out")
    assert clip.name == f"01 {path.stem} 0.00.02-0.00.03.{name}"
    with open_video(str(path)) as video:
        keys = [video.seconds(p.pts if p.pts is not None else p.dts) for p in video.packets() if p.is_keyframe]
    key = max(time for time in keys if time <= start + 1e-3)
    times, numbers = read_numbers(clip)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] == round((key - lead) * fps)
    extra = 3 if name == "mkv" else 1  # reordered frames
    assert round((end - lead) * fps) - 1 <= numbers[-1] <= round((end - lead) * fps) - 1 + extra
    assert np.diff(times) == pytest.approx(float(1 / fps), abs=2e-3)
    if name in ("mp4", "mkv", "ts"):
        assert tone_time(clip) - times[0] == pytest.approx(tone_time(path) - key, abs=0.005)


@pytest.mark.parametrize("name", ["mp4", "mkv", "ts"])
def test_precise_clips(sources, name: str, tmp_path: Path) -> None:
    path, fps, lead = sources[name]
    start, end = 2.21, 3.65
    (clip,) = export_clips([make_hit(path, start, end)], tmp_path, precise=True)
    assert clip.suffix == ".mp4"
    times, numbers = read_numbers(clip)
    first, last = int((start - lead) * fps), int((end - lead) * fps)
    assert numbers == list(range(first, last + 1))
    assert times[0] == pytest.approx(0, abs=1e-3)
    assert tone_time(clip) == pytest.approx(tone_time(path) - start, abs=0.005)
    with open_video(str(clip)) as video:
        assert video.info.duration == pytest.approx(end - start, abs=0.002)


def test_a_clip_from_the_beginning_and_names(sources, make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / 'Wo? "A|B" é.mp4', fps=25, frames=50)
    late, _, _ = sources["ts"]
    hits = [make_hit(path, 0, 2), make_hit(late, 0, 1), make_hit(path, 1, 9)]
    clips = export_clips(hits, tmp_path / "out")
    assert [clip.name for clip in clips] == [
        "01 Wo_ _A_B_ é 0.00.00-0.00.02.mp4", "02 late 0.00.00-0.00.01.ts", "03 Wo_ _A_B_ é 0.00.01-0.00.09.mp4",
    ]  # fmt: skip
    assert sorted(clips) == sorted((tmp_path / "out").iterdir())
    assert [read_numbers(clip)[1][0] for clip in clips] == [0, 0, 24]
    assert len(read_numbers(clips[0])[1]) == 50


def test_other_containers(make_video, tmp_path: Path) -> None:
    matroska = make_video(tmp_path / "a.divx", frames=60, gop=20, codec="libx264", container_format="matroska")
    unordered = make_video(tmp_path / "b.avi", frames=60, gop=20, b_frames=2)
    clips = export_clips([make_hit(path, 1, 1.5) for path in (matroska, unordered)], tmp_path / "out")
    assert [clip.suffix for clip in clips] == [".mkv", ".mp4"]  # copied and encoded
    assert read_numbers(clips[0])[1] == list(range(20, 45))
    assert len(read_numbers(clips[1])[1]) in (15, 16)


def test_unreadable_sources_and_existing_files(sources, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _, _ = sources["mp4"]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(path.read_bytes()[:5000])
    hits = [make_hit(broken, 0, 2), make_hit(path, 1, 2), make_hit(tmp_path / "gone.mp4", 0, 2)]
    (clip,) = export_clips(hits, tmp_path / "out")
    assert clip.name.startswith("02 holiday")
    assert [sum(name in record.message for record in caplog.records) for name in ("broken", "gone")] == [1, 1]
    before = clip.read_bytes()
    for precise in (False, True):
        with pytest.raises(CrosspairError, match=r"out .*02 holiday"):
            export_clips(hits, tmp_path / "out", precise=precise)
    assert clip.read_bytes() == before
    for convert in (export_clips, hits_to_edl, hits_to_fcpxml):
        arguments = (tmp_path / "new",) if convert is export_clips else ()
        with pytest.raises(VideoError, match="broken"):
            convert(hits[:1], *arguments)
    assert not (tmp_path / "new").exists()
    caplog.clear()
    assert hits_to_edl(hits).count("FROM CLIP NAME") == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize("first", ["mp4", "mkv"])
def test_edit_lists_are_read_back(sources, first: str) -> None:
    otio = pytest.importorskip("opentimelineio")
    names = [first, *(name for name in ("mp4", "mkv", "ts") if name != first)]
    hits = [make_hit(sources[name][0], 1.2, 3.1, f'{name}: it\'s "A & B"\n<new>') for name in (*names, first)]
    hits.append(make_hit(sources[first][0], 4, 99))  # after the end; without a title
    rate = float(sources[first][1])
    edl = otio.adapters.read_from_string(hits_to_edl(hits), "cmx_3600", rate=rate)
    xml = hits_to_fcpxml(hits)
    (project,) = otio.adapters.read_from_string(xml, "fcpx_xml")
    for timeline in (edl, project):
        clips = list(timeline.find_clips())
        assert len(clips) == len(hits)
        for clip, hit, name in zip(clips, hits, (*names, first, first), strict=True):
            _, fps, lead = sources[name]
            frame = 1 / min(fps, rate) + 1e-3
            found = clip.source_range
            assert clip.media_reference.target_url == Path(hit.path).as_uri()
            assert clip.name == (" ".join(hit.title.split()) if hit.title else Path(hit.path).stem)
            assert found.start_time.to_seconds() == pytest.approx(hit.start - lead, abs=1.5 * frame)
            assert found.duration.to_seconds() == pytest.approx(min(hit.end, 5) - hit.start, abs=1.5 * frame)
    assert xml.count("<asset ") == 3
    assert ('frameDuration="1001/30000s"' in xml, xml.count('hasAudio="1"')) == (True, 3)


def test_time_codes_of_the_source_are_used(sources, make_video, tmp_path: Path) -> None:
    pytest.importorskip("opentimelineio")
    source = make_video(tmp_path / "a.mp4", fps=25, frames=50)
    with av.open(str(source)) as video, av.open(str(tmp_path / "camera.mov"), "w") as output:
        output.metadata["timecode"] = "10:00:00:05"
        stream = output.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    hits = [make_hit(tmp_path / "camera.mov", 1, 2)]
    assert "10:00:01:05 10:00:02:05 00:00:00:00 00:00:01:00" in hits_to_edl(hits)
    assert 'start="180006/5s" duration="1/1s"' in hits_to_fcpxml(hits)


def test_csv(tmp_path: Path) -> None:
    hits = [make_hit("/a/x.mp4", 750.5, 3754.4996, 'a "dog", barking'), make_hit("https://a.org/é.mp4", 0, 4)]
    first, second = csv.DictReader(io.StringIO(hits_to_csv(hits)))
    assert first == {
        "rank": "1", "path": "/a/x.mp4", "start": "750.5", "end": "3754.5", "start_time": "0:12:30.500",
        "end_time": "1:02:34.500", "score": "0.5", "title": 'a "dog", barking',
    }  # fmt: skip
    assert (second["rank"], second["path"], second["title"]) == ("2", "https://a.org/é.mp4", "")


def test_the_extra_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    for name in ("edl", "fcpxml"):
        with pytest.raises(CrosspairError, match=r"crosspair\[edit\]"):
            HitOutputs(**{name: tmp_path / f"a.{name}"})
    HitOutputs(csv=tmp_path / "a.csv", clips=tmp_path / "clips", precise=True)


def test_outputs_replace_only_their_own_kind(sources, tmp_path: Path) -> None:
    pytest.importorskip("opentimelineio")
    hits = [make_hit(sources["mp4"][0], 1, 2)]
    files = {name: tmp_path / f"found.{name}" for name in ("edl", "fcpxml", "csv")}
    for _ in range(2):  # the second one replaces them
        lines = HitOutputs(**files).write(hits)
    assert [line.split(":")[0] for line in lines] == [str(files[name]) for name in ("csv", "edl", "fcpxml")]
    for name, file in files.items():
        file.write_text("mine")
        with pytest.raises(CrosspairError, match=rf"found\.{name}"):
            HitOutputs(**{name: file})
        with pytest.raises(CrosspairError, match=r"other\.txt"):
            HitOutputs(**{name: tmp_path / "other.txt"})
    with pytest.raises(CrosspairError, match="--precise"):
        HitOutputs(precise=True)
    assert HitOutputs(clips=tmp_path / "none", edl=tmp_path / "new.edl", csv=tmp_path / "new.csv").write([])
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "new.edl").exists()
