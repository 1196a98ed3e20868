"""A passage of a video: its frames, each with the instant from which it is on screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from crosspair.clip import Clip
from crosspair.errors import VideoError
from crosspair.video.container import header, opened
from crosspair.video.decode import TAIL_TOLERANCE, TICK, decoded_from, part_of, shown_until


@dataclass(frozen=True)
class Passage:
    """An open passage, to be gone through once.

    Attributes:
        begin: where it begins in the video, in s.
        length: in s.
        fps: frames a second, on the average of the whole video.
    """

    path: str
    begin: float
    length: float
    fps: float
    container: InputContainer
    stream: VideoStream

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """What `crosspair.video.read_frames` would show, from its beginning to its end.

        Yields:
            Seconds from the beginning of the passage, ascending from 0, and the frame that is on
            screen from then on. The first frame may have begun before the passage.

        Raises:
            VideoError: a frame of the passage is corrupt, or the video ends within it.
        """
        for count, (seconds, frame) in enumerate(self._shown()):
            if frame.is_corrupt:
                raise VideoError(f"{self.path}: damaged: the frame at {seconds:.2f} s is corrupt")
            yield seconds - self.begin if count else 0.0, frame

    def frames_at(self, fps: float) -> Iterator[tuple[float, VideoFrame]]:
        """The same at a constant rate: frames are repeated or left out."""
        count = 0
        held: VideoFrame | None = None
        for seconds, frame in self.frames():
            while held is not None and count / fps < seconds - TICK:
                yield count / fps, held
                count += 1
            held = frame
        while held is not None and (count == 0 or count / fps < self.length - TICK):
            yield count / fps, held
            count += 1

    def _shown(self) -> Iterator[tuple[float, VideoFrame]]:
        end = self.begin + self.length
        shown: tuple[float, VideoFrame] | None = None
        for seconds, frame in decoded_from(self.container, self.stream, self.begin):
            if seconds >= end - TICK and shown is not None:
                break
            # A frame that begins no later than the one before takes its place on screen.
            if shown is not None and seconds > max(shown[0], self.begin + TICK):
                yield shown
            shown = (seconds if shown is None else max(seconds, shown[0]), frame)
        else:
            if shown is None or end > shown_until(*shown) + TAIL_TOLERANCE:
                last = (
                    "it has no frames" if shown is None else f"the last begins at {shown[0]:.2f} s"
                )
                raise VideoError(f"{self.path}: cut: frames are missing before {end:.2f} s; {last}")
        yield shown


@contextmanager
def opened_passage(clip: Clip, middle: float | None) -> Iterator[Passage]:
    """Open the part of a video that ``clip`` names, or the ``middle`` seconds of it.

    Raises:
        VideoError: the file is missing, empty, cut, or has no video stream, or the part begins
            after its end.
    """
    with opened(clip.path) as (container, stream):
        info = header(stream, clip.path)
        begin, length = part_of(clip, info)
        if middle is not None and length > middle:
            begin, length = begin + (length - middle) / 2, middle
        yield Passage(clip.path, begin, length, info.fps, container, stream)
