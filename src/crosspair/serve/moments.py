"""Moments that a page may play, by keys: no address of the page holds a path.

A browser asks for a moment's whole file first. Where that is not of a kind that every browser
plays, or lies elsewhere, it is refused, and the browser asks for a short conversion instead.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from contextlib import closing
from pathlib import Path

from crosspair.clip import Clip
from crosspair.corpora.prepare.request import Outcome, Request
from crosspair.corpora.prepare.settings import Settings
from crosspair.errors import VideoError
from crosspair.isolation import isolated
from crosspair.library import Library, Moment
from crosspair.library.store import NOT_THERE, quoted, state_of
from crosspair.video.container import opened

SHOWN = 100_000  # moments that can be played; more push out the oldest
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
CODECS = ("h264", "vp8", "vp9", "av1")
PIXELS = ("yuv420p", "yuvj420p")  # a phone's ten bits are not for every browser
CONVERSION = Settings(short_side=360)
SECONDS, CONVERSIONS = 60.0, 100  # for one; that are kept


class Moments:
    """What was found in a library, for browsers to play.

    Args:
        library: only its videos are ever opened.
        folder: where conversions go, which are few.
    """

    def __init__(self, library: Library, folder: Path) -> None:
        self._library, self._folder = library, folder
        self._secret = secrets.token_bytes(16)
        self._shown: OrderedDict[str, Clip] = OrderedDict()
        self._changing = threading.Lock()
        self._converting = threading.Lock()  # two may want the same moment

    def show(self, moment: Moment) -> str:
        """Let a moment be played.

        Returns:
            Its key: hexadecimal digits that cannot be guessed, the same each time.
        """
        clip = Clip(moment.path, moment.start, moment.end)
        digest = hashlib.blake2b(repr(clip).encode("utf-8", "replace"), key=self._secret)
        key = digest.hexdigest()[:32]
        with self._changing:
            self._shown[key] = clip
            self._shown.move_to_end(key)
            if len(self._shown) > SHOWN:
                self._shown.popitem(last=False)
        return key

    def file(self, key: str) -> tuple[Path, str] | None:
        """The moment's whole file and its media type, or None where not every browser plays it.

        Raises:
            KeyError: no such moment was shown, or its video has left the library.
            VideoError: the file cannot be read.
        """
        clip = self._known(key)
        kind = PLAYED.get(Path(clip.path).suffix.lower())
        if kind is None or "://" in clip.path:
            return None
        with opened(clip.path) as (_, stream):
            context = stream.codec_context
            plays = context.name.removeprefix("lib") in CODECS and context.pix_fmt in PIXELS
        return (Path(clip.path), kind) if plays else None

    def conversion(self, key: str) -> Path:
        """An MP4 file of the moment alone, without sound, that every browser plays.

        Raises:
            KeyError: no such moment was shown, or its video is deleted or has left the library.
            VideoError: the video cannot be read.
            TimeoutError: others' conversions take too long.
        """
        clip = self._known(key)
        state = state_of(clip.path)
        if state == NOT_THERE:
            raise KeyError(key)
        # A file that was replaced is converted anew.
        target = self._folder / f"{key}-{state[0]}-{state[1]}.mp4"
        if target.exists():
            return target
        if not self._converting.acquire(timeout=SECONDS):
            raise TimeoutError
        try:
            if not target.exists():
                _convert(Request(clip, CONVERSION, target, key))
                self._forget_old()
        finally:
            self._converting.release()
        return target

    def _known(self, key: str) -> Clip:
        clip = self._shown[key]
        if not self._library.table.count_rows(f"path = {quoted(clip.path)}"):
            raise KeyError(key)
        return clip

    def _forget_old(self) -> None:
        made = sorted(self._folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in made[:-CONVERSIONS]:
            path.unlink(missing_ok=True)


def _convert(request: Request) -> None:
    """Encode in a process of its own, which a broken video may bring down or keep."""
    answers = isolated("crosspair.corpora.prepare.attempt:attempt", [request], seconds=SECONDS)
    with closing(answers):
        ((_, answer),) = answers
    if not isinstance(answer, Outcome):
        raise VideoError(f"{request.clip.path}: {answer.reason}")
    if answer.error or answer.fatal:
        raise VideoError(answer.error or answer.fatal)
