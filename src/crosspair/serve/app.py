"""The site: the page, and the moments that it plays."""

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

import gradio as gr

from crosspair.errors import CrosspairError, ModelError, TextError, VideoError
from crosspair.evaluation.encode import InferenceEngine
from crosspair.library.search import Searcher
from crosspair.library.store import Library
from crosspair.serve.answers import EVERYWHERE, LETTERS, Answers, Moments, Seen
from crosspair.serve.guard import ABANDONED, MB, Guard, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI


logger = logging.getLogger(__name__)

GRACE = 2  # s for what is under way, when the server is stopped


def serve(
    library: Library,
    of: InferenceEngine,
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


T = TypeVar("T")

NOTHING_YET = "Give a video first: drop a file above."
WAITING = 200  # questions; more are told to come again

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def page(answers: Answers, name: str) -> gr.Blocks:
    """The page, to be mounted.

    Args:
        answers: of a library.
        name: of the library.
    """
    blocks = gr.Blocks(
        title=f"{name}: crosspair", analytics_enabled=False, delete_cache=(60, ABANDONED)
    )
    with blocks:
        gr.HTML(answers.heading(name), elem_id="heading")
        asked, seen = gr.State(), gr.State()
        with gr.Tab("Search"):
            with gr.Row(equal_height=True):
                text = gr.Textbox(
                    label="What is to be seen?", placeholder="somebody plays the cello",
                    max_length=LETTERS, max_lines=1, scale=5, min_width=260, elem_id="text",
                )  # fmt: skip
                folder = gr.Dropdown(
                    answers.folders, value=EVERYWHERE, label="Where?", scale=2, min_width=180,
                    visible=len(answers.folders) > 1, elem_id="folder",
                )  # fmt: skip
                search = gr.Button(
                    "Search", variant="primary", scale=1, min_width=120, elem_id="search"
                )
            with gr.Accordion("Or search by a video that looks like it", open=False):
                example = _upload("example", answers)
            found = gr.HTML(elem_id="found")
        with gr.Tab("Classify"):
            video = _upload("video", answers)
            with gr.Row(equal_height=True):
                classes = gr.Textbox(
                    label="Classes to choose among", placeholder="playing cello, tennis swing",
                    info="Separated by commas; in words, as in a title.",
                    max_length=LETTERS, max_lines=1, scale=5, min_width=260, elem_id="classes",
                )  # fmt: skip
                classify = gr.Button(
                    "Classify", variant="primary", scale=1, min_width=120, elem_id="classify"
                )
            ranked = gr.HTML(elem_id="ranked")

        def answered(asked: str | Seen | None, folder: str) -> str:
            return _html(answers, lambda: answers.search(asked or "", folder))

        def by_text(text: str, folder: str) -> tuple[str, str]:
            return text, answered(text, folder)

        def by_video(given: dict[str, str] | None, folder: str) -> tuple[Any, ...]:
            looked_at, fault = _seen(answers, given)
            return looked_at, None, fault or answered(looked_at, folder)

        def filtered(asked: str | Seen | None, folder: str) -> str:
            return answered(asked, folder) if asked else ""

        def classified(seen: Seen | None, classes: str) -> str:
            if seen is None:
                return answers.fault(NOTHING_YET)
            return _html(answers, lambda: answers.classify(seen, classes))

        def looked(given: dict[str, str] | None, classes: str) -> tuple[Any, ...]:
            looked_at, fault = _seen(answers, given)
            if looked_at is None:
                return None, None, fault
            if classes.strip():
                return looked_at, None, classified(looked_at, classes)
            return looked_at, None, answers.ready(looked_at)

        # Texts are for one at a time, and decoding, which takes long, for another.
        # Preprocessing an upload would leave an empty file behind each time.
        text_ = _one_at_a_time("text")
        video_ = {**_one_at_a_time("video"), "preprocess": False}
        gr.on([text.submit, search.click], by_text, [text, folder], [asked, found], **text_)
        folder.change(filtered, [asked, folder], found, **text_)
        example.upload(by_video, [example, folder], [asked, example, found], **video_)
        video.upload(looked, [video, classes], [seen, video, ranked], **video_)
        gr.on([classes.submit, classify.click], classified, [seen, classes], ranked, **text_)
    blocks.queue(max_size=WAITING)
    return blocks


def look() -> gr.themes.Base:
    """Fonts that are there already, and greys that can be read."""
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


def _one_at_a_time(what: str) -> dict[str, Any]:
    return {"concurrency_limit": 1, "concurrency_id": what, "api_visibility": "private"}


def _upload(name: str, answers: Answers) -> gr.File:
    file = gr.File(label="Video", file_types=["video"], height=150, elem_id=name)
    gr.HTML(answers.note(), padding=True)
    return file


def _seen(answers: Answers, given: dict[str, str] | None) -> tuple[Seen | None, str]:
    """What an upload shows, or a fault; the file is removed.

    Args:
        answers: of the library.
        given: the file, of which `crosspair.serve.guard` has seen that it is an upload.
    """
    if given is None:
        return None, answers.fault(NOTHING_YET)
    upload = Path(given["path"])
    try:
        return _tried(answers, lambda: answers.see(upload, upload.name))
    finally:
        # Its folder is that of all uploads with the same content: others may be under way.
        upload.unlink(missing_ok=True)
        with suppress(OSError):
            upload.parent.rmdir()


def _html(answers: Answers, answer: Callable[[], str]) -> str:
    html, fault = _tried(answers, answer)
    return html or fault


def _tried(answers: Answers, act: Callable[[], T]) -> tuple[T | None, str]:
    """What comes of it, or else a fault to show; what is not the user's is for the log."""
    try:
        return act(), ""
    except VideoError as error:  # it begins with the file's name
        fault = str(error)
    except (ModelError, TextError) as error:
        fault = f"{error}"[:1].upper() + f"{error}"[1:]
    except Exception:
        logger.exception("the page cannot answer")
        fault = "This did not work; the server's log says why."
    return None, answers.fault(fault)
