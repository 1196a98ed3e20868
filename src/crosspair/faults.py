"""What can be said of a video file: a closed set of kinds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from crosspair.errors import VideoError


class Kind(Enum):
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
    Kind.FINE, Kind.SHORT, Kind.WRONG_CONTAINER, Kind.ODD_RATE, Kind.WRONG_LENGTH,
})  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is said of a video, or of a part of it: for people in one line, without the path."""

    kind: Kind
    reason: str = ""


class BadVideoError(VideoError):
    """A video cannot be used, and why.

    Args:
        path: of the video.
        kind: what it is a case of.
        reason: for people, in one line, without the path.
    """

    def __init__(self, path: str, kind: Kind, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.kind, self.reason = path, kind, reason

    def __reduce__(self) -> tuple[type[BadVideoError], tuple[str, Kind, str]]:
        return BadVideoError, (self.path, self.kind, self.reason)
