"""The application without a server: conversions, concurrency, errors, API description."""

from __future__ import annotations

import asyncio
import os
import threading
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

from anyio import CapacityLimiter
from starlette.testclient import TestClient

from crosspair.corpora.prepare import TranscodeOutcome
from crosspair.errors import CrosspairError, ModelError
from crosspair.library import LibraryError, SearchHit
from crosspair.serve import app as app_module
from crosspair.serve import guard as guard_module
from crosspair.serve import service as service_module
from crosspair.serve.app import VideoResponse, build_app
from crosspair.serve.service import LibraryService, ReceivedVideo, Upload

UPLOAD = Upload(4.0, b"", [(0.0, 4.0)], np.ones((1, 8), np.float32))


@pytest.fixture
def service(tmp_path: Path) -> LibraryService:
    """The service of a library that contains every video."""
    library = SimpleNamespace(videos=dict, count=lambda _: 1)
    encoder = SimpleNamespace(is_empty=lambda _: False)
    model = SimpleNamespace(untrained=(), text_encoder=encoder, temperature=0.07)
    searcher: Any = SimpleNamespace(library=library, engine=SimpleNamespace(model=model))
    return LibraryService(searcher, tmp_path / "scratch", 10**6)


@pytest.fixture
def client(service: LibraryService) -> Iterator[TestClient]:
    app = build_app(service, [])
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

    def convert(requests: Any, **_: Any) -> list[Any]:
        (request,) = requests
        converted.append(request.clip.path)
        time.sleep(0.2)
        request.target.parent.mkdir(parents=True, exist_ok=True)
        request.target.write_bytes(Path(request.clip.path).read_bytes())
        return [(0, TranscodeOutcome())]

    monkeypatch.setattr(service_module, "transcode_locally", convert)
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
    client.get(address(service, "https://a.org/a.avi"))  # a URL has no file state, and no file here
    assert converted[2:] == ["https://a.org/a.avi"]


def test_number_of_playable_moments_is_limited(service: LibraryService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_MOMENTS", 2)
    first, second, again, third = (service.register(SearchHit(name, 0.0, 4.0, 0.5, None, b"")).key for name in "abac")
    assert first == again
    with pytest.raises(KeyError):
        service.find_hit(second)
    assert [service.find_hit(key).path for key in (first, third)] == ["a", "c"]


class Slow:
    """Functions that take a while, and count how many of them run at the same time."""

    def __init__(self) -> None:
        self.running, self.concurrent = 0, list[int]()

    def __call__(self, result: Any) -> Any:
        def function(*_: object, **__: object) -> Any:
            self.running += 1
            self.concurrent.append(self.running)
            time.sleep(0.05)
            self.running -= 1
            return result

        return function


def test_texts_and_videos_are_encoded_one_at_a_time(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, videos = Slow(), Slow()
    service.searcher.text = texts([])  # type: ignore[method-assign]
    service.searcher.nearest = lambda *_, **__: []  # type: ignore[method-assign]
    monkeypatch.setattr(service_module, "class_embeddings", texts(torch.ones(2, 8)))
    probe(monkeypatch, 3.0)
    encoded = SimpleNamespace(spans=[(0.0, 3.0)], thumbnails=[b""], embedding=torch.ones(1, 8))
    monkeypatch.setattr(service_module, "encode_windows", videos([encoded]))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.get, "/api/v1/search?text=a+dog") for _ in range(2)]
        answers += [pool.submit(post, client, "classify", classes="dog, cat") for _ in range(2)]
        answers += [pool.submit(post, client, "search", name) for name in (b"a", b"b", b"a")]
        assert [answer.result().status_code for answer in answers] == [200] * 7
    assert texts.concurrent == [1] * 4
    assert videos.concurrent == [1] * 3  # each content once


def probe(monkeypatch: pytest.MonkeyPatch, length: float) -> None:
    """Replace the probing of uploads; all have this length, in s."""
    probed = SimpleNamespace(table=SimpleNamespace(to_pylist=lambda: [{"error": None, "duration": length}]))
    monkeypatch.setattr(service_module, "probe_missing", lambda _: probed)


