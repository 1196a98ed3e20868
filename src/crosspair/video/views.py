"""Clips of videos: random views for training, and several clips of a video for everything else, in worker processes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from crosspair.config import Clip, ClipConfig
from crosspair.errors import VideoError
from crosspair.video.decode import REFERENCE_FPS, array_frames, clip_times, read_frames, uniform_positions

THUMBNAIL_SIDE = 160  # pixels, of the longer side
PREVIEW_FRAMES, PREVIEW_STRIDE = 16, 4  # frames of a preview, and their distance in 1/30 s, as in training
PREVIEW_SIDE = 112  # pixels, of the shorter side
_SEAM, _GREY = 2, (128, 132, 138)  # pixels between joined frames; colour of blank frames


@dataclass(frozen=True)
class View:
    """A region of a video in time and space, independent of the video's length and size."""

    position: float  # of the clip in time, 0 to 1
    short_side: int  # of the resized frames, in pixels, unless an area is given
    across: float = 0.5  # horizontal position of the crop, 0 (left) to 1 (right)
    down: float = 0.5  # vertical position of the crop, 0 (top) to 1 (bottom)
    flip: bool = False  # whether to mirror left and right
    colors: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0)  # factors of brightness, contrast, saturation; hue rotation in rad
    area: float | None = None  # fraction of the frame that the crop covers; None: given by `short_side`
    aspect: float = 1.0  # with an area, width / height of the crop before it is stretched to a square


def training_view(generator: np.random.Generator, config: ClipConfig) -> View:
    """Draw a random view for training (Section 4.2); for size 112, the paper's short sides are 128 to 170.

    With ``config.area``, the area is uniform and the aspect log-uniform, as in the random-resized crop of Inception.
    """
    position, side, across, down, mirror = generator.random(5)
    low, high = round(config.scale[0] * config.size), round(config.scale[1] * config.size)
    brightness, contrast, saturation = 1 + config.color_jitter * generator.uniform(-1, 1, 3)
    hue, grey, area, aspect = generator.random(4)
    if grey < config.grayscale:
        saturation = 0.0
    return View(
        position=position,
        short_side=low + int(side * (high - low + 1)),
        across=across,
        down=down,
        flip=config.flip and mirror < 0.5,
        colors=(brightness, contrast, saturation, 2 * math.pi * config.hue * (2 * hue - 1)),
        area=None if config.area is None else config.area[0] + area * (config.area[1] - config.area[0]),
        aspect=config.aspect[0] * (config.aspect[1] / config.aspect[0]) ** aspect,
    )


def load_view(clip: Clip, view: View, config: ClipConfig) -> np.ndarray:
    """Decode and crop one view of a video, without its colour changes: (frames, size, size, 3) uint8, RGB.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """
    pixels = load_frames(clip, view, config)
    _, height, width, _ = pixels.shape
    size = config.size
    top = round(view.down * (height - size))
    left = round(view.across * (width - size))
    crop = pixels[:, top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, :, ::-1] if view.flip else crop)


def load_frames(clip: Clip, view: View, config: ClipConfig) -> np.ndarray:
    """Decode the frames (T, H, W, 3) of one view, resized such that its crop is a square of ``config.size``."""
    return read_frames(
        clip,
        lambda length: clip_times(view.position, length, config.frames, config.stride),
        lambda width, height: _frame_size(view, width, height, config.size),
    )


def _frame_size(view: View, width: float, height: float, size: int) -> tuple[int, int]:
    """Return the (width, height) that frames are resized to.

    A crop of the view's area that is wider or higher than the frame is reduced to fit, with the same aspect.
    """
    if view.area is None:
        return resize_short_side(width, height, view.short_side)
    wide, high = (math.sqrt(view.area * width * height * ratio) for ratio in (view.aspect, 1 / view.aspect))
    enlarged = size * max(1, wide / width, high / height)
    return max(size, round(enlarged * width / wide)), max(size, round(enlarged * height / high))


def resize_short_side(width: float, height: float, short_side: int) -> tuple[int, int]:
    """Return the (width, height) with the given short side and the same proportions.

    >>> resize_short_side(320, 240, 128)
    (171, 128)
    """
    factor = short_side / min(width, height)
    return max(short_side, round(width * factor)), max(short_side, round(height * factor))


@dataclass(frozen=True)
class DecodeJob:
    """Clips of one video, which is opened once for all of them; at ``times`` or ``positions``."""

    row: int  # of the video in its manifest
    first: int  # index of the first of these clips among all clips of the video
    source: Clip | np.ndarray  # the file; or frames (T, H, W, 3) uint8, RGB, at 30 per second
    config: ClipConfig
    times: np.ndarray | None = None  # (k, T) of the clips' frames, in s from the start of the source
    positions: tuple[float, ...] = ()  # (k,) of the clips in the source, 0 (start) to 1 (as late as it fits)
    crops: int = 1  # square crops of each clip: 1 (center), or 3 (both ends of the longer side too)
    thumbnails: tuple[int, ...] = ()  # the clips to make a picture of
    key_frame_age: float | None = None  # replace frames by key frames, see `crosspair.video.decode.read_frames`

    def __len__(self) -> int:
        """Number of clips, k."""
        return len(self.positions if self.times is None else self.times)


