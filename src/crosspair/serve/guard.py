"""ASGI middleware: reject requests of other sites, limit uploads, and add security headers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOADS = 10  # received or waiting at the same time, which limits the size of temporary files
UPLOAD_TIMEOUT = 600.0  # s for receiving an upload
# Only this server is contacted, and no other site may embed its pages. The thumbnail of an upload
# is a data URL.
HEADERS = [
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
     b"media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
     b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip


class Guard:
    """Check requests before they reach the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] not in ("GET", "HEAD")
        started = asyncio.Event()
        send = _add_headers(send, is_upload, started)
        # Links of other sites may open the page, but not use the API.
        is_protected = is_upload or scope["path"].startswith("/api/")
        if is_protected and _is_cross_site(Headers(scope=scope)):
            await JSONResponse({"detail": "Requests of other sites are rejected."}, 403)(scope, receive, send)
        elif is_upload and self._uploads == MAX_UPLOADS:
            detail = "The server is processing too many uploads. Try again later."
            await JSONResponse({"detail": detail}, 503)(scope, receive, send)
        else:
            self._uploads += is_upload
            try:
                await self._app(scope, _limit_time(receive) if is_upload else receive, send)
            except asyncio.CancelledError:
                if not started.is_set():
                    await JSONResponse({"detail": "The server is stopping."}, 503)(scope, receive, send)
            finally:
                self._uploads -= is_upload


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address or name.

    >>> [is_loopback(host) for host in ("localhost", "127.1", "::1", "0.0.0.0")]
    [True, True, True, False]
    """
    try:
        return all(ipaddress.ip_address(info[4][0]).is_loopback for info in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def _is_cross_site(headers: Headers) -> bool:
    """Return whether a browser reports another site as the origin; other clients report none."""
    if site := headers.get("sec-fetch-site"):  # also valid behind a proxy that renames the host
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _limit_time(receive: Receive) -> Receive:
    deadline = asyncio.get_running_loop().time() + UPLOAD_TIMEOUT

    async def receive_in_time() -> Message:
        async with asyncio.timeout_at(deadline):
            return await receive()

    return receive_in_time


def _add_headers(send: Send, is_upload: bool, started: asyncio.Event) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.set()
            message["headers"] = [*message["headers"], *HEADERS]
            if is_upload and message["status"] >= 400:
                # The client may still be sending gigabytes.
                message["headers"].append((b"connection", b"close"))
        await send(message)

    return send_with_headers
