"""Whether the videos of a manifest can be used, and what is wrong with those that cannot."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspair.atomic import write_atomically
from crosspair.corpora.manifest import SCHEMA, Manifest
from crosspair.corpora.probing import Found, Part, find_all
from crosspair.corpora.table import csv_text
from crosspair.corpora.videofiles import absolute
from crosspair.faults import Kind, Verdict
from crosspair.journal import Journal, entries

logger = logging.getLogger(__name__)

PROBED = SCHEMA.names[SCHEMA.get_field_index("width") : SCHEMA.get_field_index("error")]
LISTED = ("pair_id", "path", "kind", "message")


@dataclass(frozen=True)
class Checked:
    """A manifest whose videos were looked at.

    Attributes:
        manifest: the columns that probing fills are as found, and ``error`` tells what is wrong
            with a video that training is to leave out; otherwise it is null.
        verdicts: one a row.
    """

    manifest: Manifest
    verdicts: list[Verdict]

    @property
    def broken(self) -> int:
        """Rows that training leaves out."""
        return sum(verdict.kind.broken for verdict in self.verdicts)

    def counts(self) -> dict[Kind, tuple[int, int]]:
        """How many videos and how many rows there are of each kind, of those that occur."""
        rows = list(zip(self.manifest.column("path"), self.verdicts, strict=True))
        found = {}
        for kind in Kind:
            paths = [path for path, verdict in rows if verdict.kind is kind]
            if paths:
                found[kind] = len(set(paths)), len(paths)
        return found

    def write_list(self, path: Path) -> None:
        """Write a csv of the rows about which there is something to say.

        Raises:
            RunError: it cannot be written.
        """
        columns = (self.manifest.column(name) for name in ("pair_id", "path"))
        rows = [
            (pair_id, of_row, verdict.kind.value, verdict.reason)
            for pair_id, of_row, verdict in zip(*columns, self.verdicts, strict=True)
            if verdict.kind is not Kind.FINE
        ]
        write_atomically(path, csv_text(LISTED, rows))


def check(
    manifest: Manifest,
    out: Path | None = None,
    *,
    decode: bool = False,
    workers: int | None = None,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Checked:
    """Look at every video of a manifest, and write what was found into it.

    A video that stands in several rows is opened once, and what they share of it decoded once. A
    check with ``decode`` that was stopped goes on where it was, if it is called again.

    Args:
        manifest: read from its file.
        out: where to write, a file or a folder; over ``manifest`` where it is None.
        decode: decode every frame of the rows' parts, too.
        workers, seconds: as for `crosspair.corpora.probing.find_all`.
        progress: told how many videos are done.

    Raises:
        CrosspairError: nothing can be written, or processes cannot be started.
    """
    if out is None:
        out = manifest.path
    elif out.suffix != ".parquet":
        out = out / manifest.path.name
    numbers: dict[str, dict[Part, int]] = defaultdict(dict)  # of the parts, for each video
    places = []  # of each row: its video, and the number of its part
    for clip in manifest.clips():
        parts = numbers[clip.path]
        places.append((clip.path, parts.setdefault((clip.start, clip.end), len(parts))))
    videos = {path: list(parts) for path, parts in numbers.items()}
    journal = out.with_name(f".{out.name}.checked")
    found = _found(videos, journal, decode, workers, seconds, progress)
    verdicts = [found[path].verdicts[part] for path, part in places]
    moved = manifest.moved(out)
    columns: dict[str, list[Any]] = {
        name: [found[path].columns.get(name) for path, _ in places] for name in PROBED
    }
    columns["error"] = [
        f"{path}: {verdict.reason}" if verdict.kind.broken else None
        for path, verdict in zip(moved.column("path"), verdicts, strict=True)
    ]
    checked = Checked(moved.with_columns(columns).write(out), verdicts)
    if decode:
        journal.unlink(missing_ok=True)
    return checked


def _found(
    videos: Mapping[str, list[Part]],
    journal: Path,
    decode: bool,
    workers: int | None,
    seconds: float | None,
    progress: Callable[[int], None],
) -> dict[str, Found]:
    """What is found in each video; with ``decode``, by the journal of a stopped check first."""
    keys = {path: _key(path, parts) for path, parts in videos.items()} if decode else {}
    known = _known(journal) if decode else {}
    found = {path: known[key] for path, key in keys.items() if key in known}
    if found:
        logger.info(
            "going on with a check that was stopped: %d of %d videos are done",
            len(found), len(videos),
        )  # fmt: skip
    progress(len(found))
    jobs = [(path, parts) for path, parts in videos.items() if path not in found]
    finding = find_all(jobs, decode=decode, workers=workers, seconds=seconds)
    with Journal(journal) if decode else nullcontext() as lines, closing(finding):
        for job, of_video in finding:
            path = jobs[job][0]
            found[path] = of_video
            if lines:
                verdicts = [[verdict.kind.name, verdict.reason] for verdict in of_video.verdicts]
                lines.add([keys[path], of_video.columns, verdicts])
            progress(len(found))
    return found


def _known(journal: Path) -> dict[str, Found]:
    known = {}
    for entry in entries(journal):
        with suppress(ValueError, KeyError, TypeError):  # of another version
            key, columns, verdicts = entry
            known[key] = Found(columns, [Verdict(Kind[kind], why) for kind, why in verdicts])
    return known


def _key(path: str, parts: list[Part]) -> str:
    """Parts of a video as long as it is not changed; a remote one is taken to be what it was."""
    state: Any = None
    with suppress(OSError, ValueError):
        status = Path(path).stat()
        state = status.st_size, status.st_mtime_ns
    return json.dumps([absolute(path), state, parts])
