"""Search and classification results as HTML, and the moments that a browser may play.

Titles, file names and queries are always escaped.
"""

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

MAX_HITS = 24
MAX_LETTERS = 1000  # of a query, or of all class names
MIN_TIMELINE, MAX_LENGTH = 30.0, 600.0  # s; longer uploads get a timeline, or are rejected
ALL_FOLDERS = "All folders"

MAX_MOMENTS = 100_000  # moments that can be played; the oldest are dropped
MEDIA_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm",
}  # fmt: skip
CODECS = ("h264", "vp8", "vp9", "av1")
PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # not all browsers play 10 bits
CONVERSION = TranscodeSettings(short_side=360)
CONVERSION_TIMEOUT = 60.0  # s
MAX_CONVERSIONS = 100  # files that are kept


@dataclass(frozen=True)
class Upload:
    """Data that is kept of an uploaded video.

    Attributes:
        name: file name on the user's machine.
        length: length in s.
        spans: start and end of each window, in s.
        embedding: (n, D) float32, unit-norm f_v of each window.
        thumbnail: JPEG.
    """

    name: str
    length: float
    spans: list[tuple[float | None, float | None]]
    embedding: np.ndarray
    thumbnail: bytes

    @property
    def mean_embedding(self) -> np.ndarray:
        """(D,) float32, unit norm: mean over the windows."""
        mean = self.embedding.mean(axis=0)
        normalized: np.ndarray = mean / np.linalg.norm(mean)
        return normalized


