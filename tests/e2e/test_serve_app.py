"""The application without a server: requests that the guard rejects, conversions, concurrency, API description."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

import uvicorn
from anyio import CapacityLimiter
from starlette.testclient import TestClient

from crosspair.corpora.prepare import TranscodeOutcome
from crosspair.errors import CrosspairError, ModelError
from crosspair.library import LibraryError, SearchHit
from crosspair.serve import app as app_module
from crosspair.serve import guard as guard_module
from crosspair.serve import service as service_module
from crosspair.serve.app import Connection, VideoResponse, build_app
from crosspair.serve.guard import MAX_UPLOADS, Guard
from crosspair.serve.service import LibraryService, ReceivedVideo, Upload

UPLOAD = Upload(4.0, b"", [(0.0, 4.0)], np.ones((1, 8), np.float32))


@pytest.fixture
def service(tmp_path: Path) -> LibraryService:
    """The service of a library that contains every video."""
    library = SimpleNamespace(videos=dict, count=lambda _: 1)
    model = SimpleNamespace(untrained=(), text_encoder=SimpleNamespace(is_empty=lambda _: False))
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


@contextmanager
def listening(limit: int) -> Iterator[Callable[[], socket.socket]]:
    """Run a server with a limit of connections; yields a function that connects to it."""
    server = uvicorn.Server(uvicorn.Config(answer_all, http=Connection, limit_concurrency=limit, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield lambda: socket.create_connection(listening.getsockname(), timeout=30)
        finally:
            server.should_exit = True
            thread.join()


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "REQUEST_TIMEOUT", 0.5)
    with listening(limit=5) as connect:
        idle = [connect() for _ in range(3)]
        idle[0].sendall(b"GET / HTTP/1.1\r\n")
        assert [each.recv(1) for each in idle] == [b""] * 3
        with connect() as connection:
            for _ in range(2):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
                time.sleep(0.3)
            with suppress(ConnectionError):
                for byte in b"GET / HTTP/1.1\r\nHost: " + b"a" * 100:  # never complete
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)
                pytest.fail("the connection is still open")


def test_a_response_that_is_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "SEND_TIMEOUT", 0.2)
    with listening(limit=5) as connect, connect() as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1)
        assert sum(map(len, iter(lambda: connection.recv(2**20), b""))) < 10**8


def test_unused_connections_make_room_for_requests() -> None:
    with listening(limit=4) as connect:
        unused = [connect() for _ in range(12)]
        unused[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert unused[-1].recv(1000).startswith(b"HTTP/1.1 200")


def test_limit_of_connections_follows_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, hard, lowest, highest in ((256, 256, 1, 99), (256, 10**6, 500, 500), (256, -1, 500, 500)):
        limits = [(soft, hard)]
        monkeypatch.setattr(app_module.resource, "getrlimit", lambda _, found=limits: found[-1])
        monkeypatch.setattr(app_module.resource, "setrlimit", lambda _, pair, found=limits: found.append(pair))
        assert lowest <= app_module._limit_connections() <= highest


async def answer_all(scope: Any, receive: Any, send: Any) -> None:
    """Read the body of an upload, and answer."""
    if scope["type"] == "http":
        if scope["method"] == "POST":
            await receive()
        if scope["path"] == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": bytes(10**5), "more_body": True})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("started", [False, True])
def test_requests_in_progress_when_the_server_stops(started: bool) -> None:
    async def run() -> None:
        async def block(scope: Any, receive: Any, send: Any) -> None:
            if started:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(60)

        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        task = asyncio.create_task(Guard(block)(scope, lambda: asyncio.sleep(60), send))  # type: ignore[arg-type, return-value]
        await asyncio.sleep(0.05)
        task.cancel()
        await task  # no error, which uvicorn would log with a traceback
        assert [message["status"] for message in messages if "status" in message] == [200 if started else 503]

    asyncio.run(run())


def guarded() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(Guard(answer_all)), base_url="http://localhost:7860")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"origin": "http://localhost:7860"}, 200), ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403), ({"origin": "http://a.org"}, 403),
        ({"origin": "http://a.org/localhost:7860"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:7860"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)  # fmt: skip
def test_cross_site_requests(headers: dict[str, str], status: int) -> None:
    async def run() -> None:
        async with guarded() as client:
            for path, method, expected in (
                ("/api/v1/search", "POST", status), ("/", "POST", status),
                ("/api/v1/search", "GET", status), ("/api/v1/moments/a", "GET", status),
                ("/", "GET", 200),  # a link to the page
            ):  # fmt: skip
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == expected
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert not any(word in policy for word in ("unsafe", "http", "*"))
                assert answer.headers["x-content-type-options"] == "nosniff"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("a.example", 400), ("localhost.a.example", 400), ("127.0.0.1.a.example", 400), ("", 400), ("[", 400),
        ("localhost:1", 200), ("LOCALHOST", 200), ("192.0.2.1:7860", 200), ("[::1]:7860", 200), ("[2001:db8::1]", 200),
        ("videos.example:7860", 200), ("Videos.Example", 200), ("other.videos.example", 400),
    ],
)  # fmt: skip
def test_host_names(host: str, status: int) -> None:
    async def run() -> None:
        transport = httpx2.ASGITransport(Guard(answer_all, ["videos.example"]))
        async with httpx2.AsyncClient(transport=transport, base_url="http://a") as client:
            assert (await client.get("/", headers={"host": host})).status_code == status

    asyncio.run(run())


def test_number_and_time_of_uploads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        finished = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            await finished.wait()
            yield b""

        async with guarded() as client:
            uploads = [asyncio.create_task(client.post("/api/v1/search", content=body())) for _ in range(MAX_UPLOADS)]
            await asyncio.sleep(0.1)
            rejected = await client.post("/api/v1/search")
            assert (rejected.status_code, rejected.headers["connection"]) == (503, "close")
            assert (await client.get("/api/v1/search")).status_code == 200
            finished.set()
            assert [(await upload).status_code for upload in uploads] == [200] * MAX_UPLOADS
            finished.clear()
            monkeypatch.setattr(guard_module, "UPLOAD_TIMEOUT", 0.05)
            for _ in range(MAX_UPLOADS + 1):
                assert (await client.post("/api/v1/search", content=body())).status_code == 408

    asyncio.run(run())
