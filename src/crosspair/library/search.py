"""Find moments in a library: windows near a query, of which neighbours in a video count once."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crosspair.config import Clip
from crosspair.corpora.inputs import collect_videos
from crosspair.corpora.video_files import absolute_path
from crosspair.errors import VideoError
from crosspair.evaluation.encode import (
    InferenceEngine,
    check_text_tower,
    encode_whole_videos,
    load_engine,
)
from crosspair.evaluation.features import embed_texts
from crosspair.library.store import Library, LibraryError, sql_quote
from crosspair.reporting.run_report import RetrievedClip, load_contact_sheet

FIRST_LOOK = 8  # windows that are looked at for each moment wanted, at first
# Of an index: more finds more of the nearest windows, and takes longer. REFINE makes cosines exact.
NPROBES, REFINE = 64, 2


@dataclass(frozen=True)
class SearchHit:
    """Some seconds of a video that a query found.

    Attributes:
        path: of the file, or its URL.
        start, end: s of the file.
        score: cosine of query and window, -1 to 1.
        title: of the video, or None.
        thumbnail: JPEG.
    """

    path: str
    start: float
    end: float
    score: float
    title: str | None
    thumbnail: bytes


class Searcher:
    """A library with its model, to ask many times.

    Args:
        library: to search in, or its folder.
        of: the library's own model; loaded when it is needed where it is not given.

    Raises:
        LibraryError: see `crosspair.library.Library`.
    """

    def __init__(
        self, library: Library | str | os.PathLike[str], of: InferenceEngine | None = None
    ) -> None:
        self.library = library if isinstance(library, Library) else Library(library)
        if of is not None:
            self.engine = of

    @cached_property
    def engine(self) -> InferenceEngine:
        """The library's model, on the best device there is."""
        return load_engine(self.library.model_folder)

    def text(self, query: str, **choices: Any) -> list[SearchHit]:
        """Moments that a text describes, best first.

        Args:
            query: such as a title.
            choices: see `nearest`.

        Raises:
            ModelError: the model's text tower is untrained.
            TextError: the model knows no word of the text.
            LibraryError: the condition is no SQL.
        """
        check_text_tower(self.engine.model, [query])
        return self.nearest(embed_texts(self.engine.model, [query])[0].numpy(), **choices)

    def video(self, path: str | Path, **choices: Any) -> list[SearchHit]:
        """Moments that are like a video, best first; moments of the video itself do not count.

        Args:
            path: of a file, or a URL.
            choices: see `nearest`.

        Raises:
            VideoError: it cannot be read, or is not one.
            LibraryError: the condition is no SQL.
        """
        named = collect_videos([path])
        if len(named) != 1:
            raise VideoError(f"{path} is {len(named)} videos; a query is one")
        (query,) = encode_whole_videos(self.engine, named)
        return self.nearest(query.embedding[0].numpy(), without=absolute_path(path), **choices)

    def nearest(
        self,
        query: np.ndarray,
        *,
        limit: int = 10,
        where: str = "",
        folder: str | Path | None = None,
        without: str = "",
        exact: bool = False,
    ) -> list[SearchHit]:
        """Moments by the cosine of their windows and a vector, best first.

        A window that overlaps or touches a better one of the same video is not told again.

        Args:
            query: (D,) of unit norm, f_v or f_t.
            limit: moments, at most.
            where: a condition in SQL on the columns ``path``, ``start``, ``"end"``, ``title``,
                ``size`` and ``video``.
            folder: only videos that lie in it; a URL may be one, too.
            without: the path of a video that is left out.
            exact: look at every window, even where there is an index.

        Raises:
            LibraryError: the condition is no SQL.
        """
        conditions = [f"({where})"] if where else []
        if folder is not None:
            within = absolute_path(folder).rstrip("/") + "/"
            conditions.append(f"starts_with(path, {sql_quote(within)})")
        if without:
            conditions.append(f"path != {sql_quote(without)}")
        condition, looked_at = " AND ".join(conditions), limit * FIRST_LOOK
        while True:
            rows = self._windows(query, looked_at, condition, exact)
            kept = _non_maximum_suppression(rows)[:limit]
            if len(kept) == limit or len(rows) < looked_at:
                return [_hit(row) for row in kept]
            looked_at *= FIRST_LOOK

    def _windows(
        self, query: np.ndarray, count: int, condition: str, exact: bool
    ) -> list[dict[str, Any]]:
        if len(query) != self.library.about.embedding:
            raise LibraryError(
                f"library {self.library.folder} holds embeddings of "
                f"{self.library.about.embedding} dimensions; the query has {len(query)}"
            )
        search = (
            self.library.table.search(np.asarray(query, dtype=np.float32))
            .distance_type("cosine")
            .select(["video", "path", "start", "end", "title", "thumbnail", "_distance"])
            .limit(count)
        )
        if exact:
            search = search.bypass_vector_index()
        else:
            # More are looked at where a condition leaves too little in these.
            search = search.minimum_nprobes(NPROBES).maximum_nprobes(0).refine_factor(REFINE)
        try:
            rows: list[dict[str, Any]] = (
                search.where(condition) if condition else search
            ).to_list()
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise LibraryError(f"library {self.library.folder}: {reason}") from error
        return rows


