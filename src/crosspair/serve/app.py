"""Web page and REST API for a library."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from crosspair.errors import CrosspairError, ModelError, TextError, VideoError, format_error
from crosspair.evaluation.encode import InferenceEngine
from crosspair.library.search import Searcher
from crosspair.library.store import Library

try:
    import uvicorn
    from anyio import CapacityLimiter
    from anyio.to_thread import run_sync
    from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Query, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, Response
    from fastapi.staticfiles import StaticFiles
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as missing:
    raise CrosspairError('the extra "demo" is not installed. Run pip install "crosspair[demo]".') from missing

from crosspair.serve.guard import Guard, is_loopback
from crosspair.serve.service import MAX_LENGTH, Classification, LibraryService, Moment, Upload

MB = 10**6
MAX_FORM = MB // 10  # bytes of an upload that are not the video
MAX_LETTERS = 1000  # of a query, or of all class names
MAX_CONNECTIONS = 500  # more are rejected with status 503
SHUTDOWN_TIMEOUT = 2  # s for requests in progress when the server stops
PAGE = Path(__file__).with_name("page")
NO_CACHE = {"Cache-Control": "private, no-cache"}  # a video may be removed at any time

# The text encoder is not thread-safe; decoding is slow, and must not delay text queries.
TEXT, VIDEO, CONVERSION = CapacityLimiter(1), CapacityLimiter(1), CapacityLimiter(1)


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
        CrosspairError: The address is not available.
    """
    # Uvicorn raises a signal again after its shutdown; no signal must skip the removal of uploads.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with _listen(host, port) as listening, tempfile.TemporaryDirectory() as scratch:
        service = LibraryService(Searcher(library, engine), Path(scratch))
        config = uvicorn.Config(
            build_app(service, max_upload * MB, host), log_level="warning",
            limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        )  # fmt: skip
        bracketed = f"[{host}]" if ":" in host else host
        ready(f"http://{bracketed}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run([listening])


def build_app(service: LibraryService, max_upload: int, host: str) -> Guard:
    """Build the application.

    Args:
        service: service of the library.
        max_upload: largest upload, in bytes.
        host: address that the server listens on. If it is a loopback address, requests to other
            host names are rejected, which prevents DNS rebinding.
    """
    app = FastAPI(
        title="crosspair", docs_url=None, redoc_url=None, max_body_size=max_upload + MAX_FORM,
        form_limits={"max_files": 1, "max_fields": 1, "max_part_size": MAX_FORM},
    )  # fmt: skip
    app.state.service, app.state.max_upload = service, max_upload
    app.include_router(api)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_exception_handler(Exception, _report_error)
    app.add_exception_handler(CrosspairError, _report_error)
    app.add_exception_handler(RequestValidationError, _report_error)
    if is_loopback(host):
        hosts = ["localhost", "127.0.0.1", "[::1]", host]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return Guard(app)  # outermost, for the headers of all responses


async def _report_error(_: Request, error: Exception) -> JSONResponse:
    """Return the status and the message of an exception."""
    if isinstance(error, RequestValidationError):
        fault = error.errors()[0]
        return JSONResponse({"detail": f"{fault['loc'][-1]}: {fault['msg']}"}, 422)
    if isinstance(error, CrosspairError):
        is_client_error = isinstance(error, (TextError, ModelError, VideoError))
        return JSONResponse({"detail": str(error)}, 422 if is_client_error else 503)
    return JSONResponse({"detail": "the request failed; see the log of the server for the reason"}, 500)


def _get_service(request: Request) -> LibraryService:
    service: LibraryService = request.app.state.service
    return service


api = APIRouter()
Service = Annotated[LibraryService, Depends(_get_service)]
Limit = Annotated[int, Query(ge=1, le=100, description="maximum number of moments")]
Folder = Annotated[str, Query(description="search this folder and its subfolders only")]


async def _encode_upload(service: Service, video: UploadFile) -> Upload:
    name = Path(video.filename or "").name or "video"
    return await run_sync(service.encode, video.file, name, limiter=VIDEO)


Uploaded = Annotated[Upload, Depends(_encode_upload)]


@api.get("/healthz")
def check_health() -> dict[str, str]:
    """Return status 200 while the server is running."""
    return {"status": "ok"}


@api.get("/api/v1/library")
def describe_library(service: Service, request: Request) -> dict[str, Any]:
    """Return name and size of the library, and the limits of uploads in bytes and seconds."""
    library = service.searcher.library
    return {
        "name": library.folder.absolute().name, "videos": service.videos, "moments": len(library),
        "max_upload": request.app.state.max_upload, "max_length": MAX_LENGTH,
    }  # fmt: skip


@api.get("/api/v1/folders")
def list_folders(service: Service) -> list[str]:
    """Return the folders of the library, relative to the common folder of its videos."""
    return service.folders


@api.get("/api/v1/search")
async def search_by_text(
    service: Service, text: Annotated[str, Query(max_length=MAX_LETTERS)], limit: Limit = 24, folder: Folder = ""
) -> list[Moment]:
    """Return the moments nearest to a text, best first."""
    return await run_sync(service.search, text, limit, folder, limiter=TEXT)


@api.post("/api/v1/search")
async def search_by_video(service: Service, upload: Uploaded, limit: Limit = 24, folder: Folder = "") -> list[Moment]:
    """Return the moments nearest to a video, best first."""
    return await run_sync(service.search, upload, limit, folder)


@api.post("/api/v1/classify")
async def classify(
    service: Service,
    upload: Uploaded,
    classes: Annotated[str, Form(max_length=MAX_LETTERS, description="separated by commas")],
) -> Classification:
    """Score class names for a video."""
    return await run_sync(service.classify, upload, classes, limiter=TEXT)


@api.get("/api/v1/moments/{key}")
async def play_moment(service: Service, key: str, converted: bool = False) -> FileResponse:
    """Return the file of a moment, or only its time range, converted so that all browsers play it.

    Status 415: Some browsers cannot play the file.
    """
    try:
        if converted:
            path = await run_sync(service.convert, key, limiter=CONVERSION)
            return FileResponse(path, media_type="video/mp4", headers=NO_CACHE)
        file = await run_sync(service.find_file, key)
    except (KeyError, VideoError) as error:
        raise HTTPException(404) from error
    if file is None:
        raise HTTPException(415)
    return FileResponse(file[0], media_type=file[1], headers=NO_CACHE)


@api.get("/api/v1/moments/{key}/thumbnail")
def load_thumbnail(service: Service, key: str) -> Response:
    """Return a frame of a moment, a JPEG."""
    try:
        return Response(service.find_hit(key).thumbnail, media_type="image/jpeg")
    except KeyError as error:
        raise HTTPException(404) from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = format_error(error).partition(" (while")[0].rstrip(".")
        raise CrosspairError(
            f"failed to listen on {host}, port {port}: {reason}. Use another --host or --port."
        ) from error
