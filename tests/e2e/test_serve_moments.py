"""Conversions of moments: made once, of the file as it is, and for whom it may still be played."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crosspair.library import SearchHit
from crosspair.serve import answers as moments_module
from crosspair.serve.answers import Moments
from crosspair.serve.app import _add_moments

pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.avi"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was converted, by a stand-in that takes its time and copies."""
    made: list[str] = []

    def convert(request: Any) -> None:
        made.append(request.clip.path)
        time.sleep(0.2)
        request.target.write_bytes(Path(request.clip.path).read_bytes())

    monkeypatch.setattr(moments_module, "_convert", convert)
    return made


@pytest.fixture
def moments(tmp_path: Path) -> Moments:
    """Of a library that holds whatever it is asked for."""
    (tmp_path / "moments").mkdir()
    library: Any = SimpleNamespace(table=SimpleNamespace(count_rows=lambda _: 1))
    return Moments(library, tmp_path / "moments")


def shown(moments: Moments, path: Path | str) -> str:
    return moments.show(SearchHit(str(path), 0.0, 4.0, 0.5, None, b""))


def test_who_asks_together_gets_one_conversion(
    moments: Moments, video: Path, made: list[str]
) -> None:
    key = shown(moments, video)
    with ThreadPoolExecutor(4) as pool:
        targets = list(pool.map(moments.conversion, [key] * 4))
    assert {target.read_bytes() for target in targets} == {b"first"}
    assert made == [str(video)]


def test_a_file_that_was_replaced_is_converted_anew_and_a_deleted_one_not(
    moments: Moments, video: Path, made: list[str]
) -> None:
    key = shown(moments, video)
    moments.conversion(key)
    video.write_bytes(b"other")
    os.utime(video, (1, 1))
    assert moments.conversion(key).read_bytes() == b"other"
    video.unlink()
    with pytest.raises(KeyError):
        moments.conversion(key)
    url = shown(moments, "https://a.org/a.avi")
    assert len(made) == 2
    with pytest.raises(FileNotFoundError):  # of the stand-in: URLs are asked for again
        moments.conversion(url)


def test_browsers_ask_again_whether_a_moment_may_be_played(
    moments: Moments, video: Path, made: list[str]
) -> None:
    fastapi = pytest.importorskip("fastapi", reason="gradio is not installed")
    from starlette.testclient import TestClient

    app = fastapi.FastAPI()
    _add_moments(app, moments)
    client, place = TestClient(app), f"/moments/{shown(moments, video)}/conversion"
    answer = client.get(place)
    assert (answer.content, answer.headers["cache-control"]) == (b"first", "private, no-cache")
    video.unlink()
    assert client.get(place).status_code == 404