class PageRenderer:
    """Render search and classification results of a library as HTML; safe for many threads.

    Args:
        searcher: searcher of the library.
        moments: store that makes the results playable.

    Attributes:
        folders: names of folders with videos, relative to their common folder; the first is
            `ALL_FOLDERS`.
        videos: number of videos in the library.
    """

    def __init__(self, searcher: Searcher, moments: MomentStore) -> None:
        self._searcher, self._moments = searcher, moments
        self._text_lock = threading.Lock()  # the text encoder is not thread-safe
        paths = {name.partition("#t=")[0] for name in searcher.library.videos()}
        self.videos = len(paths)
        parents = {Path(path).parent for path in paths if "://" not in path}
        self._root = os.path.commonpath(parents) if parents else ""
        relative = (parent.relative_to(self._root) for parent in parents)
        names = {str(folder) for path in relative for folder in (path, *path.parents)} - {"."}
        self._paths = {name: str(Path(self._root, name)) for name in sorted(names)}
        self.folders = [ALL_FOLDERS, *self._paths]

    def search(self, query: str | Upload, folder: str) -> str:
        """Render the moments nearest to a text or to an upload.

        Raises:
            TextError: The text is empty or has no word in the vocabulary, or the folder is not in
                ``folders``.
            ModelError: The text tower of the model is untrained.
        """
        if folder not in self.folders:
            raise TextError("unknown folder")
        path = self._paths.get(folder)
        if isinstance(query, Upload):
            hits = self._searcher.nearest(query.mean_embedding, limit=MAX_HITS, folder=path)
            what = f"like {query.name}"
        else:
            text = " ".join(query.split())[:MAX_LETTERS]
            if not text:
                raise TextError("Enter a few words that describe the video.")
            with self._text_lock:
                hits = self._searcher.text(text, limit=MAX_HITS, folder=path)
            what = f"for “{text}”"
        count = f"{len(hits)} moment{'s' * (len(hits) != 1)}" if hits else "No results"
        where = "" if path is None else f" in {folder}"
        return self._html(
            "moments",
            summary=f"{count} {what}{where}{', best first' * (len(hits) > 1)}",
            hits=[(hit, self._moments.register(hit)) for hit in hits],
        )

    def encode(self, path: Path, name: str) -> Upload:
        """Encode an uploaded video; worker processes decode it.

        Args:
            path: uploaded file.
            name: file name in messages.

        Raises:
            VideoError: The file is not a readable video, or is too long.
        """
        try:
            return self._encode(path, name)
        except VideoError as error:
            raise VideoError(str(error).replace(str(path), name)) from error

    def classify(self, upload: Upload, classes: str) -> str:
        """Render the scores of class names, separated by commas or lines (Appendix C).

        Raises:
            TextError: There is no class, or a class has no word in the vocabulary.
            ModelError: The text tower of the model is untrained.
        """
        model = self._searcher.engine.model
        check_text_tower(model)
        lines = classes[:MAX_LETTERS].replace(",", "\n").splitlines()
        names = list(dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines))))
        if not names:
            raise TextError("Enter class names, separated by commas.")
        with self._text_lock:
            check_text_tower(model, map(class_phrase, names))
            vectors = class_embeddings(model, names).numpy()
        cosines = upload.embedding @ vectors.T
        spans = upload.spans
        classified = Classified([upload.name] * len(spans), spans, names, cosines, [])
        ((_, ranked, timeline),) = classified.videos()
        return self._html(
            "classes",
            summary=f"{upload.name}, {format_time(upload.length)}: {ranked[0][0]}",
            thumbnail=upload.thumbnail, ranked=ranked, timeline=timeline,
        )  # fmt: skip

    def heading(self, name: str) -> str:
        """Render the name and the size of the library."""
        return self._html(
            "heading", name=name, videos=self.videos, windows=len(self._searcher.library)
        )

    def note(self) -> str:
        """Render the limits of uploads."""
        return self._html("note", max_length=MAX_LENGTH)

    def ready(self, upload: Upload) -> str:
        """Render an encoded upload without classes."""
        return self._html("ready", upload=upload)

    def error(self, message: str) -> str:
        """Render an error message."""
        return self._html("error", message=message)

    def _relative_path(self, path: str) -> str:
        if "://" in path:
            return path
        inside = Path(path).is_relative_to(self._root)  # False for videos added since the start
        return str(Path(path).relative_to(self._root)) if inside else Path(path).name

    def _encode(self, path: Path, name: str) -> Upload:
        # The file is never read as a manifest, which could name other files of the server.
        manifest = probe_missing(
            manifest_from_rows([{"pair_id": str(path), "path": str(path)}], ".")
        )
        (row,) = manifest.table.to_pylist()
        if row["error"]:
            raise VideoError(row["error"])
        length = row["duration"]
        if length > MAX_LENGTH:
            raise VideoError(
                f"{name} is {format_time(length)} long; the maximum is {format_time(MAX_LENGTH)}"
            )
        windows = Windows() if length > MIN_TIMELINE else Windows(length, length)
        (encoded,) = encode_windows(self._searcher.engine, manifest, windows, thumbnails=True)
        if not encoded.spans:
            raise VideoError(encoded.failure)
        thumbnail = encoded.thumbnails[len(encoded.thumbnails) // 2]
        return Upload(name, length, encoded.spans, encoded.embedding.numpy(), thumbnail)

    def _html(self, template: str, **values: Any) -> str:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("crosspair.serve"), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters.update(
            base64=lambda content: base64.b64encode(content).decode(),
            format_time=format_time,
            relative_path=self._relative_path,
        )
        html = environment.get_template(f"{template}.html.j2").render(values)
        # Gradio evaluates template expressions in the browser.
        html = html.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
        return html.encode(errors="replace").decode()  # replace lone surrogates


class MomentStore:
    """Moments that were found in a library, for playing in a browser.

    Args:
        library: only videos that are in it are opened.
        folder: folder for conversions.
    """

    def __init__(self, library: Library, folder: Path) -> None:
        self._library, self._folder = library, folder
        self._secret = secrets.token_bytes(16)
        self._clips: OrderedDict[str, Clip] = OrderedDict()
        self._clips_lock = threading.Lock()
        self._conversion_lock = threading.Lock()  # two requests may need the same conversion

    def register(self, hit: SearchHit) -> str:
        """Make a moment playable.

        Returns:
            Its key: 32 hexadecimal digits that are unpredictable, and the same for each call.
        """
        clip = Clip(hit.path, hit.start, hit.end)
        digest = hashlib.blake2b(repr(clip).encode("utf-8", "replace"), key=self._secret)
        key = digest.hexdigest()[:32]
        with self._clips_lock:
            self._clips[key] = clip
            self._clips.move_to_end(key)
            if len(self._clips) > MAX_MOMENTS:
                self._clips.popitem(last=False)
        return key

    def find_file(self, key: str) -> tuple[Path, str] | None:
        """Return the file of a moment and its media type; None if some browsers cannot play it.

        Raises:
            KeyError: The key is unknown, or the video was removed from the library.
            VideoError: The file is not readable.
        """
        clip = self._find_clip(key)
        media_type = MEDIA_TYPES.get(Path(clip.path).suffix.lower())
        if media_type is None or "://" in clip.path:
            return None
        with open_video(clip.path) as (_, stream):
            codec = stream.codec_context
            playable = codec.name.removeprefix("lib") in CODECS and codec.pix_fmt in PIXEL_FORMATS
        return (Path(clip.path), media_type) if playable else None

    def convert(self, key: str) -> Path:
        """Convert a moment to an MP4 file, without sound, that all browsers play.

        Raises:
            KeyError: The key is unknown, or the video was deleted or removed from the library.
            VideoError: The video is not readable.
            TimeoutError: Earlier conversions take too long.
        """
        clip = self._find_clip(key)
        state = file_state(clip.path)
        if state == MISSING_FILE:
            raise KeyError(key)
        # The name contains size and time of the file, so a replaced file is converted again.
        target = self._folder / f"{key}-{state[0]}-{state[1]}.mp4"
        if target.exists():
            return target
        if not self._conversion_lock.acquire(timeout=CONVERSION_TIMEOUT):
            raise TimeoutError
        try:
            if not target.exists():
                _convert(TranscodeRequest(clip, CONVERSION, target, key))
                files = sorted(self._folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
                for path in files[:-MAX_CONVERSIONS]:
                    path.unlink(missing_ok=True)
        finally:
            self._conversion_lock.release()
        return target

    def _find_clip(self, key: str) -> Clip:
        clip = self._clips[key]
        if not self._library.table.count_rows(f"path = {sql_quote(clip.path)}"):
            raise KeyError(key)
        return clip


def _convert(request: TranscodeRequest) -> None:
    """Convert in a separate process: a broken video may crash or block the decoder."""
    outcomes = map_isolated(run_request, [request], timeout=CONVERSION_TIMEOUT)
    with closing(outcomes):
        ((_, outcome),) = outcomes
    if not isinstance(outcome, TranscodeOutcome):
        raise VideoError(f"{request.clip.path}: {outcome.reason}")
    if outcome.error or outcome.fatal:
        raise VideoError(outcome.error or outcome.fatal)
