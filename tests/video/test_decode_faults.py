"""Files that cannot be decoded: each tells why in one line, and none brings the process down."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosspair.config import Clip
from crosspair.errors import VideoError
from crosspair.video.decode import clip_times, read_frames


def fault(path: Path, instants: Any = lambda n: np.linspace(0, n, 8)) -> str:
    """The message of trying to read the whole of a file, without the file's name."""
    with pytest.raises(VideoError) as caught:
        read_frames(Clip(str(path)), instants, lambda w, h: (w, h))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_no_such_file(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.mp4") == "no such file"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert fault(tmp_path / "a.mp4") == "the file is empty (0 bytes)"


def test_a_folder_with_a_videos_name(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    assert fault(tmp_path / "a.mp4") == "is a folder, not a video"


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert fault(tmp_path / "a" / "b.mp4") == "Not a directory"


def test_text_with_a_videos_name(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("this is no video\n" * 100)
    assert fault(tmp_path / "a.mp4").startswith("not a readable video, or cut (")


def test_sound_without_pictures(tmp_path: Path, make_audio: Callable[[Path], Path]) -> None:
    assert fault(make_audio(tmp_path / "a.mp4")) == "has no video stream"


def test_a_codec_that_nobody_knows(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    assert fault(path) == "its video stream's codec is unknown"


def test_an_mp4_cut_before_its_index(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:1500])
    assert fault(path).startswith("not a readable video, or cut (")


def cut_in_half(make_video: Any, path: Path) -> Path:
    """A file whose bulk is frames, of which the second half is missing."""
    noise = np.random.default_rng(0)

    def content(index: int, width: int, height: int) -> np.ndarray:
        pixels = make_video.barcode(index, width, height)
        pixels[: height // 4] = noise.integers(0, 256, (height // 4, width, 3))
        return pixels

    make_video(path, frames=180, content=content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".mkv"])
def test_a_header_that_promises_more_than_there_is(tmp_path: Path, make_video, suffix: str) -> None:
    path = cut_in_half(make_video, tmp_path / f"a{suffix}")
    message = fault(path, lambda length: [length])
    cut = r"cut: the header promises \d\.\d\d s, but its frames end at \d\.\d\d s"
    # FFmpeg trusts an avi's header less where the file is too small for it; half a frame is left.
    half = r"damaged: the frame at \d\.\d\d s is corrupt"
    assert re.fullmatch(f"{cut}|{half}" if suffix == ".avi" else cut, message)


def test_frames_before_the_cut_can_still_be_had(tmp_path: Path, make_video) -> None:
    path = cut_in_half(make_video, tmp_path / "a.avi")
    frames = read_frames(Clip(str(path)), lambda _: [0.0, 0.1, 0.2], lambda w, h: (w, h))
    assert make_video.numbers(frames) == [0, 3, 6]


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory, make_video) -> list[Path]:
    folder = tmp_path_factory.mktemp("sound")
    names = ["a.mp4", "a.avi", "a.webm", "a.mkv"]
    return [make_video(folder / name, b_frames=2 * (name == "a.mp4")) for name in names]


def frames_or_fault(path: Path) -> None:
    """Every way of reading a damaged file ends in frames or in one line; pytest sees the rest."""
    for start in (None, 1.2):
        try:
            clip = Clip(str(path), start)
            frames = read_frames(clip, lambda n: np.linspace(0, n, 6), lambda *_: (64, 32))
        except VideoError as error:
            message = str(error)
        else:
            message = ""
            assert frames.shape == (6, 32, 64, 3)
        assert "\n" not in message


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_give_frames_or_a_fault(
    tmp_path: Path, sound_files: list[Path], seed: int
) -> None:
    draw = random.Random(seed)
    for file in sound_files:
        damaged = bytearray(file.read_bytes())
        for _ in range(draw.choice([1, 10, 100, 400])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path = tmp_path / file.name
        path.write_bytes(damaged)
        frames_or_fault(path)


@pytest.mark.parametrize("seed", range(30))
def test_a_file_cut_anywhere_gives_frames_or_a_fault(
    tmp_path: Path, sound_files: list[Path], seed: int
) -> None:
    draw = random.Random(seed)
    for file in sound_files:
        path = tmp_path / file.name
        path.write_bytes(file.read_bytes()[: draw.randrange(1, file.stat().st_size)])
        frames_or_fault(path)


def test_untouched_files_of_ucf101_can_be_read(shared_data: Path) -> None:
    for path in sorted((shared_data / "originals").glob("*.avi"))[:4]:
        frames = read_frames(
            Clip(str(path)), lambda n: clip_times(0.5, n, 8, 4), lambda w, h: (w // 4, h // 4)
        )
        assert frames.shape == (8, 60, 80, 3)
        assert frames.std() > 5
