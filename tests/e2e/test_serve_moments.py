"""Conversions of moments: one per moment and state of the file, none for removed videos."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crosspair.library import SearchHit
from crosspair.serve import answers as answers_module
from crosspair.serve.answers import MomentStore
from crosspair.serve.app import add_moment_routes

pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.avi"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of converted files; the conversion is replaced by a slow copy."""
    converted: list[str] = []

    def convert(request: Any) -> None:
        converted.append(request.clip.path)
        time.sleep(0.2)
        request.target.write_bytes(Path(request.clip.path).read_bytes())

    monkeypatch.setattr(answers_module, "_convert", convert)
    return converted


@pytest.fixture
def moments(tmp_path: Path) -> MomentStore:
    """The store of a library that contains every video."""
    (tmp_path / "moments").mkdir()
    library: Any = SimpleNamespace(table=SimpleNamespace(count_rows=lambda _: 1))
    return MomentStore(library, tmp_path / "moments")


def register(moments: MomentStore, path: Path | str) -> str:
    return moments.register(SearchHit(str(path), 0.0, 4.0, 0.5, None, b""))


def test_concurrent_requests_share_one_conversion(
    moments: MomentStore, video: Path, converted: list[str]
) -> None:
    key = register(moments, video)
    with ThreadPoolExecutor(4) as pool:
        targets = list(pool.map(moments.convert, [key] * 4))
    assert {target.read_bytes() for target in targets} == {b"first"}
    assert converted == [str(video)]


def test_replaced_and_deleted_files(
    moments: MomentStore, video: Path, converted: list[str]
) -> None:
    key = register(moments, video)
    moments.convert(key)
    video.write_bytes(b"other")
    os.utime(video, (1, 1))
    assert moments.convert(key).read_bytes() == b"other"
    video.unlink()
    with pytest.raises(KeyError):
        moments.convert(key)
    url = register(moments, "https://a.org/a.avi")
    assert len(converted) == 2
    with pytest.raises(FileNotFoundError):  # raised by the copy: a URL has no file state
        moments.convert(url)


def test_browsers_revalidate_moments(
    moments: MomentStore, video: Path, converted: list[str]
) -> None:
    fastapi = pytest.importorskip("fastapi", reason="gradio is not installed")
    from starlette.testclient import TestClient

    app = fastapi.FastAPI()
    add_moment_routes(app, moments)
    client, place = TestClient(app), f"/moments/{register(moments, video)}/conversion"
    answer = client.get(place)
    assert (answer.content, answer.headers["cache-control"]) == (b"first", "private, no-cache")
    video.unlink()
    assert client.get(place).status_code == 404
