"""Videos that are not files of this machine: any fsspec URL, read in the ranges that are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from crosspair.errors import InvalidVideoError, VideoStatus

# A second of video is about one block, and so is an index: what a clip needs is a few requests,
# and little that it does not need comes along. A file in use keeps at most 16 blocks.
BLOCK = 2**18  # bytes
CACHE = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": 16}}

Result = TypeVar("Result")


class RemoteFile:
    """What the demuxer needs of a file. Whatever goes wrong on the way is kept as ``fault``.

    To FFmpeg it then is the end of the file, of which it may make what it likes: who reads asks
    for ``fault`` in the end. (An exception would have to pass through C code, which may go on.)

    Args:
        handle: as fsspec opened it.
        url: for messages.
    """

    def __init__(self, handle: IO[bytes], url: str) -> None:
        self._handle, self._url = handle, url
        self.fault: InvalidVideoError | None = None

    def read(self, size: int = -1) -> bytes:
        return self._guarded(lambda: self._handle.read(size), b"")

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._guarded(lambda: self._handle.seek(offset, whence), -1)

    def tell(self) -> int:
        return self._guarded(self._handle.tell, -1)

    def _guarded(self, action: Callable[[], Result], failed: Result) -> Result:
        if self.fault is not None:
            return failed
        try:
            return action()
        except Exception as error:  # every protocol has exceptions of its own
            self.fault = _fault(self._url, error)
            return failed


@contextmanager
def open_remote(url: str) -> Iterator[RemoteFile]:
    """Open a URL for reading in ranges.

    Raises:
        BadVideoError: there is no such file, its server does not answer or gives no ranges, or the
            protocol is unknown or needs a package that is not installed.
    """
    import fsspec

    try:
        # The archive of a chained URL (zip://…::https://…) is read in the same way as a file. It
        # is open for as long as the filesystem is known here.
        archive = {"http": CACHE, "https": CACHE} if "::" in url else {}
        filesystem, path = fsspec.url_to_fs(url, **archive)
        handle: IO[bytes] = filesystem.open(path, "rb", **CACHE)
    except Exception as error:  # every protocol has exceptions of its own
        raise _fault(url, error) from error
    try:
        if not handle.seekable() or getattr(handle, "size", 0) is None:
            raise InvalidVideoError(
                url,
                VideoStatus.UNREADABLE,
                "its server sends whole files only, no ranges; download the file",
            )
        yield RemoteFile(handle, url)
    finally:
        with suppress(Exception):  # what was read is read
            handle.close()


def _fault(url: str, error: Exception) -> InvalidVideoError:
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        if not isinstance(cause, Exception) or isinstance(cause, FileNotFoundError | KeyError):
            return InvalidVideoError(url, VideoStatus.MISSING, "no such file")
        if getattr(cause, "status", None) in (404, 410):
            return InvalidVideoError(url, VideoStatus.MISSING, "no such file")
        error = cause  # fsspec says so of every server that gives nothing
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    reason: Any = (status and f"status {status}: {message}") or getattr(error, "strerror", None)
    line = " ".join(str(reason or error or type(error).__name__).split())
    return InvalidVideoError(url, VideoStatus.UNREADABLE, f"cannot be opened ({line})")
