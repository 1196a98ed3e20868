"""The API with a replaced library: conversions, concurrent requests, invalid forms."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

from starlette.testclient import TestClient

from crosspair.library import SearchHit
from crosspair.serve import service as service_module
from crosspair.serve.app import build_app
from crosspair.serve.service import LibraryService, Upload

UPLOAD = Upload(4.0, b"", [(0.0, 4.0)], np.ones((1, 8), np.float32))


@pytest.fixture
def service(tmp_path: Path) -> LibraryService:
    """The service of a library that contains every video."""
    table = SimpleNamespace(count_rows=lambda _: 1)
    library = SimpleNamespace(videos=dict, table=table)
    model = SimpleNamespace(untrained=(), text_encoder=SimpleNamespace(is_empty=lambda _: False))
    searcher: Any = SimpleNamespace(library=library, engine=SimpleNamespace(model=model))
    (tmp_path / "scratch").mkdir()
    return LibraryService(searcher, tmp_path / "scratch")


@pytest.fixture
def client(service: LibraryService) -> Iterator[TestClient]:
    app = build_app(service, 10**6, "127.0.0.1")
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


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

    monkeypatch.setattr(service_module, "_convert", convert)
    return converted


def address(service: LibraryService, path: Path | str) -> str:
    moment = service.register(SearchHit(str(path), 0.0, 4.0, 0.5, None, b""))
    return f"/api/v1/moments/{moment.key}?converted=true"


def post(client: TestClient, path: str, content: bytes = b"video", **fields: str) -> Any:
    return client.post(f"/api/v1/{path}", files={"video": ("a.mp4", content)}, data=fields)


def test_concurrent_requests_share_one_conversion(
    client: TestClient, service: LibraryService, video: Path, converted: list[str]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(client.get, [address(service, video)] * 4))
    assert {answer.content for answer in answers} == {b"first"}
    assert converted == [str(video)]


def test_replaced_and_deleted_files(
    client: TestClient, service: LibraryService, video: Path, converted: list[str]
) -> None:
    path = address(service, video)
    answer = client.get(path)
    assert (answer.content, answer.headers["cache-control"]) == (b"first", "private, no-cache")
    video.write_bytes(b"other")
    os.utime(video, (1, 1))
    assert client.get(path).content == b"other"
    video.unlink()
    assert client.get(path).status_code == 404
    assert len(converted) == 2
    client.get(address(service, "https://a.org/a.avi"))  # a URL has no file state
    assert converted[2:] == ["https://a.org/a.avi"]


def test_number_of_playable_moments_is_limited(service: LibraryService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_MOMENTS", 2)
    first, second, again, third = (service.register(SearchHit(name, 0.0, 4.0, 0.5, None, b"")).key for name in "abac")
    assert first == again
    with pytest.raises(KeyError):
        service.find_hit(second)
    assert [service.find_hit(key).path for key in (first, third)] == ["a", "c"]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Wrap functions to count how many of their calls run at the same time."""

    class Measure:
        concurrent: list[int] = []  # noqa: RUF012
        running = 0

        def __call__(self, result: Any) -> Any:
            def function(*_: object, **__: object) -> Any:
                self.running += 1
                self.concurrent.append(self.running)
                time.sleep(0.05)
                self.running -= 1
                return result

            return function

    return Measure()


def test_texts_are_encoded_one_at_a_time(
    client: TestClient, service: LibraryService, measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.searcher.text = measure([])  # type: ignore[method-assign]
    monkeypatch.setattr(service_module, "class_embeddings", measure(torch.ones(2, 8)))
    monkeypatch.setattr(service, "encode", lambda *_: UPLOAD)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.get, "/api/v1/search?text=a+dog") for _ in range(2)]
        answers += [pool.submit(post, client, "classify", classes="dog, cat") for _ in range(2)]
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert measure.concurrent == [1] * 4


def test_videos_are_encoded_once_and_one_at_a_time(
    client: TestClient, service: LibraryService, measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.searcher.nearest = lambda *_, **__: []  # type: ignore[method-assign]
    monkeypatch.setattr(service, "_encode", measure(UPLOAD))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: post(client, "search", name), [b"a", b"b", b"a"]))
    assert [answer.json() for answer in answers] == [[]] * 3
    assert measure.concurrent == [1] * 2


def test_unexpected_errors_are_not_shown(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("/secret/path")

    monkeypatch.setattr(service, "encode", fail)
    answer = post(client, "search")
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize("more", [{"files": [("video", b"a"), ("video", b"b")]}, {"files": [("other", b"a")]}])
def test_forms_contain_one_video(client: TestClient, more: dict[str, Any]) -> None:
    assert client.post("/api/v1/search", **more).status_code in (400, 422)


def test_openapi_description(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/api/v1/search"]) == {"get", "post"}
    assert "/api/v1/moments/{key}/thumbnail" in paths
