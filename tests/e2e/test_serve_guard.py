"""Requests that the guard accepts and rejects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="fastapi is not installed")

from crosspair.serve import guard as guard_module
from crosspair.serve.guard import MAX_UPLOADS, Guard


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body of an upload, and answer."""
    if scope["method"] == "POST":
        await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def request(
    guard: Guard, path: str, method: str = "GET", body: asyncio.Future[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str]]:  # fmt: skip
    """Return the status and the headers of the response."""
    given = {"host": "localhost:7860", **(headers or {})}
    scope = {
        "type": "http", "path": path, "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await body if body else b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await guard(scope, receive, send)
    answer = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], answer


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
    guard = Guard(application)
    for path, method, expected in (
        ("/api/v1/search", "POST", status), ("/", "POST", status),
        ("/api/v1/search", "GET", status), ("/api/v1/moments/a", "GET", status),
        ("/", "GET", 200),  # a link to the page
    ):  # fmt: skip
        answer = asyncio.run(request(guard, path, method, headers=headers))
        assert answer[0] == expected


def test_security_headers() -> None:
    for headers in ({}, {"sec-fetch-site": "cross-site"}):
        _, answer = asyncio.run(request(Guard(application), "/api/v1/search", headers=headers))
        policy = answer["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer["x-content-type-options"] == "nosniff"


def test_number_of_uploads_is_limited() -> None:
    async def run() -> None:
        guard, body = Guard(application), asyncio.get_running_loop().create_future()
        uploads = [asyncio.create_task(request(guard, "/api/v1/search", "POST", body)) for _ in range(MAX_UPLOADS)]
        await asyncio.sleep(0)
        status, headers = await request(guard, "/api/v1/search", "POST")
        assert (status, headers["connection"]) == (503, "close")
        assert (await request(guard, "/api/v1/search"))[0] == 200
        body.set_result(b"")
        assert [(await upload)[0] for upload in uploads] == [200] * MAX_UPLOADS
        assert (await request(guard, "/api/v1/search", "POST"))[0] == 200

    asyncio.run(run())


def test_time_of_an_upload_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "UPLOAD_TIMEOUT", 0.05)

    async def run() -> None:
        guard = Guard(application)
        for _ in range(MAX_UPLOADS + 1):
            body = asyncio.get_running_loop().create_future()
            with pytest.raises(TimeoutError):
                await request(guard, "/api/v1/search", "POST", body)

    asyncio.run(run())