def test_a_long_upload_delays_no_short_one(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finished = threading.Event(), threading.Event()

    def encode(video: ReceivedVideo, *_: object) -> Upload:
        if not video.is_short:
            started.set()
            assert finished.wait(60)
        return UPLOAD

    service.searcher.nearest = lambda *_, **__: []  # type: ignore[method-assign]
    monkeypatch.setattr(service, "encode", encode)
    with ThreadPoolExecutor(1) as pool:
        probe(monkeypatch, 600.0)
        long = pool.submit(post, client, "search", b"long")
        assert started.wait(60)
        probe(monkeypatch, 30.0)
        assert post(client, "search", b"short").status_code == 200
        assert not long.done()
        finished.set()
        assert long.result().status_code == 200


def test_encoding_ends_with_the_time_of_an_upload(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(_: object, check_cancelled: Callable[[], None]) -> None:
        while True:
            time.sleep(0.05)
            check_cancelled()

    monkeypatch.setattr(guard_module, "UPLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(service, "encode", encode)
    probe(monkeypatch, 3.0)
    for _ in range(2):  # the first one does not keep the second one waiting
        assert post(client, "search").status_code == 408
    with service.open_copy() as copy:
        assert list(Path(copy.name).parent.iterdir()) == [Path(copy.name)]


def test_number_of_waiting_conversions_is_limited(
    client: TestClient, service: LibraryService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = CapacityLimiter(2)
    monkeypatch.setattr(app_module, "PENDING_CONVERSIONS", limiter)
    finished = threading.Event()

    def convert(_: str, target: Path) -> None:
        assert finished.wait(60)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"converted")

    monkeypatch.setattr(service, "convert", convert)
    for name in "abcd":
        (tmp_path / f"{name}.avi").touch()
    done, fourth, *others = [address(service, tmp_path / f"{name}.avi") for name in "abcd"]
    finished.set()
    assert client.get(done).status_code == 200
    finished.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.get, path) for path in others]
        while limiter.borrowed_tokens < 2:
            time.sleep(0.01)
        assert client.get(fourth).status_code == 503
        assert client.get(done).status_code == 200  # needs no conversion
        finished.set()
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_unexpected_errors_are_not_shown(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("/secret/path")

    monkeypatch.setattr(service, "receive", fail)
    answer = post(client, "search")
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_unreadable_library(client: TestClient, service: LibraryService, video: Path, caplog: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LibraryError("/secret/path is unreadable")

    path = address(service, video)
    service.searcher.text = service.searcher.library.count = fail  # type: ignore[method-assign, assignment]
    for each in (path, path.partition("?")[0], path.replace("?", "/thumbnail?"), "/api/v1/search?text=a+dog"):
        caplog.clear()
        answer = client.get(each)
        assert answer.status_code == 503
        assert "secret" not in answer.json()["detail"]
        (record,) = (record for record in caplog.records if record.name == "crosspair.serve.app")
        assert "/secret/path" in record.message
        assert record.exc_info is None


def test_failed_worker_processes(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise CrosspairError("a process ended: import secret.module")

    monkeypatch.setattr(service, "receive", fail)
    answer = post(client, "search")
    assert answer.status_code == 503
    assert "secret" not in answer.json()["detail"]
    assert "secret" in caplog.text


def test_a_conversion_that_cannot_be_written_is_not_the_videos_fault(
    client: TestClient, service: LibraryService, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = address(service, video)
    for outcome, status in ((TranscodeOutcome(fatal="/secret: disk full"), 503), (TranscodeOutcome(error="cut"), 404)):
        monkeypatch.setattr(service_module, "transcode_locally", lambda *_, found=outcome, **__: iter([(0, found)]))
        answer = client.get(converted)
        assert answer.status_code == status
        assert "secret" not in answer.text


def test_a_model_without_a_text_tower_is_reported(
    client: TestClient, service: LibraryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("the text tower of this model is not trained")

    monkeypatch.setattr(service.searcher, "text", refuse, raising=False)
    monkeypatch.setattr(service, "receive", lambda *_: UPLOAD)
    service.searcher.engine.model.untrained = ("text_encoder", "text_head")
    for answer in (client.get("/api/v1/search?text=a"), post(client, "classify", classes="a, b")):
        assert answer.status_code == 422
        assert "text tower" in answer.json()["detail"]


def test_methods_of_all_addresses(client: TestClient) -> None:
    for path in ("/healthz", "/docs", "/openapi.json", "/api/v1/folders", "/", "/page.js"):
        content, head = client.get(path), client.head(path)
        assert (content.status_code, head.status_code) == (200, 200), path
        assert head.headers["content-type"] == content.headers["content-type"]
    assert client.head("/api/v1/moments/unknown").status_code == 404
    for method, path in (
        ("GET", "/api/v1/classify"), ("HEAD", "/api/v1/classify"), ("PUT", "/api/v1/search"), ("POST", "/healthz"),
        ("POST", "/api/v1/folders"), ("DELETE", "/"),
    ):  # fmt: skip
        assert client.request(method, path).status_code == 405, (method, path)


def test_invalid_byte_ranges(client: TestClient, service: LibraryService, video: Path, converted: list[str]) -> None:
    path = address(service, video)
    for value in ("bytes=3-2", "bytes=a-b", "bytes=", "", "bytes=-5-10", "items=0-1", "bytes"):
        answer = client.get(path, headers={"Range": value})
        assert (answer.status_code, answer.content) == (200, b"first"), value
    for value in ("bytes=99999999-", "bytes=-0"):
        answer = client.get(path, headers={"Range": value})
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */5"), value
        assert answer.json()["detail"]
    assert client.get(path, headers={"Range": "bytes=1-2"}).content == b"ir"


def test_forms_contain_one_video(client: TestClient) -> None:
    for files in ([("video", b"a"), ("video", b"b")], [("other", b"a")]):
        assert client.post("/api/v1/search", files=files).status_code in (400, 422)


def test_api_description_is_complete(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert {(path, method) for path, methods in description["paths"].items() for method in methods} == {
        ("/api/v1/search", "get"), ("/api/v1/search", "post"), ("/api/v1/classify", "post"),
        ("/api/v1/moments/{key}", "get"), ("/api/v1/moments/{key}/thumbnail", "get"),
        ("/api/v1/folders", "get"), ("/api/v1/library", "get"), ("/healthz", "get"),
    }  # fmt: skip
    page = client.get("/docs").text
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            assert operation["description"] in page
            assert all(each["description"] for each in operation.get("parameters", []))
            assert all("schema" in each or "/json" not in media
                       for media, each in operation["responses"]["200"]["content"].items())  # fmt: skip
            assert f"{method.upper()} {path}" in page
            statuses = operation["responses"]
            assert ("422" in statuses) == ("parameters" in operation or "requestBody" in operation)
            assert {"400", "503"} <= set(statuses)
            assert ("403" in statuses) == path.startswith("/api/")
            assert all(set(statuses[each].get("content", ["application/json"])) == {"application/json"}
                       for each in statuses if each >= "400")  # fmt: skip
            assert not any("Successful" in each["description"] for each in statuses.values())
    moment = description["paths"]["/api/v1/moments/{key}"]["get"]["responses"]
    assert {"206", "404", "415", "416"} < set(moment)
    assert set(moment["200"]["content"]) == set(moment["206"]["content"]) == {"video/mp4", "video/webm"}
    assert "HTTPValidationError" not in description["components"]["schemas"]
    for name, schema in description["components"]["schemas"].items():
        assert all(field.get("description") for field in schema["properties"].values()), name
    assert "localhost/api/v1/search?text=" in page
    assert "<script" not in page


def test_file_that_shrinks_while_it_is_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(10**6))
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)
        if message["type"] == "http.response.body":
            os.truncate(path, 10)

    scope = {"type": "http", "method": "GET", "headers": []}
    asyncio.run(VideoResponse(path)(scope, lambda: asyncio.sleep(60), send))  # type: ignore[arg-type, return-value]
    assert messages[-1]["more_body"]  # the server closes the connection of an incomplete response
    (record,) = caplog.records
    assert str(path) in record.message
    assert record.exc_info is None
