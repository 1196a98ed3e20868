"""Web application: a Gradio page for a library, and the moments that it plays.

Gradio is only imported by the functions that build the page.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crosspair.errors import CrosspairError, ModelError, TextError, VideoError
from crosspair.evaluation.encode import InferenceEngine
from crosspair.library.search import Searcher
from crosspair.library.store import Library
from crosspair.serve.answers import ALL_FOLDERS, MAX_LETTERS, MomentStore, PageRenderer, Upload
from crosspair.serve.guard import MB, UPLOAD_TIMEOUT, Guard, is_loopback

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHUTDOWN_TIMEOUT = 2  # s for requests in progress when the server stops
MAX_WAITING = 200  # requests in the queue; Gradio rejects more
NO_VIDEO = "Upload a video first."
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def serve(
    library: Library,
    engine: InferenceEngine,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: int = 200,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a page for a library until the process is interrupted.

    Args:
        library: library to search.
        engine: model of the library, with at least one worker process for decoding.
        host: address to listen on. Other machines can connect unless it is a loopback address.
        port: port; 0 selects a free one.
        max_upload: largest upload, in MB.
        ready: called with the URL of the page before the server starts to answer.

    Raises:
        CrosspairError: The extra "demo" is not installed, or the address is not available.
    """
    with _listen(host, port) as listening, tempfile.TemporaryDirectory() as scratch:
        app = build_app(
            Searcher(library, engine), Path(scratch), max_upload * MB, local=is_loopback(host)
        )
        import uvicorn

        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_TIMEOUT
        )
        bracketed = f"[{host}]" if ":" in host else host
        ready(f"http://{bracketed}:{listening.getsockname()[1]}")
        # Uvicorn raises the signal again after its shutdown; SIGTERM must not skip the cleanup.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        uvicorn.Server(config).run([listening])


def build_app(searcher: Searcher, scratch: Path, max_upload: int, *, local: bool) -> FastAPI:
    """Build the application.

    Args:
        searcher: searcher of the library.
        scratch: temporary folder for uploads and conversions; the caller removes it.
        max_upload: largest upload, in bytes.
        local: whether the server listens on a loopback address. It then rejects other host names,
            which prevents DNS rebinding.

    Raises:
        CrosspairError: The extra "demo" is not installed.
    """
    uploads, conversions = scratch / "uploads", scratch / "moments"
    uploads.mkdir()
    conversions.mkdir()
    # Gradio reads these variables when it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError as error:
        raise CrosspairError(
            'the extra "demo" is not installed. Run pip install "crosspair[demo]".'
        ) from error

    moments = MomentStore(searcher.library, conversions)
    app = FastAPI(openapi_url=None)
    add_moment_routes(app, moments)
    page = build_page(PageRenderer(searcher, moments), searcher.library.folder.absolute().name)
    gr.mount_gradio_app(
        app, page, "/", max_file_size=max_upload, show_error=False, ssr_mode=False,
        footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        theme=_theme(), css=STYLE.read_text(encoding="utf-8"),
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )  # fmt: skip
    app.add_middleware(Guard, uploads=uploads, max_upload=max_upload, local=local)
    return app


def add_moment_routes(app: FastAPI, moments: MomentStore) -> None:
    """Add the routes that play a moment: its file, or a conversion of it."""
    from fastapi import HTTPException
    from fastapi.responses import FileResponse

    headers = {"Cache-Control": "private, no-cache"}  # a video may be removed at any time

    @app.get("/moments/{key}/video")
    def video(key: str) -> FileResponse:
        try:
            file = moments.find_file(key)
        except (KeyError, VideoError) as error:
            raise HTTPException(404) from error
        if file is None:
            raise HTTPException(415)
        return FileResponse(file[0], media_type=file[1], headers=headers)

    @app.get("/moments/{key}/conversion")
    def conversion(key: str) -> FileResponse:
        try:
            return FileResponse(moments.convert(key), media_type="video/mp4", headers=headers)
        except (KeyError, VideoError) as error:
            raise HTTPException(404) from error
        except TimeoutError as error:
            raise HTTPException(503) from error


