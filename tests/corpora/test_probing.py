"""Probing valid and invalid files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from crosspair.corpora import check as probing
from crosspair.corpora.check import WHOLE, check_videos, probe_videos
from crosspair.errors import CheckResult, VideoStatus
from crosspair.video import container, integrity
from crosspair.video.decode import probe
from crosspair.workers import WorkerFailure


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    return make_video(tmp_path_factory.mktemp("one") / "a.mp4", frames=60)


def kinds(*paths: Path | str, decode: bool = False) -> list[VideoStatus]:
    jobs = [(str(path), [WHOLE]) for path in paths]
    found = dict(check_videos(jobs, decode=decode))
    return [found[job].results[0].kind for job in range(len(jobs))]


def error(path: Path | str) -> str:
    """The message about a file, without its name."""
    (found,) = probe_videos([str(path)])
    assert list(found) == ["error"]
    assert found["error"].startswith(f"{path}: ")
    return found["error"].removeprefix(f"{path}: ")


@pytest.mark.parametrize("decode", [False, True])
def test_columns_are_what_the_header_says(video: Path, decode: bool) -> None:
    assert probe_videos([str(video)], decode=decode) == [
        {"width": 128, "height": 64, "fps": 30.0, "frames": 60, "duration": 2.0, "codec": "h264"}
    ]


def test_results_are_in_the_order_of_the_paths(tmp_path: Path, make_video) -> None:
    paths = [make_video(tmp_path / f"{n}.mp4", frames=n) for n in range(3, 9)]
    again = [*paths, *reversed(paths), tmp_path / "none.mp4", paths[0]]
    done: list[int] = []
    found = probe_videos([str(path) for path in again], progress=done.append)
    counts = [each.get("frames") for each in found]
    assert counts == [3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, None, 3]
    assert done[-1] == len(again)
    assert done == sorted(done)
    found[0]["frames"] = 99
    assert found[-1]["frames"] == 3


def test_missing_files(tmp_path: Path, video: Path) -> None:
    loop, pipe, folder = (tmp_path / f"{name}.mp4" for name in ("loop", "pipe", "folder"))
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    folder.mkdir()
    long, null, below, missing = ("a" * 300 + ".mp4", "a\0.mp4", "pipe.mp4/a.mp4", "none.mp4")
    unreadable = [loop, pipe, folder, *(tmp_path / name for name in (long, null, below))]
    assert kinds(*unreadable, tmp_path / missing) == [VideoStatus.UNREADABLE] * 6 + [VideoStatus.MISSING]
    assert error(tmp_path / missing) == "no such file"
    assert probe_videos([]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video.read_bytes())
    path.chmod(0)
    assert error(path) == "cannot be opened (Permission denied)"
    assert kinds(path) == [VideoStatus.UNREADABLE]


@pytest.mark.parametrize("name", ["a:b.mp4", "concat:a.mp4", "100%.mp4", "ä b?.mp4", "-.mp4"])
def test_any_name_is_a_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: Path, name: str) -> None:
    (tmp_path / name).write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert probe_videos([name, f"{tmp_path}/{name}"]) == probe_videos([str(video)]) * 2


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for content, reason in (
        (b"Not found\n" * 9, "text"),
        ("Zażółć\n".encode() * 99, "text"),
        (b"\n <!doctype HTML><p>", "HTML"),
        (b"\x00\x01\x02\x80" * 99, "Invalid data"),
    ):
        path.write_bytes(content)
        assert reason in error(path)
        assert kinds(path) == [VideoStatus.NOT_A_VIDEO]


def test_a_picture_that_can_be_read(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "a.mp4", format="png")
    assert error(tmp_path / "a.mp4") == "is a picture, not a video"
    assert kinds(tmp_path / "a.mp4") == [VideoStatus.NOT_A_VIDEO]


def test_sound_with_a_cover_is_audio_only(tmp_path: Path, make_audio) -> None:
    import av
    from av.stream import Disposition
    from PIL import Image

    assert kinds(make_audio(tmp_path / "plain.mp4")) == [VideoStatus.AUDIO_ONLY]
    covered = tmp_path / "a.mp4"
    with av.open(str(tmp_path / "plain.mp4")) as sound, av.open(str(covered), "w") as out:
        audio = out.add_stream_from_template(sound.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48)))
        out.mux(cover.encode(frame))
        out.mux(cover.encode())
        for packet in sound.demux(sound.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = audio
                out.mux(packet)
    assert error(covered) == "has no video stream"
    assert kinds(covered) == [VideoStatus.AUDIO_ONLY]


def test_another_container_than_the_name_says(tmp_path: Path, make_video) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(tmp_path / "a.webm").read_bytes())
    (_, found), *_ = check_videos([(str(path), [WHOLE])], decode=True)
    verdict = CheckResult(VideoStatus.WRONG_CONTAINER, "it is Matroska / WebM, not .mp4")
    assert found.results == [verdict]
    assert probe_videos([str(path)])[0]["codec"] == "vp9"


@pytest.mark.parametrize(
    ("fps", "frames", "kind"), [(30, 27, "SHORT"), (30, 28, "FINE"), (1, 3, "FINE"), (1000, 1200, "ODD_RATE")]
)
def test_length_and_frame_rate(tmp_path: Path, make_video, fps: int, frames: int, kind: str) -> None:
    assert kinds(make_video(tmp_path / "a.mp4", fps=fps, frames=frames)) == [VideoStatus[kind]]


def test_a_result_lists_all_notes(tmp_path: Path, make_video) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(tmp_path / "a.avi", frames=5).read_bytes())
    (_, found), *_ = check_videos([(str(path), [WHOLE])])
    (verdict,) = found.results
    assert verdict.kind is VideoStatus.WRONG_CONTAINER
    assert re.fullmatch(r"it is AVI .*, not \.mp4; 0\.\d+ s, shorter than a clip .*", verdict.reason)


@pytest.mark.parametrize(("limit", "value"), [("SIDES", (8, 100)), ("MAX_PIXELS", 8000), ("MAX_ASPECT", 1.5)])
def test_an_absurd_size(video: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: object) -> None:
    monkeypatch.setattr(container, limit, value)
    (verdict,) = integrity.inspect(str(video), [WHOLE], decode=True)[1]
    assert verdict.kind is VideoStatus.ABSURD_SIZE
    assert "128×64" in verdict.reason


def test_worker_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [WorkerFailure("its process crashed (signal 11)"), WorkerFailure("not done after 20 s", timed_out=True)]

    def isolated(task, jobs, **options):
        yield from enumerate(lost)

    monkeypatch.setattr(probing, "map_isolated", lambda *a, **k: (each for each in isolated(*a, **k)))
    assert probe_videos(["a.mp4", "b.mp4"]) == [
        {"error": "a.mp4: its process crashed (signal 11)"},
        {"error": "b.mp4: not done after 20 s; skipped"},
    ]
    found = [found.results for _, found in check_videos([("a", [WHOLE] * 2), ("b", [WHOLE])])]
    assert [[verdict.kind for verdict in of] for of in found] == [[VideoStatus.CRASH] * 2, [VideoStatus.HANG]]
    _, (_, decoded) = check_videos([("a", [WHOLE]), ("b", [WHOLE])], decode=True)
    assert decoded.results[0].kind is VideoStatus.HANG


def test_untouched_videos_are_fine(shared_data: Path) -> None:
    paths = sorted((shared_data / "ucf10" / "videos").rglob("*.mp4"))[::45]
    assert kinds(*paths, decode=True) == [VideoStatus.FINE] * len(paths)


def test_frames_are_no_more_than_a_manifest_can_hold(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosspair.video.container.MAX_FRAMES", 59)
    assert probe(str(video)).frames == 59