def _non_maximum_suppression(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Windows, best first, without those that meet a better one of their video."""
    kept: list[dict[str, Any]] = []
    of_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        others = of_file[row["path"]]
        if all(row["start"] > other["end"] or row["end"] < other["start"] for other in others):
            others.append(row)
            kept.append(row)
    return kept


def _hit(row: dict[str, Any]) -> SearchHit:
    return SearchHit(
        row["path"], row["start"], row["end"], 1 - row["_distance"], row["title"], row["thumbnail"]
    )


FRAMES, SHORT_SIDE = 5, 112  # a row, and in pixels
MARGIN, GAP = 118, 6  # pixels beside the frames, and between rows


def contact_sheet(query: str, moments: Sequence[SearchHit]) -> bytes:
    """Draw what was found, as PNG: score and time stand beside each row.

    Args:
        query: what was asked for.
        moments: best first; a video that cannot be read by now is grey.
    """
    found = [
        RetrievedClip(Clip(each.path, each.start, each.end), "", each.score) for each in moments
    ]
    sheet = load_contact_sheet(query, found, short_side=SHORT_SIDE)
    strips = [tile.strip(FRAMES) for tile in sheet.tiles]
    width = MARGIN + max((strip.width for strip in strips), default=0)
    height = sum(strip.height + GAP for strip in strips)
    picture = Image.new("RGB", (width, max(1, height)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    top = 0
    for moment, strip in zip(moments, strips, strict=True):
        picture.paste(strip, (MARGIN, top))
        words = f"{moment.score:.2f}\n{format_time(moment.start)} - {format_time(moment.end)}"
        draw.multiline_text((8, top + 4), words, fill="#444c56", font=font, spacing=6)
        top += strip.height + GAP
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class TimelineSegment:
    """Some seconds of a video that are of one class.

    Attributes:
        start, end: in s.
        label: of the class.
        score: mean of its windows' scores, 0 to 1.
    """

    start: float
    end: float
    label: str
    score: float


def timeline(
    spans: Sequence[tuple[float, float]], scores: np.ndarray, classes: Sequence[str]
) -> list[TimelineSegment]:
    """Join neighbouring windows whose best class is the same.

    Args:
        spans: start and end of each window in s, ascending; they may overlap.
        scores: (n, C), of each window and class.
        classes: C names.

    Returns:
        One after the other; where windows overlap, the later one begins what is next.

    >>> scores = np.array([[1, 0], [1, 0], [0, 1]])
    >>> first, second = timeline([(0, 4), (2, 6), (4, 8)], scores, ["dog", "cat"])
    >>> first, second.start
    (Stretch(start=0, end=4, label='dog', score=1.0), 4)
    """
    best = scores.argmax(axis=1)
    apart = [start > end for (_, end), (start, _) in pairwise(spans)]
    gaps = np.cumsum([False, *apart])  # before each window; what could not be read has no class
    stretches = []
    for (_, label), members in groupby(range(len(spans)), key=lambda i: (gaps[i], int(best[i]))):
        rows = list(members)
        following = rows[-1] + 1
        end = spans[rows[-1]][1]
        if following < len(spans):
            end = min(end, spans[following][0])
        score = float(scores[rows, label].mean())
        stretches.append(TimelineSegment(spans[rows[0]][0], end, classes[label], score))
    return stretches


def format_time(seconds: float) -> str:
    """Seconds as a player shows them.

    >>> clock(3725.9), clock(61)
    ('1:02:05', '1:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