def build_page(renderer: PageRenderer, name: str) -> gr.Blocks:
    """Build the Gradio page.

    Args:
        renderer: renders the results of a library.
        name: name of the library.
    """
    import gradio as gr

    def add_upload(name: str) -> gr.File:
        file = gr.File(label="Video", file_types=["video"], height=150, elem_id=name)
        gr.HTML(renderer.note(), padding=True)
        return file

    blocks = gr.Blocks(
        title=f"{name}: crosspair", analytics_enabled=False, delete_cache=(60, UPLOAD_TIMEOUT)
    )
    with blocks:
        gr.HTML(renderer.heading(name), elem_id="heading")
        query, video = gr.State(), gr.State()
        with gr.Tab("Search"):
            with gr.Row(equal_height=True):
                text = gr.Textbox(
                    label="What do you want to see?", placeholder="playing the cello",
                    max_length=MAX_LETTERS, max_lines=1, scale=5, min_width=260, elem_id="text",
                )  # fmt: skip
                folder = gr.Dropdown(
                    renderer.folders, value=ALL_FOLDERS, label="Where?", scale=2, min_width=180,
                    visible=len(renderer.folders) > 1, elem_id="folder",
                )  # fmt: skip
                search = gr.Button(
                    "Search", variant="primary", scale=1, min_width=120, elem_id="search"
                )
            with gr.Accordion("Search with a similar video", open=False):
                example_file = add_upload("example")
            results = gr.HTML(elem_id="found")
        with gr.Tab("Classify"):
            video_file = add_upload("video")
            with gr.Row(equal_height=True):
                classes = gr.Textbox(
                    label="Classes", placeholder="playing cello, tennis swing",
                    info="Separated by commas, in the words of a title.",
                    max_length=MAX_LETTERS, max_lines=1, scale=5, min_width=260, elem_id="classes",
                )  # fmt: skip
                classify = gr.Button(
                    "Classify", variant="primary", scale=1, min_width=120, elem_id="classify"
                )
            ranking = gr.HTML(elem_id="ranked")

        def render_results(query: str | Upload | None, folder: str) -> str:
            return _render(renderer, lambda: renderer.search(query or "", folder))

        def search_text(text: str, folder: str) -> tuple[str, str]:
            return text, render_results(text, folder)

        def search_video(file: dict[str, str] | None, folder: str) -> tuple[Any, ...]:
            upload, error = _encode_upload(renderer, file)
            return upload, None, error or render_results(upload, folder)

        def filter_folder(query: str | Upload | None, folder: str) -> str:
            return render_results(query, folder) if query else ""

        def classify_upload(upload: Upload | None, classes: str) -> str:
            if upload is None:
                return renderer.error(NO_VIDEO)
            return _render(renderer, lambda: renderer.classify(upload, classes))

        def encode_upload(file: dict[str, str] | None, classes: str) -> tuple[Any, ...]:
            upload, error = _encode_upload(renderer, file)
            if upload is None:
                return None, None, error
            if classes.strip():
                return upload, None, classify_upload(upload, classes)
            return upload, None, renderer.ready(upload)

        # One text and one video at a time: decoding is slow, and must not delay text queries.
        # Gradio's preprocessing of an upload would leave an empty file.
        on_text = _serialize("text")
        on_video = {**_serialize("video"), "preprocess": False}
        gr.on([text.submit, search.click], search_text, [text, folder], [query, results], **on_text)
        folder.change(filter_folder, [query, folder], results, **on_text)
        example_file.upload(
            search_video, [example_file, folder], [query, example_file, results], **on_video
        )
        video_file.upload(
            encode_upload, [video_file, classes], [video, video_file, ranking], **on_video
        )
        gr.on(
            [classes.submit, classify.click], classify_upload, [video, classes], ranking, **on_text
        )
    blocks.queue(max_size=MAX_WAITING)
    return blocks


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise CrosspairError(
            f"failed to listen on {host}, port {port}: {reason}. Use another --host or --port."
        ) from error


def _theme() -> gr.themes.Base:
    """System fonts, and greys with enough contrast."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    light, dark = "#57606a", "#9da7b1"
    theme.set(
        body_text_color_subdued=light, body_text_color_subdued_dark=dark,
        block_info_text_color=light, block_info_text_color_dark=dark,
        input_placeholder_color=light, input_placeholder_color_dark=dark,
        button_primary_background_fill="#0072b2", button_primary_background_fill_hover="#005a8d",
    )  # fmt: skip
    return theme


def _serialize(queue: str) -> dict[str, Any]:
    return {"concurrency_limit": 1, "concurrency_id": queue, "api_visibility": "private"}


def _encode_upload(
    renderer: PageRenderer, file: dict[str, str] | None
) -> tuple[Upload | None, str]:
    """Encode an uploaded video and delete the file.

    Args:
        renderer: renderer of the library.
        file: Gradio's description of the file; `crosspair.serve.guard` has checked its path.

    Returns:
        The upload, or None and the HTML of an error message.
    """
    if file is None:
        return None, renderer.error(NO_VIDEO)
    path = Path(file["path"])
    try:
        return _try(renderer, lambda: renderer.encode(path, path.name))
    finally:
        # The folder is shared by all uploads with the same content, and may be in use.
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()


def _render(renderer: PageRenderer, render: Callable[[], str]) -> str:
    html, error = _try(renderer, render)
    return html or error


def _try(renderer: PageRenderer, function: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result, or None and the HTML of an error message; log unexpected errors."""
    try:
        return function(), ""
    except VideoError as error:  # the message begins with the name of the file
        message = str(error)
    except (ModelError, TextError) as error:
        message = f"{error}"[:1].upper() + f"{error}"[1:]
    except Exception:
        logger.exception("a request of the page failed")
        message = "The request failed. See the log of the server for the reason."
    return None, renderer.error(message)
