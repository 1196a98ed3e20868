"""Find moments in a library: windows near a query, of which neighbours in a video count once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.corpora.videofiles import absolute
from crosspair.errors import VideoError
from crosspair.evaluation.features import embed_texts
from crosspair.library.encoding import encode_whole
from crosspair.library.engines import Engine, check_reads_text, engine
from crosspair.library.store import Library, LibraryError, quoted
from crosspair.library.videos import videos_of

FIRST_LOOK = 8  # windows that are looked at for each moment wanted, at first
# Of an index: more finds more of the nearest windows, and takes longer. REFINE makes cosines exact.
NPROBES, REFINE = 64, 2


@dataclass(frozen=True)
class Moment:
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

    def __init__(self, library: Library | str | os.PathLike[str], of: Engine | None = None) -> None:
        self.library = library if isinstance(library, Library) else Library(library)
        if of is not None:
            self.engine = of

    @cached_property
    def engine(self) -> Engine:
        """The library's model, on the best device there is."""
        return engine(self.library.model_folder)

    def text(self, query: str, **choices: Any) -> list[Moment]:
        """Moments that a text describes, best first.

        Args:
            query: such as a title.
            choices: see `nearest`.

        Raises:
            ModelError: the model's text tower is untrained.
            TextError: the model knows no word of the text.
            LibraryError: the condition is no SQL.
        """
        check_reads_text(self.engine.model, [query])
        return self.nearest(embed_texts(self.engine.model, [query])[0].numpy(), **choices)

    def video(self, path: str | Path, **choices: Any) -> list[Moment]:
        """Moments that are like a video, best first; moments of the video itself do not count.

        Args:
            path: of a file, or a URL.
            choices: see `nearest`.

        Raises:
            VideoError: it cannot be read, or is not one.
            LibraryError: the condition is no SQL.
        """
        named = videos_of([path])
        if len(named) != 1:
            raise VideoError(f"{path} is {len(named)} videos; a query is one")
        (query,) = encode_whole(self.engine, named)
        return self.nearest(query.embedding[0].numpy(), without=absolute(path), **choices)

    def nearest(
        self,
        query: np.ndarray,
        *,
        limit: int = 10,
        where: str = "",
        folder: str | Path | None = None,
        without: str = "",
        exact: bool = False,
    ) -> list[Moment]:
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
            within = absolute(folder).rstrip("/") + "/"
            conditions.append(f"starts_with(path, {quoted(within)})")
        if without:
            conditions.append(f"path != {quoted(without)}")
        condition, looked_at = " AND ".join(conditions), limit * FIRST_LOOK
        while True:
            rows = self._windows(query, looked_at, condition, exact)
            kept = _apart(rows)[:limit]
            if len(kept) == limit or len(rows) < looked_at:
                return [_moment(row) for row in kept]
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


def _apart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Windows, best first, without those that meet a better one of their video."""
    kept: list[dict[str, Any]] = []
    of_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        others = of_file[row["path"]]
        if all(row["start"] > other["end"] or row["end"] < other["start"] for other in others):
            others.append(row)
            kept.append(row)
    return kept


def _moment(row: dict[str, Any]) -> Moment:
    return Moment(
        row["path"], row["start"], row["end"], 1 - row["_distance"], row["title"], row["thumbnail"]
    )
