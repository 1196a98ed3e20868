"""Read videos at URLs, any that fsspec supports, in byte ranges."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from crosspair.errors import TRY_LATER, InvalidVideoError, VideoStatus

# A second of video, or a container's index, takes about one block, so a clip needs few requests.
BLOCK = 2**18  # bytes
CACHE = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": 16}}
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 20.0  # s until a server answers, and between two parts of its answer
REQUEST_TIMEOUT = 120.0  # s for a block
NO_RANGES = "the server does not support range requests. Download the file"

# Copies of "simplecache::" and the like, which fsspec would not remove; those of killed workers, too.
COPIES = Path(tempfile.gettempdir(), f"crosspair-{secrets.token_hex(8)}")
atexit.register(shutil.rmtree, COPIES, ignore_errors=True)

Result = TypeVar("Result")


class RemoteFile:
    """File object for FFmpeg that stores the first error as ``fault`` instead of raising it.

    An exception would have to pass through C code. FFmpeg sees the end of the file, and the caller checks ``fault``.
    """

    def __init__(self, handle: IO[bytes], url: str) -> None:
        self._handle, self._url = handle, url
        self.fault: InvalidVideoError | None = None

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes (-1: all); empty after an error."""
        return self._guard(lambda: self._handle.read(size), b"")

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position and return it in bytes; -1 after an error."""
        return self._guard(lambda: self._handle.seek(offset, whence), -1)

    def tell(self) -> int:
        """Return the position in bytes; -1 after an error."""
        return self._guard(self._handle.tell, -1)

    def _guard(self, action: Callable[[], Result], default: Result) -> Result:
        if self.fault is not None:
            return default
        try:
            return action()
        except Exception as error:  # each protocol has its own exceptions
            self.fault = _explain(self._url, error)
            return default


@contextmanager
def open_remote(url: str) -> Iterator[RemoteFile]:
    """Open a URL for reading in ranges; InvalidVideoError if the server, the protocol or its package is missing."""
    import fsspec

    try:
        # The archive of a chained URL (zip://…::https://…) is read in ranges, too. fsspec keeps it
        # open while its filesystem is cached.
        options: dict[str, Any] = {}
        if "http://" in url or "https://" in url:
            from aiohttp import ClientTimeout

            # Without a timeout of its parts, a stalled server would hold each request for 5 minutes.
            timeout = ClientTimeout(total=REQUEST_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
            options = {"client_kwargs": {"timeout": timeout}}
            if "::" in url:
                options = {name: {**CACHE, **options} for name in ("http", "https")}
        for name in re.findall(r"(\w*cached?)::", url):  # keeps copies of files
            if "cache_storage" not in fsspec.config.conf.get(name, {}):
                options[name] = {"cache_storage": str(COPIES / str(os.getpid()))}
        filesystem, path = fsspec.url_to_fs(url, **options)
        handle: IO[bytes] = filesystem.open(path, "rb", **CACHE)
    except Exception as error:  # each protocol has its own exceptions
        raise _explain(url, error) from error
    try:
        if not handle.seekable() or getattr(handle, "size", 0) is None:
            raise InvalidVideoError(url, VideoStatus.UNREADABLE, NO_RANGES)
        yield RemoteFile(handle, url)
    finally:
        with suppress(Exception):  # nothing was written that could be lost
            handle.close()


def _explain(url: str, error: Exception) -> InvalidVideoError:
    """Convert an exception of fsspec: MISSING for no such file (HTTP 404, 410), else UNREADABLE with the reason."""
    missing = InvalidVideoError(url, VideoStatus.MISSING, f"no such file{TRY_LATER}")
    if isinstance(error, FileNotFoundError | KeyError):  # KeyError: of older versions, for archives
        # fsspec raises this for every failed request: the cause has the server's status.
        cause = error.__cause__
        if not isinstance(cause, Exception) or isinstance(cause, FileNotFoundError | KeyError):
            return missing
        if getattr(cause, "status", None) in (404, 410):
            return missing
        error = cause
    if isinstance(error, TimeoutError):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, f"the server does not answer (time-out){TRY_LATER}")
    if isinstance(error, ValueError) and "range requests" in str(error):
        return InvalidVideoError(url, VideoStatus.UNREADABLE, NO_RANGES)
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    redirects = getattr(error, "history", ())
    reason: Any = (status and f"status {status}: {message}") or (redirects and f"{len(redirects)} redirects")
    reason = reason or getattr(error, "strerror", None)
    line = " ".join(str(reason or error or type(error).__name__).split())
    return InvalidVideoError(url, VideoStatus.UNREADABLE, f"cannot be opened ({line}){TRY_LATER}")
