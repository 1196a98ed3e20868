"""What can be wrong with what a user hands over.

Every message is one line that says what was found, where, and what to do. The command prints it
and exits with status 2; nothing else in the package catches these silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class CrosspairError(Exception):
    """A fault in the user's input or surroundings, told in one line."""


class ManifestError(CrosspairError):
    """A manifest, a title file or a corpus folder is not what it should be."""


class VideoError(CrosspairError):
    """A video cannot give the frames that were asked of it."""


class RecipeError(CrosspairError):
    """A recipe, or a ``key=value`` given beside it, is not valid."""


class TextError(CrosspairError):
    """Word vectors, a language model, or titles cannot be used."""


class ModelError(CrosspairError):
    """A model folder or a checkpoint does not fit."""


class RunError(CrosspairError):
    """A run folder cannot be started, resumed or written."""


class VideoStatus(Enum):
    """The state of a video. Its value is what tables and lists call it."""

    FINE = "fine"

    # Training can use these, but somebody should know.
    SHORT = "shorter than a clip"
    WRONG_CONTAINER = "wrong container"
    ODD_RATE = "odd frame rate"
    WRONG_LENGTH = "wrong length in header"

    # Training leaves these out.
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
        """Whether training leaves such a video out."""
        return self not in _USABLE


_USABLE = frozenset({
    VideoStatus.FINE, VideoStatus.SHORT, VideoStatus.WRONG_CONTAINER, VideoStatus.ODD_RATE, VideoStatus.WRONG_LENGTH,
})  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """What is said of a video, or of a part of it: for people in one line, without the path."""

    kind: VideoStatus
    reason: str = ""


class InvalidVideoError(VideoError):
    """A video cannot be used, and why.

    Args:
        path: of the video.
        kind: what it is a case of.
        reason: for people, in one line, without the path.
    """

    def __init__(self, path: str, kind: VideoStatus, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.kind, self.reason = path, kind, reason

    def __reduce__(self) -> tuple[type[InvalidVideoError], tuple[str, VideoStatus, str]]:
        return InvalidVideoError, (self.path, self.kind, self.reason)


def format_error(error: BaseException) -> str:
    """Format an exception as one line: its message, or its type if it has none."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(message).split())
