"""The site: the page, and the moments that it plays."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.errors import CrosspairError, VideoError
from crosspair.library import Engine, Library, Searcher
from crosspair.serve.answers import Answers
from crosspair.serve.guard import MB, Guard, is_loopback
from crosspair.serve.moments import Moments

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE = 2  # s for what is under way, when the server is stopped


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
        # Uvicorn raises again what stopped it: a service's end must not skip the cleaning up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    blocks = page(Answers(searcher, moments), searcher.library.folder.absolute().name)
    gr.mount_gradio_app(
        app, blocks, "/", max_file_size=max_upload, show_error=False, ssr_mode=False,
        footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        theme=look(), css=STYLE.read_text(encoding="utf-8"),
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )  # fmt: skip
    app.add_middleware(Guard, uploads=uploads, max_upload=max_upload, local=local)
    return app


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise CrosspairError(
            f"no page can be served at {host}, port {port} ({reason}); "
            "name others by --host and --port"
        ) from error


def _add_moments(app: FastAPI, moments: Moments) -> None:
    from fastapi import HTTPException
    from fastapi.responses import FileResponse

    headers = {"Cache-Control": "private, no-cache"}  # it may leave the library at any time

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
