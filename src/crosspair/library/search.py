"""Search the windows of a library by texts, images and videos, by their pictures or by the titles of their videos.

Overlapping or adjacent windows of a video are suppressed in favour of the highest-scoring one.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from crosspair.config import Clip
from crosspair.corpora.video_files import absolute_path
from crosspair.errors import VideoError
from crosspair.evaluation.encode import InferenceEngine, check_counts, load_engine
from crosspair.library.query import QueryPart, embed_query
from crosspair.library.store import Library, LibraryError, lance_errors, sql_quote
from crosspair.video.views import blank_preview, join_frames, read_preview

COLUMNS = ["path", "start", "end", "title", "thumbnail"]
OVERSAMPLING = 8  # windows fetched per result; multiplied again while too few are left
# Partitions of the vector index to search, and factor of candidates re-ranked by exact cosine.
NPROBES, REFINE = 64, 2
TOLERANCE = 1e-6  # of the cosine of two float32 vectors

RankBy = Literal["picture", "title", "both"]
RRF_K = 60  # constant of the reciprocal rank fusion (Cormack et al., 2009)
MIN_FUSED = 64  # results and titles that are fused at least, so that the first results depend little on their number
PATHS = 1000  # per SQL expression

CONDITION_COLUMNS = ("path", "start", "end", "title", "size", "video")
MAX_CONDITION = 10_000  # characters; LanceDB parses recursively
_TOKEN = re.compile(
    rf"""\s*(?:(["`]?)(?:{"|".join(CONDITION_COLUMNS)})\1(?!\w)
    |(?:AND|OR|NOT|I?LIKE|IN|IS|NULL)\b
    |-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\w)
    |'(?:[^']|'')*'
    |[<>!]=|<>|==?|[<>(),])\s*""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class SearchHit:
    """A time range of a video that matches a query."""

    path: str  # file or URL
    start: float  # s on a player's clock: 0 is the beginning of the file's first stream
    end: float
    score: float  # cosine of query and window, -1 to 1
    title: str | None
    thumbnail: bytes  # JPEG