@dataclass(frozen=True)
class DecodedClips:
    """The outcome of a `DecodeJob`."""

    clips: np.ndarray  # (crops, u, T, S, S, 3) uint8, RGB, u = k unless clips repeat; empty if the job failed
    thumbnails: list[bytes] = field(default_factory=list)  # the middle frame of each clip as JPEG, or empty
    failure: str = ""  # what is wrong with the video
    repeats: np.ndarray | None = None  # (k,) index among the u distinct clips of each clip; None: u = k


def decode_job(job: DecodeJob) -> DecodedClips:
    """Decode the clips of a job: frames at the test scale, then square crops; a VideoError is returned as `failure`."""
    config = job.config
    places: np.ndarray = np.empty(0, int)
    side = round(config.test_scale * config.size)

    def instants(length: float) -> np.ndarray:
        nonlocal places
        if job.times is None:
            times = np.stack([clip_times(position, length, config.frames, config.stride) for position in job.positions])
        else:
            times = np.minimum(job.times, length)
        unique, inverse = np.unique(times, return_inverse=True)  # overlapping clips share frames
        places = inverse.reshape(times.shape)  # (k, T)
        return unique

    def shape(width: float, height: float) -> tuple[int, int]:
        return resize_short_side(width, height, side)

    try:
        if isinstance(job.source, Clip):
            frames = read_frames(job.source, instants, shape, job.key_frame_age)
        else:
            frames = array_frames(job.source, instants(len(job.source) / REFERENCE_FPS), shape)
    except VideoError as error:
        return DecodedClips(np.empty(0, np.uint8), failure=str(error))
    middle = places.shape[1] // 2
    thumbnails = [
        _encode_thumbnail(frames[places[clip, middle]]) if clip in job.thumbnails else b"" for clip in range(len(job))
    ]
    repeats = None
    if job.key_frame_age is not None:  # one may stand for several instants
        changes = np.append(True, (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)))
        first = np.flatnonzero(changes)[np.cumsum(changes) - 1]  # index of the first of equal frames
        places, repeats = np.unique(first[places], axis=0, return_inverse=True)
    crops = [crop[places] for crop in square_crops(frames, job.crops, config.size)]
    return DecodedClips(np.stack(crops), thumbnails, repeats=repeats)


def square_crops(frames: np.ndarray, crops: int, size: int) -> list[np.ndarray]:
    """Return views (T, size, size, 3) of frames (T, H, W, 3), evenly spaced along the longer side: one is the center.

    Three are the left, center and right of Section 4.2.
    """
    height, width = frames.shape[1:3]
    squares = []
    for along in uniform_positions(crops):
        across, down = (along, 0.5) if width >= height else (0.5, along)
        left, top = round(across * (width - size)), round(down * (height - size))
        squares.append(frames[:, top : top + size, left : left + size])
    return squares


def _encode_thumbnail(frame: np.ndarray) -> bytes:
    """Return a JPEG of an (H, W, 3) frame with a longer side of at most `THUMBNAIL_SIDE` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def read_preview(clip: Clip, frames: Sequence[int] = range(PREVIEW_FRAMES)) -> np.ndarray:
    """Decode small pictures of the middle of a clip: some of 16 frames, 4/30 s apart, (T, H, W, 3) uint8, RGB.

    The shorter side has 112 pixels; the longer side of very wide videos is reduced to 224.

    Raises:
        VideoError: see `crosspair.video.decode.read_frames`.
    """

    def times(length: float) -> np.ndarray:
        return clip_times(0.5, length, PREVIEW_FRAMES, PREVIEW_STRIDE)[list(frames)]

    def shape(width: float, height: float) -> tuple[int, int]:
        scaled = resize_short_side(width, height, PREVIEW_SIDE)
        return min(2 * PREVIEW_SIDE, scaled[0]), min(2 * PREVIEW_SIDE, scaled[1])

    return read_frames(clip, times, shape)


def blank_preview(frames: int) -> np.ndarray:
    """Return grey frames (T, H, W, 3) uint8 to be shown for a video that cannot be read."""
    return np.full((frames, PREVIEW_SIDE, PREVIEW_SIDE * 4 // 3, 3), _GREY, dtype=np.uint8)


def join_frames(frames: np.ndarray) -> Image.Image:
    """Return an image of frames (T, H, W, 3) uint8 side by side, with white seams."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, _SEAM), (0, 0)), constant_values=255)
    return Image.fromarray(np.concatenate(list(padded), axis=1)[:, :-_SEAM])
