"""Exceptions for invalid user input, and the states of a video.

Every message is one line: what is wrong, where, and how to fix it. The command line prints it and
exits with status 2.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from enum import Enum

# Control characters, line separators, reversals of the text direction, and parts of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class CrosspairError(Exception):
    """Base class of errors in the user's input or environment. The message is one line."""


class ManifestError(CrosspairError):
    """A manifest, a title file or a corpus folder is invalid."""


class VideoError(CrosspairError):
    """A video cannot be decoded."""


class RecipeError(CrosspairError):
    """A recipe or a ``key=value`` override is invalid."""


class TextError(CrosspairError):
    """Word vectors, a language model or titles are unusable."""


class ModelError(CrosspairError):
    """A model folder or a checkpoint is invalid or does not match."""


class RunError(CrosspairError):
    """A run folder cannot be created, resumed or written."""


def format_error(error: BaseException) -> str:
    """Format an exception as one line.

    Returns:
        The system's message (``strerror``) if there is one, else the first line of the exception's
        text, else the name of its type. Whitespace is collapsed.

    >>> format_error(ValueError("bad  value\\nat line 3"))
    'bad value'
    """
    text = str(getattr(error, "strerror", None) or error).strip()
    return " ".join(text.splitlines()[0].split()) if text else type(error).__name__


def escape_controls(text: object) -> str:
    """Return a text for one line of a terminal, with control characters and invalid ones as JSON's ``\\u….``.

    >>> escape_controls("two\\nlines and \\x1b[31mred")
    'two\\\\u000alines and \\\\u001b[31mred'
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


TRY_LATER = "; try again later"  # ends the reason for a fault of the system or the network, which may be temporary
# Unlike EIO, EPERM and ENOMEM, demuxers do not return these for the content of a file.
SYSTEM_ERRORS = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO,
})  # fmt: skip


class VideoStatus(Enum):
    """Status of a video. The value is the name used in tables and lists."""

    FINE = "fine"

    # Usable for training, but reported.
    SHORT = "shorter than a clip"
    WRONG_CONTAINER = "wrong container"
    ODD_RATE = "odd frame rate"
    WRONG_LENGTH = "wrong length in header"

    # Skipped by training.
    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty file"
    NOT_A_VIDEO = "not a video"
    AUDIO_ONLY = "audio only"
    NO_VIDEO_STREAM = "no video stream"
    DAMAGED_HEADER = "damaged header"
    ABSURD_SIZE = "absurd size"
    OUTSIDE = "part outside the video"
    CUT = "cut"
    UNDECODABLE = "undecodable"
    CORRUPT_FRAMES = "corrupt frames"
    CRASH = "decoder crashed"
    HANG = "decoder hung"

    @property
    def broken(self) -> bool:
        """Whether training skips such a video."""
        return self not in _USABLE


_USABLE = frozenset({
    VideoStatus.FINE, VideoStatus.SHORT, VideoStatus.WRONG_CONTAINER, VideoStatus.ODD_RATE,
    VideoStatus.WRONG_LENGTH,
})  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """Result of checking a video or a segment of it.

    Attributes:
        kind: its status.
        reason: one line without the path; empty if the video is fine.
    """

    kind: VideoStatus
    reason: str = ""


class InvalidVideoError(VideoError):
    """A video is broken.

    Args:
        path: of the video.
        kind: its status.
        reason: one line without the path.
    """

    def __init__(self, path: str, kind: VideoStatus, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.kind, self.reason = path, kind, reason

    def __reduce__(self) -> tuple[type[InvalidVideoError], tuple[str, VideoStatus, str]]:
        return InvalidVideoError, (self.path, self.kind, self.reason)
