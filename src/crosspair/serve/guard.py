"""ASGI middleware: reject other host names and sites, limit uploads, and add security headers."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence

from anyio import move_on_after
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOADS = 10  # received or waiting at the same time, which limits the size of temporary files
UPLOAD_TIMEOUT = 900.0  # s for an upload, from its first byte to the response
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
    """Check requests before they reach the application.

    Args:
        app: the application.
        allowed_hosts: names in the ``Host`` header that are accepted, in addition to ``localhost`` and all IP
            addresses. Other names may be of a site that resolves them to this server (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._hosts = {"localhost", *(name.lower() for name in allowed_hosts)}
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] not in ("GET", "HEAD")
        started = asyncio.Event()
        send = _add_headers(send, is_upload, started)
        if problem := self._check(scope, is_upload):
            await _respond(*problem)(scope, receive, send)
            return
        self._uploads += is_upload
        try:
            with move_on_after(UPLOAD_TIMEOUT if is_upload else None) as limit:
                await self._app(scope, receive, send)
            if limit.cancelled_caught and not started.is_set():
                await _respond(408, "The upload takes too long.")(scope, receive, send)
        except asyncio.CancelledError:
            if not started.is_set():
                await _respond(503, "The server is stopping.")(scope, receive, send)
        finally:
            self._uploads -= is_upload

    def _check(self, scope: Scope, is_upload: bool) -> tuple[int, str] | None:
        """Return status and message for a request that is rejected."""
        headers = Headers(scope=scope)
        host = re.sub(r":\d*\Z", "", headers.get("host", "")).lower()
        if host not in self._hosts and not _is_address(host):
            return 400, "This host name is not allowed. Start the server with --allowed-host and the name."
        # Links of other sites may open the page, but not use the API.
        if (is_upload or scope["path"].startswith("/api/")) and _is_cross_site(headers):
            return 403, "Requests of other sites are rejected."
        if is_upload and self._uploads == MAX_UPLOADS:
            return 503, "The server is processing too many uploads. Try again later."
        return None


def _respond(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


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
