"""Search and classification with the model of a library, and the moments that may be played."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import numpy as np
import torch
from pydantic import BaseModel, Field

from crosspair.config import Clip
from crosspair.corpora.build import class_phrase
from crosspair.corpora.inputs import probe_missing
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.prepare import TranscodeRequest, transcode_locally
from crosspair.corpora.transcode import TranscodeSettings
from crosspair.corpora.video_files import MISSING_FILE, absolute_path, file_state
from crosspair.errors import CrosspairError, TextError, VideoError
from crosspair.evaluation.encode import check_text_tower, encode_windows
from crosspair.evaluation.windows import Span, Windows
from crosspair.evaluation.zeroshot import class_embeddings
from crosspair.inference import Classified
from crosspair.library.search import Searcher, SearchHit, format_time
from crosspair.library.store import sql_quote
from crosspair.video.container import open_video

MIN_TIMELINE, MAX_LENGTH = 30.0, 600.0  # s; longer uploads get a timeline, or are rejected
MAX_EMBEDDINGS = 100  # uploads whose embeddings are kept, so that other classes need no decoding
MAX_MOMENTS = 20_000  # moments that can be played, each with a thumbnail of about 5 kB

MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
CODECS = ("h264", "vp8", "vp9", "av1")
PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # not all browsers play 10 bits
CONVERSION = TranscodeSettings(short_side=360)
MAX_CONVERSIONS = 100  # files that are kept


class Moment(BaseModel):
    """A time range of a video that matches the query."""

    key: str = Field(description="identifies the moment in the addresses of its video and thumbnail")
    start: float = Field(description="seconds from the beginning of the video")
    end: float = Field(description="seconds from the beginning of the video")
    score: float = Field(description="cosine similarity of query and moment, -1 to 1")
    title: str | None = Field(description="title of the video")
    path: str = Field(description="of the video, relative to the common folder of all videos")


class ClassSegment(BaseModel):
    """A time range of a video with one class."""

    start: float = Field(description="seconds from the beginning of the video")
    end: float = Field(description="seconds from the beginning of the video")
    label: str = Field(description="name of the class")
    score: float = Field(description="mean score of the class, 0 to 1")


class Classification(BaseModel):
    """Scores of the classes for a video."""

    length: float = Field(description="of the video, in seconds")
    thumbnail: str = Field(description="a frame of the video, JPEG in base64")
    classes: dict[str, float] = Field(description="score of each class, best first; the scores sum to 1")
    timeline: list[ClassSegment] = Field(description="best class over time; one segment if the video is short")


@dataclass(frozen=True)
class ReceivedVideo:
    """An uploaded video that can be encoded."""

    digest: bytes  # of the content
    manifest: Manifest  # of this video
    length: float  # s

    @property
    def is_short(self) -> bool:
        """Whether it is encoded as a whole, without a timeline."""
        return self.length <= MIN_TIMELINE


@dataclass(frozen=True)
class Upload:
    """What is kept of an uploaded video: its length in s, a JPEG, and of each window the span in s and f_v, (n, D)."""

    length: float
    thumbnail: bytes
    spans: list[Span]
    embedding: np.ndarray


class LibraryService:
    """Search a library, encode uploads and find the files of moments.

    Args:
        searcher: searcher of the library.
        scratch: folder for uploads, while they are encoded, and for conversions.
        max_upload: largest upload, in bytes.

    Attributes:
        folders: names of folders with videos, relative to their common folder.
        videos: number of videos in the library.
    """

    def __init__(self, searcher: Searcher, scratch: Path, max_upload: int) -> None:
        self.searcher, self.max_upload = searcher, max_upload
        self._uploads_folder, self._conversions = scratch / "uploads", scratch / "moments"
        self._uploads: dict[bytes, Upload] = {}  # by digest of the content
        self._hits: dict[str, SearchHit] = {}  # the oldest first
        self._lock, self._copying = threading.Lock(), threading.Lock()
        self._secret = secrets.token_bytes(16)
        names = (name.partition("#t=")[0] for name, video in searcher.library.videos().items() if video.windows)
        paths = {absolute_path(name) for name in names}
        self.videos = len(paths)
        parents = {Path(path).parent for path in paths if "://" not in path}
        self._root = os.path.commonpath(parents) if parents else ""
        relative = (parent.relative_to(self._root) for parent in parents)
        self.folders = sorted({str(folder) for path in relative for folder in (path, *path.parents)} - {"."})

    def search(self, query: str | Upload, limit: int, folder: str = "") -> list[Moment]:
        """Find the moments nearest to a text or to an upload, best first.

        Raises:
            TextError: The text is empty or has no word in the vocabulary, or the folder is not in ``folders``.
            ModelError: The text tower of the model is untrained.
        """
        if folder and folder not in self.folders:
            raise TextError(f"unknown folder {folder!r}")
        path = Path(self._root, folder) if folder else None
        if isinstance(query, Upload):
            mean = query.embedding.mean(axis=0)
            hits = self.searcher.nearest(mean / np.linalg.norm(mean), limit=limit, folder=path)
        elif text := " ".join(query.split()):
            hits = self.searcher.text(text, limit=limit, folder=path)
        else:
            raise TextError("enter a few words that describe the video")
        return [self.register(hit) for hit in hits]

    def register(self, hit: SearchHit) -> Moment:
        """Make a search result playable, under a key that is unpredictable but always the same."""
        content = repr((hit.path, hit.start, hit.end)).encode()
        key = hashlib.blake2b(content, key=self._secret, digest_size=16).hexdigest()
        with self._lock:
            self._hits.pop(key, None)
            self._hits[key] = hit
            if len(self._hits) > MAX_MOMENTS:
                del self._hits[next(iter(self._hits))]
        path = absolute_path(hit.path)
        if "://" not in path:
            inside = Path(path).is_relative_to(self._root)  # False for videos added since the start
            path = str(Path(path).relative_to(self._root)) if inside else Path(path).name
        return Moment(key=key, start=hit.start, end=hit.end, score=hit.score, title=hit.title, path=path)

    def open_copy(self) -> IO[bytes]:
        """Create a file for an upload, which is deleted when it is closed."""
        self._uploads_folder.mkdir(parents=True, exist_ok=True)  # temporary folders may be cleaned
        return NamedTemporaryFile(dir=self._uploads_folder)

    def receive(self, file: IO[bytes], copy: IO[bytes]) -> ReceivedVideo | Upload:
        """Move a file to its copy, which other processes can open, and probe it, unless its embeddings are known.

        Raises:
            VideoError: It is not a readable video, or is too long.
        """
        with self._copying:  # only one upload needs twice its size on the disk
            shutil.copyfileobj(file, copy)
            copy.flush()
            file.close()
        with Path(copy.name).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
        if digest in self._uploads:
            return self._uploads[digest]
        # The path is never read as a manifest, which could name other files of the server.
        manifest = probe_missing(manifest_from_rows([{"pair_id": copy.name, "path": copy.name}], "."))
        (row,) = manifest.table.to_pylist()
        if row["error"]:
            raise VideoError(row["error"])
        length = row["duration"]
        if length > MAX_LENGTH:
            raise VideoError(f"{copy.name} is {format_time(length)} long; the maximum is {format_time(MAX_LENGTH)}")
        return ReceivedVideo(digest, manifest, length)

    def encode(self, video: ReceivedVideo, check_cancelled: Callable[[], None] | None = None) -> Upload:
        """Encode an uploaded video in worker processes.

        Args:
            video: the video.
            check_cancelled: see `encode_plans`.

        Raises:
            VideoError: It is not readable.
        """
        if video.digest in self._uploads:  # meanwhile
            return self._uploads[video.digest]
        windows = Windows(video.length, video.length) if video.is_short else Windows()
        engine = self.searcher.engine
        (encoded,) = encode_windows(engine, video.manifest, windows, thumbnails=True, check_cancelled=check_cancelled)
        if not encoded.spans:
            raise VideoError(encoded.failure)
        thumbnail = encoded.thumbnails[len(encoded.thumbnails) // 2]
        upload = Upload(video.length, thumbnail, encoded.spans, encoded.embedding.numpy())
        with self._lock:
            self._uploads[video.digest] = upload
            if len(self._uploads) > MAX_EMBEDDINGS:
                del self._uploads[next(iter(self._uploads))]
        return upload

    def classify(self, upload: Upload, classes: str) -> Classification:
        """Score class names, separated by commas or lines (Appendix C).

        Raises:
            TextError: There is no class, or a class has no word in the vocabulary.
            ModelError: The text tower of the model is untrained.
        """
        lines = (" ".join(line.split()) for line in classes.replace(",", "\n").splitlines())
        names = list(dict.fromkeys(filter(None, lines)))
        if not names:
            raise TextError("enter class names, separated by commas")
        model = self.searcher.engine.model
        check_text_tower(model, map(class_phrase, names))
        cosines = torch.from_numpy(upload.embedding) @ class_embeddings(model, names).T
        classified = Classified([""] * len(upload.spans), upload.spans, names, cosines, [], model.temperature)
        ((_, ranked, timeline),) = classified.videos()
        thumbnail = base64.b64encode(upload.thumbnail).decode()
        segments = [ClassSegment(**asdict(segment)) for segment in timeline]
        return Classification(length=upload.length, thumbnail=thumbnail, classes=dict(ranked), timeline=segments)

    def find_hit(self, key: str) -> SearchHit:
        """Return a registered search result; KeyError if unknown, or if the video was removed from the library."""
        hit = self._hits[key]
        if not self.searcher.library.count(f"path = {sql_quote(hit.path)}"):
            raise KeyError(key)
        return hit

    def find_file(self, key: str) -> tuple[Path, str] | None:
        """Return the file of a moment and its media type; None if some browsers cannot play it.

        Raises:
            KeyError: See `find_hit`.
            VideoError: The file is not readable.
        """
        path = self.find_hit(key).path
        media_type = MEDIA_TYPES.get(Path(path).suffix.lower())
        if media_type is None or "://" in path:
            return None
        with open_video(path) as video:
            codec = video.stream.codec_context
            playable = codec.name.removeprefix("lib") in CODECS and codec.pix_fmt in PIXEL_FORMATS
        return (Path(path), media_type) if playable else None

    def find_conversion(self, key: str) -> Path:
        """Return the path of the converted file of a moment, which may not exist yet.

        Raises:
            KeyError: See `find_hit`; or the file was deleted.
        """
        state = file_state(self.find_hit(key).path)
        if state == MISSING_FILE:
            raise KeyError(key)
        # The name contains size and time of the file, so a replaced file is converted again.
        return self._conversions / f"{key}-{state[0]}-{state[1]}.mp4"

    def convert(self, key: str, target: Path) -> None:
        """Convert a moment to an MP4 file, without sound, that all browsers play, unless it exists.

        Raises:
            KeyError: See `find_hit`.
            VideoError: The video is not readable.
            CrosspairError: The file cannot be written.
        """
        if target.exists():
            return
        hit = self.find_hit(key)
        clip = Clip(hit.path, hit.start, hit.end)
        # In a separate process: a broken video may crash or block the decoder.
        ((_, outcome),) = transcode_locally([TranscodeRequest(clip, CONVERSION, target, key)], workers=1)
        if outcome.fatal:  # not the video's fault, for example a full disk
            raise CrosspairError(outcome.fatal)
        if outcome.error:
            raise VideoError(outcome.error)
        files = sorted(self._conversions.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_CONVERSIONS]:
            path.unlink(missing_ok=True)
