"""Connections and requests that the server closes or rejects: idle, cross-site, too many."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

import uvicorn

from crosspair.serve import app as app_module
from crosspair.serve import guard as guard_module
from crosspair.serve.app import Connection
from crosspair.serve.guard import MAX_UPLOADS, Guard


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
