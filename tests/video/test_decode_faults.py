"""Files that cannot be decoded raise an error of one line and never crash the process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosspair.config import Clip
from crosspair.errors import InvalidVideoError, VideoError, VideoStatus
from crosspair.video.decode import read_frames


def read_error(path: Path, times: Any = lambda n: np.linspace(0, n, 8)) -> VideoStatus:
    """Return the status that reading a whole file fails with."""
    with pytest.raises(InvalidVideoError) as caught:
        read_frames(Clip(str(path)), times, lambda w, h: (w, h))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.kind


def test_an_unknown_codec(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    assert read_error(path) is VideoStatus.UNDECODABLE


def cut_in_half(make_video: Any, path: Path) -> Path:
    """Write a file whose second half, which contains frames, is missing."""
    noise = np.random.default_rng(0)

    def content(index: int, width: int, height: int) -> np.ndarray:
        pixels = make_video.barcode(index, width, height)
        pixels[: height // 4] = noise.integers(0, 256, (height // 4, width, 3))
        return pixels

    make_video(path, frames=180, content=content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".mkv"])
def test_a_file_without_its_second_half(tmp_path: Path, make_video, suffix: str) -> None:
    path = cut_in_half(make_video, tmp_path / f"a{suffix}")
    # For an AVI, FFmpeg corrects the header's length by the file size; the last frame is torn.
    kinds = {VideoStatus.CUT} | ({VideoStatus.CORRUPT_FRAMES} if suffix == ".avi" else set())
    assert read_error(path, lambda length: [length]) in kinds


def test_frames_before_the_cut_can_be_read(tmp_path: Path, make_video) -> None:
    path = cut_in_half(make_video, tmp_path / "a.avi")
    frames = read_frames(Clip(str(path)), lambda _: [0.0, 0.1, 0.2], lambda w, h: (w, h))
    assert make_video.numbers(frames) == [0, 3, 6]


@pytest.fixture(scope="module")
def intact_files(tmp_path_factory: pytest.TempPathFactory, make_video) -> list[Path]:
    folder = tmp_path_factory.mktemp("intact")
    names = ["a.mp4", "a.avi", "a.webm", "a.mkv"]
    return [make_video(folder / name, b_frames=2 * (name == "a.mp4")) for name in names]


def read_or_fail(path: Path) -> None:
    """Read a damaged file: the result is frames or an error of one line."""
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
def test_random_bytes_give_frames_or_an_error(tmp_path: Path, intact_files: list[Path], seed: int) -> None:
    draw = random.Random(seed)
    for file in intact_files:
        damaged = bytearray(file.read_bytes())
        for _ in range(draw.choice([1, 10, 100, 400])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path = tmp_path / file.name
        path.write_bytes(damaged)
        read_or_fail(path)


@pytest.mark.parametrize("seed", range(30))
def test_a_file_cut_anywhere_gives_frames_or_an_error(tmp_path: Path, intact_files: list[Path], seed: int) -> None:
    draw = random.Random(seed)
    for file in intact_files:
        path = tmp_path / file.name
        path.write_bytes(file.read_bytes()[: draw.randrange(1, file.stat().st_size)])
        read_or_fail(path)
