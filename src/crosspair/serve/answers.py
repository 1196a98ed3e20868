"""What the page answers, as HTML: whatever stands in a title, a name or a query stays text."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from crosspair.api import Classified
from crosspair.config import Clip
from crosspair.corpora.build import class_phrase
from crosspair.corpora.inputs import probe_missing
from crosspair.corpora.manifest import manifest_from_rows
from crosspair.corpora.prepare import TranscodeOutcome, TranscodeRequest, run_request
from crosspair.corpora.transcode import TranscodeSettings
from crosspair.errors import TextError, VideoError
from crosspair.evaluation.encode import check_text_tower, encode_windows
from crosspair.evaluation.windows import Windows
from crosspair.evaluation.zeroshot import class_embeddings
from crosspair.library.search import Searcher, SearchHit, format_time
from crosspair.library.store import MISSING_FILE, Library, file_state, sql_quote
from crosspair.video.container import open_video
from crosspair.workers import map_isolated

FOUND = 24  # moments
LETTERS = 1000  # of a query or of all classes, at most
LONG, LONGEST = 30.0, 600.0  # s; longer uploads get a timeline, or are refused
EVERYWHERE = "All folders"


@dataclass(frozen=True)
class Seen:
    """All that is kept of an upload.

    Attributes:
        name: of the file, as the user has it.
        length: in s.
        spans: start and end of each of its windows, in s.
        embedding: (n, D) float32, f_v of each, of unit norm.
        thumbnail: JPEG.
    """

    name: str
    length: float
    spans: list[tuple[float | None, float | None]]
    embedding: np.ndarray
    thumbnail: bytes

    @property
    def whole(self) -> np.ndarray:
        """(D,) float32, of unit norm: the mean over the windows."""
        mean = self.embedding.mean(axis=0)
        whole: np.ndarray = mean / np.linalg.norm(mean)
        return whole


class Answers:
    """A library, asked by many.

    Args:
        searcher: of the library.
        moments: what they may play.

    Attributes:
        folders: names of the folders that videos lie in, under that which all lie in; the first
            stands for all.
        videos: how many the library holds.
    """

    def __init__(self, searcher: Searcher, moments: Moments) -> None:
        self._searcher, self._moments = searcher, moments
        self._reading = threading.Lock()  # the text encoder is for one at a time
        paths = {name.partition("#t=")[0] for name in searcher.library.videos()}
        self.videos = len(paths)
        inside = {str(Path(path).parent) for path in paths if "://" not in path}
        self._root = os.path.commonpath(inside) if inside else ""
        places = {place for folder in inside for place in self._above(folder)}
        self._places = {place: str(Path(self._root, place)) for place in sorted(places)}
        self.folders = [EVERYWHERE, *self._places]

    def search(self, asked: str | Seen, folder: str) -> str:
        """The moments nearest to a text or to an upload, in one of ``folders``.

        Raises:
            TextError: there is no text, or the model knows no word of it; there is no such folder.
            ModelError: the model's text tower is untrained.
        """
        if folder not in self.folders:
            raise TextError("the library has no such folder")
        within = self._places.get(folder)
        if isinstance(asked, Seen):
            found = self._searcher.nearest(asked.whole, limit=FOUND, folder=within)
            query = f"like {asked.name}"
        else:
            query = " ".join(asked.split())[:LETTERS]
            if not query:
                raise TextError("Say what is to be seen, in a few words.")
            with self._reading:
                found = self._searcher.text(query, limit=FOUND, folder=within)
            query = f"for “{query}”"
        place = "" if within is None else f" in {folder}"
        count = f"{len(found)} moment{'s' * (len(found) != 1)}" if found else "Nothing"
        return self._html(
            "moments",
            told=f"{count} {query}{place}{', best first' * (len(found) > 1)}",
            found=[(moment, self._moments.show(moment)) for moment in found],
        )

    def see(self, path: Path, name: str) -> Seen:
        """Look at an upload, in other processes.

        Args:
            path: of the file.
            name: to call it by.

        Raises:
            VideoError: it cannot be read, is too long, or is no video.
        """
        try:
            return self._seen(path, name)
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), name)) from error

    def classify(self, seen: Seen, classes: str) -> str:
        """How near an upload is to classes, separated by commas or lines (Appendix C).

        Raises:
            TextError: there are no classes, or the model knows no word of one.
            ModelError: the model's text tower is untrained.
        """
        model = self._searcher.engine.model
        check_text_tower(model)
        lines = classes[:LETTERS].replace(",", "\n").splitlines()
        names = list(dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines))))
        if not names:
            raise TextError("Name the classes to choose among, separated by commas.")
        with self._reading:
            check_text_tower(model, map(class_phrase, names))
            vectors = class_embeddings(model, names).numpy()
        cosines = seen.embedding @ vectors.T
        answer = Classified([seen.name] * len(seen.spans), seen.spans, names, cosines, [])
        ((_, ranked, timeline),) = answer.videos()
        return self._html(
            "classes",
            told=f"{seen.name}, {format_time(seen.length)}: {ranked[0][0]}",
            thumbnail=seen.thumbnail, ranked=ranked, timeline=timeline,
        )  # fmt: skip

    def heading(self, name: str) -> str:
        """What the library is."""
        return self._html(
            "heading", name=name, videos=self.videos, windows=len(self._searcher.library)
        )

    def note(self) -> str:
        """What becomes of uploads."""
        return self._html("note", longest=LONGEST)

    def ready(self, seen: Seen) -> str:
        """An upload was looked at, and no class is named yet."""
        return self._html("ready", seen=seen)

    def fault(self, message: str) -> str:
        """A fault, for the user to mend."""
        return self._html("fault", fault=message)

    def _above(self, folder: str) -> list[str]:
        """The folder and those around it, as seen from the root, which is none of them."""
        inside = Path(folder).relative_to(self._root)
        return [str(place) for place in (inside, *inside.parents) if place != Path()]

    def _place(self, path: str) -> str:
        if "://" in path:
            return path
        inside = Path(path).is_relative_to(self._root)  # not if it was added since
        return str(Path(path).relative_to(self._root)) if inside else Path(path).name

    def _seen(self, path: Path, name: str) -> Seen:
        # Never by its name: a list of videos would have the server read whatever it names.
        manifest = probe_missing(
            manifest_from_rows([{"pair_id": str(path), "path": str(path)}], ".")
        )
        (row,) = manifest.table.to_pylist()
        if row["error"]:
            raise VideoError(row["error"])
        length = row["duration"]
        if length > LONGEST:
            raise VideoError(
                f"{name} is {format_time(length)} long; at most {format_time(LONGEST)} can be looked at here"
            )
        windows = Windows() if length > LONG else Windows(length, length)
        (encoded,) = encode_windows(self._searcher.engine, manifest, windows, thumbnails=True)
        if not encoded.spans:
            raise VideoError(encoded.failure)
        return Seen(
            name, length, encoded.spans, encoded.embedding.numpy(),
            encoded.thumbnails[len(encoded.thumbnails) // 2],
        )  # fmt: skip

    def _html(self, template: str, **values: Any) -> str:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("crosspair.serve"), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters.update(
            base64=lambda content: base64.b64encode(content).decode(),
            format_time=format_time,
            place=self._place,
        )
        html = environment.get_template(f"{template}.html.j2").render(values)
        # Gradio fills templates of its own in the browser; nothing in here is one.
        html = html.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
        return html.encode(errors="replace").decode()  # halves of surrogate pairs


SHOWN = 100_000  # moments that can be played; more push out the oldest
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
CODECS = ("h264", "vp8", "vp9", "av1")
PIXELS = ("yuv420p", "yuvj420p")  # a phone's ten bits are not for every browser
CONVERSION = TranscodeSettings(short_side=360)
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

    def show(self, moment: SearchHit) -> str:
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
        with open_video(clip.path) as (_, stream):
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
        state = file_state(clip.path)
        if state == MISSING_FILE:
            raise KeyError(key)
        # A file that was replaced is converted anew.
        target = self._folder / f"{key}-{state[0]}-{state[1]}.mp4"
        if target.exists():
            return target
        if not self._converting.acquire(timeout=SECONDS):
            raise TimeoutError
        try:
            if not target.exists():
                _convert(TranscodeRequest(clip, CONVERSION, target, key))
                self._forget_old()
        finally:
            self._converting.release()
        return target

    def _known(self, key: str) -> Clip:
        clip = self._shown[key]
        if not self._library.table.count_rows(f"path = {sql_quote(clip.path)}"):
            raise KeyError(key)
        return clip

    def _forget_old(self) -> None:
        made = sorted(self._folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in made[:-CONVERSIONS]:
            path.unlink(missing_ok=True)


def _convert(request: TranscodeRequest) -> None:
    """Encode in a process of its own, which a broken video may bring down or keep."""
    answers = map_isolated(run_request, [request], timeout=SECONDS)
    with closing(answers):
        ((_, answer),) = answers
    if not isinstance(answer, TranscodeOutcome):
        raise VideoError(f"{request.clip.path}: {answer.reason}")
    if answer.error or answer.fatal:
        raise VideoError(answer.error or answer.fatal)
