"""What is not answered at all: whatever the page never asks for is refused, at the door."""

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
QUESTION = MB  # bytes of whatever is no upload
UPLOADS = 10  # of the largest may lie here at a time
ABANDONED = 600  # s; uploads that were broken off, or that nobody asked about, are removed then

# All of Gradio that the page uses. Its ways to files, to other hosts and to tools for developers
# are not among them.
PLACES = ("/assets/", "/static/", "/moments/", "/gradio_api/heartbeat/")
PAGES = frozenset({
    "/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/queue/join",
    "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/startup-events", "/gradio_api/cancel", "/gradio_api/reset",
})  # fmt: skip
UPLOAD, ASK = "/gradio_api/upload", "/gradio_api/queue/join"
ABOUT = ("fn_index", "trigger_id", "session_hash")  # a question: which, by what, whose
# Nothing comes from elsewhere, nothing goes elsewhere, and no other page frames this one. Gradio
# makes functions of its templates.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'; frame-ancestors 'none'"
)


class Guard:
    """Refuses requests before the application sees them.

    Args:
        app: the application.
        uploads: its folder for uploads, with a folder for each.
        max_upload: bytes.
        local: whether it answers to the names of this machine only.
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
        elif refusal := self._refusal(scope):
            # Whoever sends gigabytes all the same is not listened to.
            response = PlainTextResponse(refusal[1], refusal[0], {"connection": "close"})
            await response(scope, receive, send)
        elif scope["path"] != ASK:
            await self._app(scope, receive, _with_policy(send))
        elif (question := self._question(await _whole(receive))) is None:
            await PlainTextResponse("no such question", 400)(scope, receive, send)
        else:
            await self._app(scope, _saying(question), _with_policy(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self._local and not is_loopback(_host(headers.get(b"host", ""))):
            return 400, "it answers to localhost only"
        if path not in PAGES and not path.startswith(PLACES):
            return 404, "nothing here"
        if b"deep_link" in unquote_to_bytes(scope.get("query_string", b"")):
            return 404, "nothing here"  # another way to files
        if scope["method"] not in ("GET", "HEAD"):
            if _is_foreign(headers):
                return 403, "only the page itself may ask"
            length = headers.get(b"content-length", "")
            # A body in chunks would be as long as it likes, whatever length is told beside it.
            if not length.isdecimal() or b"transfer-encoding" in headers:
                return 411, "say how long it is"
            limit = self._max_upload + QUESTION if path == UPLOAD else QUESTION
            if int(length) > limit:
                return 413, f"more than the {limit // MB} MB that are allowed"
            if path == UPLOAD and self._uploaded() + int(length) > UPLOADS * limit:
                return 503, "too many uploads at a time; come again in ten minutes"
        return None

    def _uploaded(self) -> int:
        """Bytes of all uploads; those that are abandoned are removed, which Gradio does only of
        whole ones."""
        now, size = time.time(), 0
        for path in self._uploads.rglob("*"):
            with suppress(FileNotFoundError):  # it was looked at meanwhile
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    if now - status.st_mtime > ABANDONED:
                        path.unlink()
                    else:
                        size += status.st_size
        return size

    def _question(self, body: bytes) -> bytes | None:
        """A question if it holds texts and uploads only, else None.

        Gradio would copy any file of this machine that a question names, however deep in it, to
        where uploads are, and fetch any address: only what is known is handed on.
        """
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            return None
        given = question.get("data") if isinstance(question, dict) else None
        if not isinstance(given, list) or not all(map(self._is_input, given)):
            return None
        known = {name: question[name] for name in ABOUT if name in question}
        return json.dumps({**known, "data": [_input(each) for each in given]}).encode()

    def _is_input(self, given: Any) -> bool:
        if isinstance(given, dict):
            path = given.get("path")
            return isinstance(path, str) and self._is_upload(path)
        return given is None or isinstance(given, str)

    def _is_upload(self, path: str) -> bool:
        try:
            file = Path(path).resolve()
            # Others than pathlib would take an address for one, wherever its dots lead.
            return "://" not in path and file.parent.parent == self._uploads and file.is_file()
        except (OSError, ValueError):  # no name of any file
            return False


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "a.org")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _is_foreign(headers: dict[bytes, str]) -> bool:
    """Whether a browser says that another site's page asks. What is no browser says nothing."""
    if site := headers.get(b"sec-fetch-site"):  # true behind a proxy that renames the host, too
        return site not in ("same-origin", "none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition("://")[2] != headers.get(b"host")


def _input(given: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
    """A text, or an upload's path alone, marked as Gradio marks files."""
    if isinstance(given, dict):
        return {"path": given["path"], "meta": {"_type": "gradio.FileData"}}
    return given


async def _whole(receive: Receive) -> bytes:
    """A request's body, whose length is limited already."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _saying(body: bytes) -> Receive:
    said = False

    async def receive() -> Message:
        nonlocal said
        if said:
            return {"type": "http.disconnect"}
        said = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        await send(message)

    return sending
