"""Decode clips of a video for evaluation, indexing and inference; runs in worker processes.

Training loads one random view at a time (`crosspair.video.loader`). Everything else needs several
clips of each video: a `DecodeJob` names them, and the video is opened once for all of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from crosspair.config import Clip, ClipConfig
from crosspair.errors import VideoError
from crosspair.video.decode import REFERENCE_FPS, array_frames, clip_times, read_frames, uniform_positions
from crosspair.video.views import resize_short_side

THUMBNAIL_SIDE = 160  # pixels, of the longer side


@dataclass(frozen=True)
class DecodeJob:
    """Clips of one video.

    Attributes:
        row: Row of the video in its manifest.
        first: Index of the first of these clips among all clips of the video.
        source: The file; or frames (T, H, W, 3) uint8, RGB, at 30 per second.
        config: Number, distance and size of the frames.
        times: (k, T) instants of the clips' frames, in s from the start of the source. Or
        positions: (k,) positions of the clips in the source, 0 (start) to 1 (as late as it fits).
        crops: Square crops of each clip: 1 (center), or 3 (both ends of the longer side too).
        thumbnails: Whether to make a picture of each clip.
    """

    row: int
    first: int
    source: Clip | np.ndarray
    config: ClipConfig
    times: np.ndarray | None = None
    positions: tuple[float, ...] = ()
    crops: int = 1
    thumbnails: bool = False

    def __len__(self) -> int:
        """Number of clips, k."""
        return len(self.positions if self.times is None else self.times)


@dataclass(frozen=True)
class DecodedClips:
    """The outcome of a `DecodeJob`.

    Attributes:
        clips: (crops, k, T, S, S, 3) uint8, RGB; empty if the job failed.
        thumbnails: The middle frame of each clip as JPEG, if requested.
        failure: What is wrong with the video; empty if nothing is.
    """

    clips: np.ndarray
    thumbnails: list[bytes] = field(default_factory=list)
    failure: str = ""


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

    def shape(width: int, height: int) -> tuple[int, int]:
        return resize_short_side(width, height, side)

    try:
        if isinstance(job.source, Clip):
            frames = read_frames(job.source, instants, shape)
        else:
            frames = array_frames(job.source, instants(len(job.source) / REFERENCE_FPS), shape)
    except VideoError as error:
        return DecodedClips(np.empty(0, np.uint8), failure=str(error))
    middle = config.frames // 2
    thumbnails = [_encode_thumbnail(frames[clip[middle]]) for clip in places] if job.thumbnails else []
    crops = [crop[places] for crop in square_crops(frames, job.crops, config.size)]
    return DecodedClips(np.stack(crops), thumbnails)


def square_crops(frames: np.ndarray, crops: int, size: int) -> list[np.ndarray]:
    """Crop squares along the longer side of the frames, centered on the shorter side.

    Args:
        frames: (T, H, W, 3).
        crops: Number of crops, evenly spaced from one end to the other: 3 for the test's left,
            center and right (Section 4.2), 1 for the center.
        size: Side of a square in pixels, at most the shorter of H and W. It is the size used in
            training: the last feature maps of a small network, 2×2, would become 3×3.

    Returns:
        `crops` views (T, size, size, 3).
    """
    height, width = frames.shape[1:3]
    squares = []
    for along in uniform_positions(crops):
        across, down = (along, 0.5) if width >= height else (0.5, along)
        left, top = round(across * (width - size)), round(down * (height - size))
        squares.append(frames[:, top : top + size, left : left + size])
    return squares


def _encode_thumbnail(frame: np.ndarray) -> bytes:
    """Shrink an (H, W, 3) uint8 frame to a longer side of at most `THUMBNAIL_SIDE` pixels; return it as a JPEG."""
    picture = Image.fromarray(frame)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()
