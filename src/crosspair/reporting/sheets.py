"""Contact sheets: a text query, and the clips that it finds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from crosspair.clip import Clip
from crosspair.errors import VideoError
from crosspair.video.decode import read_frames
from crosspair.video.sampling import REFERENCE_FPS, clip_times

_FRAMES, _STRIDE = 16, 4  # of a clip; 30ths of a second between them, as the network sees them
_GREY = (128, 132, 138)
_SEAM = 2  # pixels between the frames of a strip


@dataclass(frozen=True)
class Found:
    """A clip that a query found.

    Attributes:
        caption: the text that belongs to it.
        score: cosine of query and clip, -1 to 1.
        right: whether it is what was asked for; ``None`` if nobody knows.
        place: its rank, from 1; 0 if it is that among the clips shown.
    """

    clip: Clip
    caption: str
    score: float
    right: bool | None = None
    place: int = 0


@dataclass(frozen=True)
class Tile:
    """A found clip with its pixels.

    Attributes:
        frames: (T, H, W, 3) uint8, 16 of the clip's middle, 4/30 s apart; one grey frame if the
            video is broken.
        error: what is wrong with the video, or empty.
    """

    found: Found
    frames: np.ndarray
    error: str = ""

    def strip(self, count: int = 4) -> Image.Image:
        """``count`` frames, spread from the first to the last, side by side."""
        places = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
        _, height, width, _ = self.frames.shape
        strip = Image.new("RGB", (count * (width + _SEAM) - _SEAM, height), "white")
        for i, place in enumerate(places):
            strip.paste(Image.fromarray(self.frames[place]), (i * (width + _SEAM), 0))
        return strip

    def animation(self) -> bytes:
        """The frames at the speed of life, for ever, as an animated WebP."""
        return _webp(self.frames)

    def still(self) -> bytes:
        """The middle frame as a WebP, for print and for those who asked for no motion."""
        return _webp(self.frames[[len(self.frames) // 2]])


@dataclass(frozen=True)
class Sheet:
    """A query and the tiles it found, best first; a note is what else is known of them."""

    query: str
    tiles: tuple[Tile, ...]
    note: str = ""


def load_sheet(query: str, found: Sequence[Found], *, short_side: int = 112) -> Sheet:
    """Decode what a query found.

    Args:
        query: the text that was asked for.
        found: best first.
        short_side: of the frames, in pixels.
    """
    return Sheet(query, tuple(_tile(each, short_side) for each in found))


def _webp(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    moving = {"append_images": others, "loop": 0, "duration": round(1000 * _STRIDE / REFERENCE_FPS)}
    file = io.BytesIO()
    first.save(file, "WEBP", quality=70, save_all=bool(others), **moving)
    return file.getvalue()


def _tile(found: Found, short_side: int) -> Tile:
    def scaled(width: int, height: int) -> tuple[int, int]:
        factor = short_side / min(width, height)
        longest = 2 * short_side  # a banner-shaped video must not burst the page
        return min(longest, round(width * factor)), min(longest, round(height * factor))

    try:
        pixels = read_frames(
            found.clip, lambda length: clip_times(0.5, length, _FRAMES, _STRIDE), scaled
        )
    except VideoError as error:
        blank = np.full((1, short_side, short_side * 4 // 3, 3), _GREY, dtype=np.uint8)
        return Tile(found, blank, str(error))
    return Tile(found, pixels)
