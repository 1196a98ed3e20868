"""Web page and REST API for a library."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from crosspair.errors import CrosspairError, ModelError, TextError, VideoError, format_error
from crosspair.evaluation.encode import InferenceEngine
from crosspair.library.search import Searcher
from crosspair.library.store import Library, LibraryError
from crosspair.models.resnet3d import inference

try:
    import uvicorn
    from anyio import CapacityLimiter
    from anyio.from_thread import check_cancelled
    from anyio.to_thread import run_sync
    from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
    from fastapi import Path as PathParameter
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from fastapi.routing import APIRoute
    from pydantic import BaseModel, Field
    from starlette.datastructures import Headers
    from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
    from starlette.types import Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise CrosspairError('the extra "demo" is not installed. Run pip install "crosspair[demo]".') from missing

from jinja2 import Environment

from crosspair.serve.guard import Guard
from crosspair.serve.service import MAX_LENGTH, Classification, LibraryService, Moment, Upload

logger = logging.getLogger(__name__)

MB = 10**6
MAX_FORM = MB // 10  # bytes of an upload that are not the video
MAX_LETTERS = 1000  # of a query, or of all class names
MAX_CONNECTIONS = 500  # more are rejected with status 503
BACKLOG = 100  # connections that are accepted together
REQUEST_TIMEOUT = 10.0  # s from the start of a connection, or from a response, to the header of the next request
SEND_TIMEOUT = 60.0  # s until a client accepts more of a response
SHUTDOWN_TIMEOUT = 2  # s for requests in progress when the server stops
PAGE = Path(__file__).with_name("page")
DOCS = Path(__file__).with_name("docs.html")
NO_CACHE = {"Cache-Control": "private, no-cache"}  # a video may be removed at any time

# The text encoder is not thread-safe. Slow work must not delay text queries, nor long videos short ones.
TEXT, PROBE, SHORT_VIDEO, LONG_VIDEO, CONVERSION, FILE = (CapacityLimiter(threads) for threads in (1, 4, 1, 1, 1, 4))
PENDING_CONVERSIONS = CapacityLimiter(20)  # running or waiting; more are rejected with status 503


def serve(
    library: Library,
    engine: InferenceEngine,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: Sequence[str] = (),
    max_upload: int = 200,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a page for a library until the process is interrupted.

    Args:
        engine: model of the library, with at least one worker process for decoding.
        host: address to listen on. Other machines can connect unless it is a loopback address.
        port: 0 selects a free one.
        allowed_hosts: see `Guard`.
        max_upload: largest upload, in MB.
        ready: called with the URL of the page before the server starts to answer.

    Raises:
        CrosspairError: The address is not available.
    """
    # Uvicorn raises a signal again after its shutdown; no signal must skip the removal of uploads.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of each invalid form
    fused = inference(engine.model.video_encoder, engine.device, engine.precision)  # one, for all threads
    with _listen(host, port) as listening, tempfile.TemporaryDirectory() as scratch, fused:
        service = LibraryService(Searcher(library, engine), Path(scratch), max_upload * MB)
        config = uvicorn.Config(
            build_app(service, [*allowed_hosts, host]), http=Connection, log_level="error", backlog=BACKLOG,
            limit_concurrency=_limit_connections(), timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        )  # fmt: skip
        bracketed = f"[{host}]" if ":" in host else host
        ready(f"http://{bracketed}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = format_error(error).partition(" (while")[0].rstrip(".")
        raise CrosspairError(
            f"failed to listen on {host}, port {port}: {reason}. Use another --host or --port."
        ) from error


def _limit_connections() -> int:
    """Return how many connections this process can keep open, each with a file; raise its limit of open files first."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(hard if hard != resource.RLIM_INFINITY else sys.maxsize, 4 * MAX_CONNECTIONS)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MAX_CONNECTIONS, (files - BACKLOG) // 3))


class Connection(H11Protocol):
    """A connection that is closed if it makes no progress, or if it has no request when there are too many.

    Uvicorn limits only the time until the first byte after a response, and rejects requests when there are too many
    connections, even unused ones.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) >= (self.limit_concurrency or MAX_CONNECTIONS):
            others = (each for each in self.connections if isinstance(each, Connection) and each is not self)
            if unused := next((each for each in others if each.is_unused), None):
                unused.transport.abort()

    @property
    def is_unused(self) -> bool:
        """Whether it is open, without a request."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()  # starts the next request if it has arrived

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(SEND_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.cancel()

    def _expect_request(self) -> None:
        self.loop.call_later(REQUEST_TIMEOUT, self._close_if_idle, self.cycle)

    def _close_if_idle(self, answered: object) -> None:
        if self.cycle is answered:  # no request since then
            self.transport.close()


def build_app(service: LibraryService, allowed_hosts: Sequence[str]) -> Guard:
    """Build the application; for ``allowed_hosts``, see `Guard`."""
    app = FastAPI(
        title="crosspair", summary="Search a library of videos, and classify videos.",
        docs_url=None, redoc_url=None, generate_unique_id_function=lambda route: route.name,
        max_body_size=service.max_upload + MAX_FORM,
        form_limits={"max_files": 1, "max_fields": 1, "max_part_size": MAX_FORM},
    )  # fmt: skip
    app.state.service = service
    app.include_router(site)
    app.frontend("/", directory=PAGE, fallback=None)
    for kind in (Exception, CrosspairError, RequestValidationError):
        app.add_exception_handler(kind, _report_error)
    return Guard(app, allowed_hosts)  # outermost, for the headers of all responses


class Failure(BaseModel):
    """Response to a request that failed."""

    detail: str = Field(description="the reason, in one line")


class LibraryDescription(BaseModel):
    """Size of the library, and limits of uploads."""

    name: str = Field(description="of the library's folder")
    videos: int = Field(description="number of videos")
    moments: int = Field(description="number of moments that are searched")
    max_upload: int = Field(description="largest upload, in bytes")
    max_length: float = Field(description="longest upload, in seconds")


async def _report_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, RequestValidationError):
        fault = error.errors()[0]
        return JSONResponse({"detail": f"{fault['loc'][-1]}: {fault['msg']}"}, 422)
    if isinstance(error, (TextError, ModelError, VideoError)):
        return JSONResponse({"detail": str(error)}, 422)
    if isinstance(error, CrosspairError):  # may contain paths
        logger.error("%s", error)
        fault = "library cannot be read" if isinstance(error, LibraryError) else "video cannot be processed"
        return JSONResponse({"detail": f"the {fault} at the moment; try again later"}, 503)
    return JSONResponse({"detail": "the request failed; see the log of the server for the reason"}, 500)


async def _get_service(request: Request) -> LibraryService:
    service: LibraryService = request.app.state.service
    return service


Service = Annotated[LibraryService, Depends(_get_service)]


async def _encode_upload(
    service: Service, video: Annotated[UploadFile, File(description="a video of at most 10 minutes")]
) -> Upload:
    with service.open_copy() as copy:
        try:
            received = await run_sync(service.receive, video.file, copy, limiter=PROBE)
            if isinstance(received, Upload):
                return received
            limiter = SHORT_VIDEO if received.is_short else LONG_VIDEO
            # A request that takes too long is cancelled.
            return await run_sync(service.encode, received, check_cancelled, limiter=limiter)
        except VideoError as error:
            name = Path(video.filename or "").name or "video"
            raise VideoError(str(error).replace(copy.name, name)) from error


Uploaded = Annotated[Upload, Depends(_encode_upload)]
Text = Annotated[
    str, Query(max_length=MAX_LETTERS, description="what happens in the video", examples=["playing cello"])
]
Limit = Annotated[int, Query(ge=1, le=100, description="maximum number of moments")]
Folder = Annotated[str, Query(description="search only this folder and its subfolders; a result of /api/v1/folders")]
Classes = Annotated[
    str,
    Form(max_length=MAX_LETTERS, description="names, separated by commas", examples=["playing cello, tennis swing"]),
]
Key = Annotated[str, PathParameter(description="of a moment that was found")]
Converted = Annotated[
    bool, Query(description="return only the time range of the moment, without sound, as MP4 that all browsers play")
]


INVALID: dict[str, Any] = {"model": Failure, "description": "invalid parameter, text, folder or video"}
BUSY: dict[str, Any] = {"model": Failure, "description": "too many requests, or the library cannot be read"}
BAD: dict[str, Any] = {"model": Failure, "description": "Host name not allowed, or invalid form"}
CROSS_SITE: dict[str, Any] = {"model": Failure, "description": "request of another site"}
TOO_LARGE: dict[str, Any] = {"description": "upload too large"}
UNKNOWN: dict[str, Any] = {"model": Failure, "description": "unknown key, or the video was removed"}
UNPLAYABLE: dict[str, Any] = {"model": Failure, "description": "some browsers cannot play the file; use converted"}
OUTSIDE: dict[str, Any] = {"model": Failure, "description": "byte range outside the file"}
JPEG: dict[str, Any] = {"content": {"image/jpeg": {}}}
VIDEOS: dict[str, Any] = {"content": {"video/mp4": {}, "video/webm": {}}}
PARTIAL = {**VIDEOS, "description": "the byte range of the request"}

site = APIRouter(responses={400: BAD, 503: BUSY})
api = APIRouter(prefix="/api/v1", responses={400: BAD, 403: CROSS_SITE, 503: BUSY})


class VideoResponse(FileResponse):
    """A file. If its size changes while it is sent, the connection is closed and a line is logged."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # the whole file, see RFC 9110, section 14.2
        except RangeNotSatisfiable as error:
            raise HTTPException(416, headers={"Content-Range": f"bytes */{file_size}"}) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        missing = 0

        async def send_checked(message: Message) -> None:
            nonlocal missing
            if message["type"] == "http.response.start":
                missing = int(Headers(raw=message["headers"])["content-length"])
            elif scope["method"] == "GET":
                missing -= len(message["body"])
                if missing < 0 or (missing and not message["more_body"]):
                    raise RuntimeError(f"{self.path} changed while it was sent")
            await send(message)

        try:
            await super().__call__(scope, receive, send_checked)
        except RuntimeError as error:
            logger.warning("%s", error)


@site.get("/docs", include_in_schema=False)
def document(request: Request) -> HTMLResponse:
    """Return a page that describes the API, made from its OpenAPI description, without scripts."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(DOCS.read_text())
    return HTMLResponse(template.render(api=request.app.openapi(), url=str(request.base_url).rstrip("/")))


@api.get("/search", responses={422: INVALID}, response_description="moments, best first")
async def search_by_text(service: Service, text: Text, limit: Limit = 24, folder: Folder = "") -> list[Moment]:
    """Return the moments nearest to a text, best first."""
    return await run_sync(service.search, text, limit, folder, limiter=TEXT)


@api.post("/search", responses={413: TOO_LARGE, 422: INVALID}, response_description="moments, best first")
async def search_by_video(service: Service, upload: Uploaded, limit: Limit = 24, folder: Folder = "") -> list[Moment]:
    """Return the moments nearest to a video, best first."""
    return await run_sync(service.search, upload, limit, folder)


@api.post("/classify", responses={413: TOO_LARGE, 422: INVALID}, response_description="scores and timeline")
async def classify(service: Service, upload: Uploaded, classes: Classes) -> Classification:
    """Score class names for a video."""
    return await run_sync(service.classify, upload, classes, limiter=TEXT)


@api.get(
    "/moments/{key}", response_class=Response, response_description="the file",
    responses={200: VIDEOS, 206: PARTIAL, 404: UNKNOWN, 415: UNPLAYABLE, 416: OUTSIDE, 422: INVALID},
)  # fmt: skip
async def play_moment(service: Service, key: Key, converted: Converted = False) -> FileResponse:
    """Return the file of a moment, MP4 or WebM, with support for byte ranges."""
    try:
        if converted:
            path = await run_sync(service.find_conversion, key, limiter=FILE)
            if not path.exists():
                if not PENDING_CONVERSIONS.available_tokens:
                    raise HTTPException(503, "too many videos are being converted; try again later")
                async with PENDING_CONVERSIONS:
                    await run_sync(service.convert, key, path, limiter=CONVERSION)
            return VideoResponse(path, media_type="video/mp4", headers=NO_CACHE)
        file = await run_sync(service.find_file, key, limiter=FILE)
    except (KeyError, VideoError) as error:
        raise HTTPException(404) from error
    if file is None:
        raise HTTPException(415)
    return VideoResponse(file[0], media_type=file[1], headers=NO_CACHE)


@api.get(
    "/moments/{key}/thumbnail", response_class=Response, response_description="the frame",
    responses={200: JPEG, 404: UNKNOWN, 422: INVALID},
)  # fmt: skip
def load_thumbnail(service: Service, key: Key) -> Response:
    """Return a frame of a moment."""
    try:
        return Response(service.find_hit(key).thumbnail, media_type="image/jpeg")
    except KeyError as error:
        raise HTTPException(404) from error


@api.get("/folders", response_description="names of the folders")
def list_folders(service: Service) -> list[str]:
    """Return the folders of the library, relative to the common folder of its videos."""
    return service.folders


@api.get("/library", response_description="size and limits")
def describe_library(service: Service) -> LibraryDescription:
    """Return name and size of the library, and the limits of uploads."""
    library = service.searcher.library
    return LibraryDescription(
        name=library.folder.absolute().name, videos=service.videos, moments=len(library),
        max_upload=service.max_upload, max_length=MAX_LENGTH,
    )  # fmt: skip


@site.get("/healthz", response_description="the server is running")
def check_health() -> dict[str, str]:
    """Return status 200 while the server is running."""
    return {"status": "ok"}


site.include_router(api)
for route in [*site.routes, *api.routes]:
    if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
        site.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
