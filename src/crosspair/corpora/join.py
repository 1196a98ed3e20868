"""A corpus' own list is joined with the videos on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crosspair.corpora.output import NO_FILE, NO_TITLE, LeftOut
from crosspair.corpora.table import some
from crosspair.corpora.videofiles import VideoFiles
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)


@dataclass
class Listed:
    """One pair as a corpus' files describe it, before its video is found.

    Attributes:
        pair_id: unique in the corpus.
        where: it stands, for messages.
        files: names that its video may have, the best first, each with what the manifest's row
            says of a video of that name.
        row: what the manifest's row says in any case.
    """

    pair_id: str
    where: str
    files: Mapping[str, Mapping[str, Any]]
    row: dict[str, Any] = field(default_factory=dict)


def join(
    listed: Sequence[Listed],
    videos: VideoFiles,
    left_out: LeftOut,
    *,
    what: str,
    needs_title: bool,
    advice: str = "leave one of them",
) -> list[dict[str, Any]]:
    """The manifest's rows of the pairs whose videos are there.

    Args:
        listed: pairs, whose videos are sought in ``videos``.
        left_out: gets the pairs without a video, and without a title.
        what: the pairs are called, for messages.
        needs_title: leave out pairs without one.
        advice: to who has several videos of one name.

    Returns:
        Rows in the order of ``listed``, with ``path`` from where the command runs.

    Raises:
        ManifestError: a name is that of several videos, or no pair is left.
    """
    rows = []
    for pair in listed:
        found = _found(pair, videos, advice)
        if found is None:
            left_out.add(pair.pair_id, NO_FILE, f"no video {' or '.join(pair.files)}")
        elif needs_title and not (pair.row.get("title") or pair.row.get("title_clean")):
            left_out.add(pair.pair_id, NO_TITLE, found["path"])
        else:
            rows.append({"pair_id": pair.pair_id, **found, **pair.row})
    if not rows:
        raise ManifestError(_no_pair(listed, videos, left_out, what))
    return rows


def tell_unlisted(videos: VideoFiles, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log how many videos of the folder belong to no row."""
    used = {row["path"] for row in rows}
    others = [path for path in videos.paths if videos.whole(path) not in used]
    if others:
        logger.info(
            "%d videos of %s are not of the corpus: %s", len(others), videos.folder, some(others)
        )


def _found(pair: Listed, videos: VideoFiles, advice: str) -> dict[str, Any] | None:
    for name, says in pair.files.items():
        path = videos.named(name, pair.where, advice)
        if path is not None:
            return {"path": videos.whole(path), **says}
    return None


def _no_pair(listed: Sequence[Listed], videos: VideoFiles, left_out: LeftOut, what: str) -> str:
    untitled = left_out.ids(NO_TITLE)
    if untitled:
        return f"no pair: none of the {len(untitled)} {what} with a video has a title"
    names = [name for pair in listed for name in pair.files]
    looked = f"; looked for {some(names)}" if names else ""
    return (
        f"no pair: none of the {len(listed)} {what} belongs to one of the {len(videos)} videos "
        f"in {videos.folder}{looked}"
    )
