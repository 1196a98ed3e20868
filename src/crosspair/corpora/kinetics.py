"""Kinetics: the official csv, trimmed clips or whole videos, and the titles from the web.

With a title file this is Kinetics-210k, to pre-train on: the original title becomes ``title``, the
one that the paper's authors processed ``title_clean``. Without one it is Kinetics-400.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.official import Listed, TitleChoices, official_corpus
from crosspair.corpora.output import Output
from crosspair.corpora.splits import split_named
from crosspair.corpora.table import Row, by_key, read_table
from crosspair.errors import ManifestError

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")

TRIMMED_WITHIN = 1.0  # s by which a cut at key frames may be longer than its segment


def kinetics_corpus(
    folder: Path, lists: Sequence[Path], out: Path, **choices: Unpack[TitleChoices]
) -> Manifest:
    """Write the manifest of Kinetics.

    A video named ``ID_000417_000427``, of any video suffix and in any subfolder, is the segment of
    417 s to 427 s, already trimmed. One named ``ID`` is taken as trimmed if it is at most 1 s
    longer than its segment; else it is the whole video, and the manifest's ``start`` and ``end``
    say which part to look at.

    Args:
        folder: of videos.
        lists: official csv files, for instance of train and of validation.
        out: the manifest; in a folder, ``manifest.parquet``.
        **choices: with ``titles``, pairs without a title are left out.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    output = Output(out)
    rows = [row for file in lists for row in read_table(file, "Kinetics list").rows(*COLUMNS)]
    segments = by_key((row["youtube_id"], row) for row in rows)
    listed = [_listed(row) for row in segments.values()]
    (manifest,) = official_corpus(
        folder, [(output, listed)], choices, what="segments", when_probed=_trim,
        needs_title=choices.get("titles") is not None,
    )  # fmt: skip
    return manifest


def _listed(row: Row) -> Listed:
    name, (start, end) = row["youtube_id"], row.part("time_start", "time_end")
    if not name or start is None or end is None:
        raise ManifestError(f"{row.where}: youtube_id, time_start or time_end is empty")
    trimmed = f"{name}_{round(start):06d}_{round(end):06d}"
    return Listed(
        name,
        row.where,
        {trimmed: {}, name: {"start": start, "end": end}},
        {"label": row["label"] or None, "split": split_named(row["split"], row.where)},
    )


def _trim(row: dict[str, Any]) -> None:
    if row.get("start") is None or row.get("error"):
        return
    start, end, duration = row["start"], row["end"], row["duration"]
    if duration <= end - start + TRIMMED_WITHIN:
        row["start"] = row["end"] = None
    elif duration <= start:
        row["error"] = (
            f"{row['path']}: ends at {duration:.2f} s, before its segment, "
            f"{start:g} s to {end:g} s, begins"
        )
