"""How prepared files are made."""

from __future__ import annotations

from dataclasses import dataclass

from crosspair.errors import ManifestError


@dataclass(frozen=True)
class Settings:
    """What all files of a prepared corpus have in common.

    Raises:
        ManifestError: a value is out of range.
    """

    short_side: int = 128
    """Of the frames, in pixels, even; a video that is smaller keeps its size."""
    gop: int = 16
    """Frames from one key frame to the next: what a random access decodes in vain, at most."""
    fps: float | None = None
    """Frames a second; None keeps each video's own instants."""
    middle: float | None = None
    """Seconds to keep of the middle of a longer video (Instagram-300k: 20); None keeps all."""
    crf: float = 20
    """x264's constant rate factor: 0 (lossless) to 51; 3 less is about a third more disk."""

    def __post_init__(self) -> None:
        # Each written so that a value that is not a number does not pass.
        if not (self.short_side >= 16 and self.short_side % 2 == 0):
            raise ManifestError(
                f"the short side is {self.short_side} pixels; it must be even, and 16 or more"
            )
        if not self.gop >= 1:
            raise ManifestError(f"the GOP is {self.gop} frames; it must be 1 or more")
        if self.fps is not None and not 1 <= self.fps <= 1000:
            raise ManifestError(f"the frame rate is {self.fps}; it must be 1 to 1000, or own")
        if self.middle is not None and not 0 < self.middle < float("inf"):
            raise ManifestError(f"the middle is {self.middle} s; it must be more than 0")
        if not 0 <= self.crf <= 51:
            raise ManifestError(f"the rate factor (crf) is {self.crf}; it must be 0 to 51")
