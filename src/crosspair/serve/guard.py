"""ASGI middleware that rejects every request that the page does not need."""

from __future__ import annotations

import ipaddress
import json
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MB = 10**6
MAX_BODY = MB  # bytes of a request that is not an upload
MAX_UPLOADS = 10  # the total size of uploads on disk is limited to this number of largest uploads
UPLOAD_TIMEOUT = 600  # s after which an incomplete or unused upload is removed

# The routes of Gradio that the page uses. Routes that serve files, contact other hosts or are meant
# for developers are not included.
PREFIXES = ("/assets/", "/static/", "/moments/", "/gradio_api/heartbeat/")
PATHS = frozenset({
    "/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/queue/join",
    "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/startup-events", "/gradio_api/cancel", "/gradio_api/reset",
})  # fmt: skip
UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
JOIN_KEYS = ("fn_index", "trigger_id", "session_hash")  # keys of a call that are passed on
# Only this server is contacted, and no other page may embed this one. Gradio's templates require
# 'unsafe-eval'.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'; frame-ancestors 'none'"
)


class Guard:
    """Check requests before they reach the application.

    Args:
        app: ASGI application.
        uploads: folder of uploads, which Gradio stores as ``uploads/HASH/NAME``.
        max_upload: largest upload, in bytes.
        local: whether only loopback host names are accepted.
    """

    def __init__(self, app: ASGIApp, uploads: Path, max_upload: int, local: bool) -> None:
        self._app, self._uploads = app, uploads.resolve()
        self._max_upload, self._local = max_upload, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif rejection := self._check(scope):
            # Close the connection: the client may still be sending gigabytes.
            response = PlainTextResponse(rejection[1], rejection[0], {"connection": "close"})
            await response(scope, receive, send)
        elif scope["path"] != JOIN:
            await self._app(scope, receive, _with_policy(send))
        elif (call := self._sanitize_call(await _read_body(receive))) is None:
            await PlainTextResponse("invalid request", 400)(scope, receive, send)
        else:
            await self._app(scope, _replay(call), _with_policy(send))

    def _check(self, scope: Scope) -> tuple[int, str] | None:
        """Return the HTTP status and the message of a rejection, or None."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self._local and not is_loopback(_host_name(headers.get(b"host", ""))):
            return 400, "only requests to localhost are accepted"
        if path not in PATHS and not path.startswith(PREFIXES):
            return 404, "not found"
        if b"deep_link" in unquote_to_bytes(scope.get("query_string", b"")):
            return 404, "not found"  # Gradio reads a file for it
        if scope["method"] not in ("GET", "HEAD"):
            if _is_cross_site(headers):
                return 403, "cross-site requests are rejected"
            length = headers.get(b"content-length", "")
            # A chunked body may be longer than its Content-Length.
            if not length.isdecimal() or b"transfer-encoding" in headers:
                return 411, "Content-Length is required"
            limit = self._max_upload + MAX_BODY if path == UPLOAD else MAX_BODY
            if int(length) > limit:
                return 413, f"the maximum size is {limit // MB} MB"
            if path == UPLOAD and self._clean_uploads() + int(length) > MAX_UPLOADS * limit:
                return 503, "too many uploads at a time; try again in ten minutes"
        return None

    def _clean_uploads(self) -> int:
        """Remove old uploads and return the size of the others, in bytes.

        Gradio only removes complete uploads.
        """
        now, size = time.time(), 0
        for path in self._uploads.rglob("*"):
            with suppress(FileNotFoundError):  # removed by another request
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    if now - status.st_mtime > UPLOAD_TIMEOUT:
                        path.unlink()
                    else:
                        size += status.st_size
        return size

    def _sanitize_call(self, body: bytes) -> bytes | None:
        """Reduce a call to texts and paths of uploads; None if it contains anything else.

        Gradio copies any file of the server, or fetches any URL, that occurs anywhere in a call.
        """
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return None
        data = call.get("data") if isinstance(call, dict) else None
        if not isinstance(data, list) or not all(map(self._is_input, data)):
            return None
        keys = {name: call[name] for name in JOIN_KEYS if name in call}
        return json.dumps({**keys, "data": [_sanitize_input(value) for value in data]}).encode()

    def _is_input(self, value: Any) -> bool:
        if isinstance(value, dict):
            path = value.get("path")
            return isinstance(path, str) and self._is_upload(path)
        return value is None or isinstance(value, str)

    def _is_upload(self, path: str) -> bool:
        try:
            file = Path(path).resolve()
            # "http://host/../../uploads/a/b" is a path for pathlib, and a URL for Gradio.
            return "://" not in path and file.parent.parent == self._uploads and file.is_file()
        except (OSError, ValueError):  # not a valid file name
            return False


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine can connect to an address.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "a.org")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _is_cross_site(headers: dict[bytes, str]) -> bool:
    """Return whether a browser reports another site as the origin; other clients report none."""
    if site := headers.get(b"sec-fetch-site"):  # also right behind a proxy that renames the host
        return site not in ("same-origin", "none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition("://")[2] != headers.get(b"host")


def _sanitize_input(value: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
    if isinstance(value, dict):
        return {"path": value["path"], "meta": {"_type": "gradio.FileData"}}
    return value


async def _read_body(receive: Receive) -> bytes:
    """Read the body of a request; its length has been checked."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes) -> Receive:
    """Return an ASGI receive function that yields a body once."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _with_policy(send: Send) -> Send:
    """Add the security headers to a response."""

    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        await send(message)

    return send_with_policy
