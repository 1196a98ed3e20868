"""Requests that the guard accepts and rejects."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from crosspair.serve.guard import Guard

pytest.importorskip("starlette", reason="gradio is not installed")


def request(
    guard: Guard, path: str, body: bytes = b"", query: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Return the status, and the body that the application received or the message."""
    given = {"host": "localhost:7860", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http", "path": path, "query_string": query, "method": "POST" if body else "GET",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(guard(scope, receive, send))
    return messages[0]["status"], messages[1]["body"]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    (tmp_path / "uploads" / "a").mkdir(parents=True)
    for place in ("uploads/a/in.mp4", "uploads/loose.mp4", "out.mp4"):
        (tmp_path / place).write_bytes(b"video")
    (tmp_path / "uploads" / "a" / "link.mp4").symlink_to(tmp_path / "out.mp4")
    return Guard(application, tmp_path / "uploads", max_upload=10**6, local=True)


FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("a dog", 200), (None, 200), ("uploads/a/in.mp4", 200), ({"path": "uploads/a/in.mp4"}, 200),
        ({"path": "uploads/a/../a/in.mp4"}, 200), ({"path": "out.mp4"}, 400),
        ({"path": "uploads/loose.mp4"}, 400), ({"path": "uploads/a/link.mp4"}, 400),
        ({"path": "uploads/a/none.mp4"}, 400), ({"path": "uploads/a"}, 400),
        ({"path": "uploads/a/../../out.mp4"}, 400), ({"path": "http://a.org/b.mp4"}, 400),
        ({"path": "http://a.org/../../uploads/a/in.mp4"}, 400),
        ({"path": "a\0b"}, 400), ({"path": "a" * 9999}, 400), ({"path": None}, 400), ({}, 400),
        (1, 400), ([{"path": "uploads/a/in.mp4"}], 400), ({"a": {"path": "out.mp4"}}, 400),
    ],
)  # fmt: skip
def test_calls_contain_texts_and_uploads_only(
    guard: Guard, tmp_path: Path, monkeypatch, given, status
) -> None:
    monkeypatch.chdir(tmp_path)
    body = json.dumps({"data": ["text", given], "fn_index": 1}).encode()
    found, received = request(guard, "/gradio_api/queue/join", body)
    assert found == status
    passed_on = {**given, **FILE} if isinstance(given, dict) else given
    expected = {"data": ["text", passed_on], "fn_index": 1}
    assert (json.loads(received) == expected) if status == 200 else received != body


def test_other_keys_of_a_call_are_removed(guard: Guard, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = {"path": "out.mp4", **FILE}
    upload = {"path": "uploads/a/in.mp4", "x": outside, "url": "http://a.org", "meta": outside}
    known = {"fn_index": 1, "trigger_id": 2, "session_hash": "s"}
    more = {"event_data": outside, "event_id": "e", "batched": True, "simple_format": True}
    body = json.dumps({"data": [upload], **known, **more}).encode()
    status, received = request(guard, "/gradio_api/queue/join", body)
    assert (status, json.loads(received)) == (
        200, {"data": [{"path": "uploads/a/in.mp4", **FILE}], **known}
    )  # fmt: skip


def test_old_uploads_are_removed_and_their_total_size_is_limited(
    guard: Guard, tmp_path: Path
) -> None:
    uploads = tmp_path / "uploads"
    os.utime(uploads / "loose.mp4", (0, 0))
    assert request(guard, "/gradio_api/upload", b"x")[0] == 200
    assert not (uploads / "loose.mp4").exists()
    assert (uploads / "a" / "in.mp4").exists()
    assert (tmp_path / "out.mp4").exists()
    with (uploads / "waiting.mp4").open("wb") as file:
        file.truncate(20 * 10**6)  # MAX_UPLOADS of the largest
    assert request(guard, "/gradio_api/upload", b"x")[0] == 503
    assert request(guard, "/gradio_api/queue/join", b'{"data": []}')[0] == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"data": {}}', b"\xff", b"[" * 200_000])
def test_invalid_calls(guard: Guard, body: bytes) -> None:
    assert request(guard, "/gradio_api/queue/join", body)[0] == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:1", 200), ("[::1]:1", 200), ("a.org", 400), ("", 400),
     ("[", 400), ("127.0.0.1.a.org", 400)],
)  # fmt: skip
def test_host_names(guard: Guard, host: str, status: int) -> None:
    assert request(guard, "/", host=host)[0] == status


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/gradio_api/upload", "1000000", 200), ("/gradio_api/upload", "5000000000", 413),
        ("/gradio_api/queue/join", "1000001", 413), ("/gradio_api/upload", "", 411),
        ("/gradio_api/upload", "-1", 411), ("/gradio_api/vibe-edit", "1", 404),
        ("/gradio_api/file=/etc/passwd", "0", 404), ("/assets/a.js", "0", 200),
    ],
)  # fmt: skip
def test_lengths_and_paths(guard: Guard, path: str, length: str, status: int) -> None:
    assert request(guard, path, b"x", **{"content-length": length})[0] == status


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_chunked_body(guard: Guard, path: str) -> None:
    headers = {"content-length": "1", "transfer-encoding": "chunked"}
    assert request(guard, path, b"x", **headers)[0] == 411


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"origin": "http://localhost:7860"}, 200), ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403), ({"origin": "http://a.org"}, 403),
        ({"origin": "http://a.org/localhost:7860"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:7860"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"}, 200),
    ],
)  # fmt: skip
def test_cross_site_requests(guard: Guard, headers: dict[str, str], status: int) -> None:
    assert request(guard, "/gradio_api/upload", b"x", **headers)[0] == status
    assert request(guard, "/", **headers)[0] == 200


@pytest.mark.parametrize("query", [b"deep_link=a", b"a=b&deep%5flink=../a"])
def test_deep_links(guard: Guard, query: bytes) -> None:
    assert request(guard, "/config", query=query)[0] == 404
    assert request(guard, "/config", query=b"page=a")[0] == 200
