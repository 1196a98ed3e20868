"""The site: the page, the moments that it plays, and what is not answered at all."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crosspair.errors import CrosspairError, VideoError
from crosspair.library import Engine, Library, Searcher
from crosspair.serve.answers import Answers
from crosspair.serve.moments import Moments

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MB = 10**6
QUESTION = MB  # bytes of whatever is no upload
GRACE = 2  # s for what is under way, when the server is stopped

# All of Gradio that the page uses. Its ways to files, to other hosts and to tools for developers
# are not among them.
PLACES = ("/assets/", "/static/", "/moments/", "/gradio_api/heartbeat/")
PAGES = frozenset({
    "/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/queue/join",
    "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/startup-events", "/gradio_api/cancel", "/gradio_api/reset",
})  # fmt: skip
UPLOAD = "/gradio_api/upload"
# Nothing comes from elsewhere, nothing goes elsewhere, and no other page frames this one. Gradio
# makes functions of its templates.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'; frame-ancestors 'none'"
)


def serve(
    library: Library,
    of: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: int = 200,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a page for a library until it is stopped.

    Args:
        library: to search in.
        of: the library's model; it decodes in processes of its own, one at least.
        host: address to listen at; other machines reach it unless it is loopback.
        port: 0 takes a free one.
        max_upload: largest upload, in MB.
        ready: told the page's address, once it answers.

    Raises:
        CrosspairError: the extra "demo" is not installed, or the address cannot be had.
    """
    with _listening(host, port) as listening, tempfile.TemporaryDirectory() as scratch:
        app = site(
            Searcher(library, of), Path(scratch), max_upload * MB, local=is_loopback(host)
        )  # fmt: skip
        import uvicorn

        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
        bracketed = f"[{host}]" if ":" in host else host
        ready(f"http://{bracketed}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run([listening])


def site(searcher: Searcher, scratch: Path, max_upload: int, *, local: bool) -> FastAPI:
    """The whole application.

    Args:
        searcher: of the library.
        scratch: a folder for uploads and conversions, which the caller removes.
        max_upload: bytes.
        local: whether only this machine reaches it; then it answers to no other name, so that no
            page from elsewhere can pass for it.

    Raises:
        CrosspairError: the extra "demo" is not installed.
    """
    uploads, conversions = scratch / "uploads", scratch / "moments"
    uploads.mkdir()
    conversions.mkdir()
    # It looks at both as it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError as error:
        raise CrosspairError('the page needs the extra: pip install "crosspair[demo]"') from error

    from crosspair.serve.page import SCRIPT, STYLE, look, page

    moments = Moments(searcher.library, conversions)
    app = FastAPI(openapi_url=None)
    _add_moments(app, moments)
    blocks = page(Answers(searcher, moments), searcher.library.folder.absolute().name, uploads)
    gr.mount_gradio_app(
        app, blocks, "/", max_file_size=max_upload, show_error=False, ssr_mode=False,
        footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        theme=look(), css=STYLE.read_text(encoding="utf-8"),
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )  # fmt: skip
    app.add_middleware(_Guard, max_upload=max_upload, local=local)
    return app


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "a.org")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CrosspairError(
            f"no page can be served at {host}, port {port} ({reason}); "
            "name others by --host and --port"
        ) from error


def _add_moments(app: FastAPI, moments: Moments) -> None:
    from fastapi import HTTPException
    from fastapi.responses import FileResponse

    headers = {"Cache-Control": "private, max-age=3600"}

    @app.get("/moments/{key}/video")
    def video(key: str) -> FileResponse:
        try:
            file = moments.file(key)
        except (KeyError, VideoError) as error:
            raise HTTPException(404) from error
        if file is None:
            raise HTTPException(415)
        return FileResponse(file[0], media_type=file[1], headers=headers)

    @app.get("/moments/{key}/conversion")
    def conversion(key: str) -> FileResponse:
        try:
            return FileResponse(moments.conversion(key), media_type="video/mp4", headers=headers)
        except (KeyError, VideoError) as error:
            raise HTTPException(404) from error
        except TimeoutError as error:
            raise HTTPException(503) from error


class _Guard:
    """Refuses, before anything is read, what the page never asks for."""

    def __init__(self, app: ASGIApp, max_upload: int, local: bool) -> None:
        self._app, self._max_upload, self._local = app, max_upload, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else (404, "nothing here")
        if refusal is None:
            await self._app(scope, receive, _with_policy(send))
        elif scope["type"] == "http":
            status, reason = refusal
            await PlainTextResponse(reason, status)(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self._local and not is_loopback(urlsplit("//" + headers.get(b"host", "")).hostname):
            return 400, "it answers to localhost only"
        if path not in PAGES and not path.startswith(PLACES):
            return 404, "nothing here"
        if scope["method"] not in ("GET", "HEAD"):
            length = headers.get(b"content-length", "")
            if not length.isdecimal():
                return 411, "say how long it is"
            limit = self._max_upload + QUESTION if path == UPLOAD else QUESTION
            if int(length) > limit:
                return 413, f"more than the {limit // MB} MB that are allowed"
        return None


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