class Searcher:
    """A library with its model.

    Args:
        library: a library or its folder.
        engine: the library's model; None: load it at the first query, on the best device.

    Raises:
        LibraryError: see `crosspair.library.Library`; or the engine has another model.
    """

    def __init__(self, library: Library | str | os.PathLike[str], engine: InferenceEngine | None = None) -> None:
        self.library = library if isinstance(library, Library) else Library(library)
        if engine is not None:
            self.engine = self._check_model(engine)

    @cached_property
    def engine(self) -> InferenceEngine:
        """The library's model, loaded at first use."""
        return self._check_model(load_engine(self.library.model_folder))

    def _check_model(self, engine: InferenceEngine) -> InferenceEngine:
        """Return an engine; LibraryError if its model has not encoded this library."""
        if (found := engine.model.hash) != self.library.info.model:
            raise LibraryError(
                f"library {self.library.folder} has embeddings of model {self.library.info.model}, not {found}; "
                f"copy that model back to {self.library.model_folder}, or create another library"
            )
        return engine

    def text(self, query: str, **options: Any) -> list[SearchHit]:
        """Search with a text; arguments and errors as for `combined`."""
        return self.combined([QueryPart(query)], **options)

    def video(self, path: str | Path, **options: Any) -> list[SearchHit]:
        """Search for windows similar to a whole video, except its own; arguments and errors as for `combined`."""
        return self.combined([QueryPart(path, "video")], **options)

    def combined(self, parts: Sequence[QueryPart], *, by: RankBy | None = None, **options: Any) -> list[SearchHit]:
        """Search with texts, images and videos, weighted; windows of these videos are excluded.

        Args:
            parts: at least one has a positive weight.
            by: what is ranked, see `nearest`; None: "both" if all parts are texts and a video has a title, else
                "picture". Titles are searched for the words of the texts with a positive weight.
            options: as for `nearest`.

        Raises:
            LibraryError: no part has a positive weight, the parts cancel out, an image cannot be read, there is no text
                to search titles for, or an option is invalid.
            ModelError: a part is a text and the model's text tower is untrained.
            TextError: the model knows no word of a text.
            VideoError: a video cannot be read, or is not a single video.
        """
        if by is None:
            only_texts = all(part.kind == "text" for part in parts)
            by = "both" if only_texts and "title" in self.library.indexed_columns() else "picture"
        words = " ".join(str(part.value) for part in parts if part.kind == "text" and part.weight > 0)
        videos = [absolute_path(part.value) for part in parts if part.kind == "video"]
        return self.nearest(embed_query(self.engine, parts), by=by, words=words, without=videos, **options)

    def nearest(
        self,
        query: np.ndarray,
        *,
        by: RankBy = "picture",
        words: str = "",
        limit: int = 10,
        where: str = "",
        folder: str | Path | None = None,
        without: Sequence[str] = (),
        exact: bool = False,
        per_video: int | None = None,
        dedupe: float | None = None,
    ) -> list[SearchHit]:
        """Return the windows with the highest cosine similarity to a vector, best first.

        A window that overlaps or touches a better one of the same video is suppressed.

        Args:
            query: (D,) f_v or f_t, unit norm.
            by: "picture": cosine; "title": for each video whose title has some of the words, the window with the
                highest cosine, in the order of the titles' BM25 scores; "both": both rankings, fused.
            words: what titles are searched for.
            limit: maximum number of results.
            where: SQL condition on `CONDITION_COLUMNS`, without functions, see `_check_condition`.
            folder: search only videos in this folder; may be a URL.
            without: paths of videos to exclude.
            exact: compare with every window, even if there is a vector index.
            per_video: maximum number of results of one file.
            dedupe: suppress a window if the cosine with a better result is at least this, 0 to 1, such as 0.95.

        Raises:
            LibraryError: ``where`` is not a valid condition, ``by`` or ``dedupe`` is invalid, or titles cannot be
                searched: ``words`` are missing, or there is no index of titles.
        """
        if by not in get_args(RankBy):
            raise LibraryError(f"by must be one of {', '.join(get_args(RankBy))}, not {by!r}")
        if by != "picture" and not words.strip():
            raise LibraryError(f"ranking by {by} requires a text to search titles for")
        check_counts(limit=limit, **({} if per_video is None else {"per_video": per_video}))
        if dedupe is not None and not 0 < dedupe <= 1:
            raise LibraryError(f"dedupe must be above 0 and at most 1, not {dedupe:g}")
        conditions = [f"({_check_condition(where)})"] if where else []
        if folder is not None:
            prefix = absolute_path(folder).rstrip("/") + "/"
            conditions.append(f"starts_with(path, {sql_quote(prefix)})")
        if without:
            conditions.append(f"path NOT IN ({', '.join(map(sql_quote, without))})")
        condition, total = " AND ".join(conditions), len(self.library)
        search = partial(self._nearest_windows, query, vectors=dedupe is not None)
        matches = {} if by == "picture" else self._match_titles(words, condition, total)
        depth = limit if by == "picture" else max(limit, MIN_FUSED)
        while True:
            count = min(depth * OVERSAMPLING, total + 1)  # more than all: the last search
            rows = search(count, condition, exact)
            moments = _non_maximum_suppression(rows)
            titled = self._titled_moments(matches, moments, depth, condition, search) if matches else []
            ranked = {"picture": [moments], "title": [titled], "both": [moments, titled]}[by]
            kept = _diversify(_fuse(ranked), limit, per_video, dedupe)
            exhausted = depth >= len(matches) and (by == "title" or len(rows) < count)
            if len(kept) == limit or exhausted:
                return [SearchHit(**{name: row[name] for name in COLUMNS}, score=1 - row["_distance"]) for row in kept]
            depth *= OVERSAMPLING

    def _match_titles(self, words: str, condition: str, total: int) -> dict[str, float]:
        """Return the BM25 scores of the files whose titles have some of the words, and a window with the condition."""
        from lancedb.query import MatchQuery  # searches words; a text as the query could contain operators

        # Without an index, LanceDB would compare titles word by word, with another case and ending as another word.
        if "title" not in self.library.indexed_columns():
            raise LibraryError(
                f"library {self.library.folder} has no index of titles; "
                'run "crosspair index" again, with --titles if the videos have no titles'
            )
        with lance_errors(f"library {self.library.folder}"):
            query = MatchQuery(words, "title")  # type: ignore[call-arg]
            search = self.library.table.search(query, query_type="fts")
            search = search.select(["path", "_score"]).limit(total + 1)
            found = (search.where(condition, prefilter=True) if condition else search).to_arrow()
        best = found.group_by("path").aggregate([("_score", "max")])
        return dict(zip(best["path"].to_pylist(), best["_score_max"].to_pylist(), strict=True))

    def _titled_moments(
        self,
        matches: Mapping[str, float],
        moments: Sequence[dict[str, Any]],
        depth: int,
        condition: str,
        search: Callable[[int, str, bool], list[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """Return the nearest window of each of the ``depth`` files with the best scores, in their order.

        Files with equal scores are in the order of the cosine, as far as ``moments``, which are the nearest windows of
        the library, contain them.
        """
        nearest: dict[str, dict[str, Any]] = {}
        for row in moments:
            nearest.setdefault(row["path"], row)
        places = {path: place for place, path in enumerate(nearest)}
        files = sorted(matches, key=lambda path: (-matches[path], places.get(path, len(places))))[:depth]
        for first in range(0, len(files), PATHS):
            while missing := [path for path in files[first : first + PATHS] if path not in nearest]:
                listed = f"path IN ({', '.join(map(sql_quote, missing))})"
                rows = search(len(missing) * OVERSAMPLING, f"{condition} AND {listed}" if condition else listed, True)
                if not rows:  # removed by another process
                    break
                for row in rows:
                    nearest.setdefault(row["path"], row)
        found = [nearest[path] for path in files if path in nearest]
        return sorted(found, key=lambda row: (-matches[row["path"]], row["_distance"]))

    def _nearest_windows(
        self, query: np.ndarray, count: int, condition: str, exact: bool, *, vectors: bool = False
    ) -> list[dict[str, Any]]:
        """Return up to ``count`` table rows nearest to a vector, best first, with ``_distance``, 1 - cosine."""
        folder, dimensions = self.library.folder, self.library.info.embedding
        if len(query) != dimensions:
            raise LibraryError(
                f"library {folder} has embeddings of {dimensions} dimensions; the query has {len(query)}"
            )
        with lance_errors(f"library {folder}"):
            search = self.library.table.search(np.asarray(query, dtype=np.float32)).distance_type("cosine")
            search = search.select([*COLUMNS, "_distance", *["vector"] * vectors]).limit(count)
            if exact:
                search = search.bypass_vector_index()
            else:
                # maximum_nprobes(0): search more partitions if a condition leaves too few rows.
                search = search.minimum_nprobes(NPROBES).maximum_nprobes(0).refine_factor(REFINE)
            if condition:
                search = search.where(condition)
            rows: list[dict[str, Any]] = search.to_list()
        for row in rows:
            complete = all(row[name] is not None for name in COLUMNS if name != "title")
            if not complete or not row["start"] <= row["end"] < np.inf:  # also for NaN
                raise LibraryError(f"library {folder} is damaged: a window of {row['path']} is invalid; index it again")
        return rows


def _check_condition(text: str) -> str:
    """Return a user's SQL condition after checking its tokens and parentheses.

    It cannot end the parentheses around it, nor call a function, which may need any amount of memory.
    """
    tokens, position, depth = [], 0, 0
    while depth >= 0 and position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or len(text) > MAX_CONDITION:
            raise LibraryError(
                f"where: {text[position : position + 40]!r} is not supported. Use the columns "
                f"{', '.join(CONDITION_COLUMNS)} with numbers, texts in single quotes, =, !=, <, >, LIKE, IN, "
                f"IS NULL, AND, OR, NOT and parentheses, at most {MAX_CONDITION} characters"
            )
        tokens.append(token[0].strip())
        depth += {"(": 1, ")": -1}.get(tokens[-1], 0)
        position = token.end()
    if depth:
        raise LibraryError(f"where: the parentheses in {text[:80]!r} are not balanced")
    return " ".join(tokens)


def _non_maximum_suppression(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, best first, that do not overlap or touch a better one of their file."""
    kept: list[dict[str, Any]] = []
    kept_of_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        others = kept_of_file[row["path"]]
        if all(row["start"] > other["end"] or row["end"] < other["start"] for other in others):
            others.append(row)
            kept.append(row)
    return kept


def _fuse(rankings: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of rankings by reciprocal rank fusion: the sum of 1 / (k + rank), ranks from 1."""
    scores: dict[tuple[Any, ...], float] = defaultdict(float)
    rows = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            key = row["path"], row["start"], row["end"]
            scores[key] += 1 / (RRF_K + rank)
            rows[key] = row
    return [rows[key] for key in sorted(rows, key=lambda key: (-scores[key], rows[key]["_distance"]))]


def _diversify(
    rows: Sequence[dict[str, Any]], limit: int, per_video: int | None, dedupe: float | None
) -> list[dict[str, Any]]:
    """Return the first ``limit`` rows without more than ``per_video`` of a file, and without near-duplicates."""
    vectors = None if dedupe is None else np.array([row["vector"] for row in rows])  # (n, D)
    counts: Counter[str] = Counter()
    kept: list[int] = []
    for i, row in enumerate(rows):
        if len(kept) == limit:
            break
        if counts[row["path"]] == per_video:
            continue
        if vectors is not None and dedupe and (vectors[kept] @ vectors[i] >= dedupe - TOLERANCE).any():
            continue
        counts[row["path"]] += 1
        kept.append(i)
    return [rows[i] for i in kept]


def format_time(seconds: float) -> str:
    """Format a time in a video like a player does.

    >>> format_time(3725.9), format_time(61)
    ('1:02:05', '1:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


SHOWN = [0, 4, 8, 11, 15]  # of the frames of a preview
MARGIN, GAP = 118, 6  # px left of the frames, between rows


def contact_sheet(hits: Sequence[SearchHit]) -> bytes:
    """Draw five frames from the middle of each hit in a row, with score and time; return a PNG.

    Frames of a video that cannot be read any more are grey.
    """
    strips = [_read_strip(hit) for hit in hits]
    width = MARGIN + max((strip.width for strip in strips), default=0)
    height = sum(strip.height + GAP for strip in strips)
    sheet = Image.new("RGB", (width, max(1, height)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    top = 0
    for hit, strip in zip(hits, strips, strict=True):
        sheet.paste(strip, (MARGIN, top))
        caption = f"{hit.score:.2f}\n{format_time(hit.start)} - {format_time(hit.end)}"
        draw.multiline_text((8, top + 4), caption, fill="#444c56", font=font, spacing=6)
        top += strip.height + GAP
    file, origin = io.BytesIO(), PngInfo()
    origin.add_text("Software", "crosspair")  # so that only such files are overwritten
    sheet.save(file, "PNG", pnginfo=origin)
    return file.getvalue()


def _read_strip(hit: SearchHit) -> Image.Image:
    try:
        return join_frames(read_preview(Clip(hit.path, hit.start, hit.end), SHOWN))
    except VideoError:
        return join_frames(blank_preview(len(SHOWN)))
