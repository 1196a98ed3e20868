"""Whether the videos of a manifest can be used, and what is wrong with those that cannot."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from crosspair.atomic import write_atomically
from crosspair.clip import Clip
from crosspair.corpora.journal import Journal
from crosspair.corpora.manifest import SCHEMA, Manifest
from crosspair.corpora.probing import Found, Part, find_all
from crosspair.faults import Kind, Verdict

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
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(LISTED)
        columns = (self.manifest.column(name) for name in ("pair_id", "path"))
        for pair_id, of_row, verdict in zip(*columns, self.verdicts, strict=True):
            if verdict.kind is not Kind.FINE:
                lines.writerow([pair_id, of_row, verdict.kind.value, verdict.reason])
        write_atomically(path, text.getvalue())


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
        workers, seconds: as for `crosspair.corpora.probing.probe_all`.
        progress: told how many videos are done.

    Raises:
        CrosspairError: nothing can be written, or processes cannot be started.
    """
    if out is None:
        out = manifest.path
    elif out.suffix != ".parquet":
        out = out / manifest.path.name
    videos = _Videos(manifest.clips())
    journal = Journal(out.with_name(f".{out.name}.checked")) if decode else None
    with journal or nullcontext():
        found = dict(_known(videos, journal))
        progress(len(found))
        left = [video for video in range(len(videos.jobs)) if video not in found]
        jobs = [videos.jobs[video] for video in left]
        with closing(find_all(jobs, decode=decode, workers=workers, seconds=seconds)) as finding:
            for job, of_video in finding:
                found[left[job]] = of_video
                if journal:
                    journal.add(*jobs[job], of_video)
                progress(len(found))
    checked = _filled(manifest, videos, found, out)
    if journal:
        journal.remove()
    return checked


class _Videos:
    """The videos of some clips, each once.

    Attributes:
        jobs: path and parts of each video, without repetition.
        places: for each clip, the number of its video and of its part.
    """

    def __init__(self, clips: list[Clip]) -> None:
        self.jobs: list[tuple[str, list[Part]]] = []
        self.places: list[tuple[int, int]] = []
        numbers: dict[str, int] = {}
        parts: list[dict[Part, int]] = []
        for clip in clips:
            video = numbers.setdefault(clip.path, len(self.jobs))
            if video == len(self.jobs):
                self.jobs.append((clip.path, []))
                parts.append({})
            part = clip.start, clip.end
            number = parts[video].setdefault(part, len(parts[video]))
            if number == len(self.jobs[video][1]):
                self.jobs[video][1].append(part)
            self.places.append((video, number))


def _known(videos: _Videos, journal: Journal | None) -> Iterator[tuple[int, Found]]:
    """What an earlier check found before it was stopped."""
    if journal is None:
        return
    known = [(video, journal.known(*job)) for video, job in enumerate(videos.jobs)]
    done = [(video, found) for video, found in known if found is not None]
    if done:
        logger.info(
            "going on with a check that was stopped: %d of %d videos are done",
            len(done), len(known),
        )  # fmt: skip
    yield from done


def _filled(manifest: Manifest, videos: _Videos, found: dict[int, Found], out: Path) -> Checked:
    verdicts = [found[video].verdicts[part] for video, part in videos.places]
    paths = _moved(manifest, out)
    values: dict[str, list[Any]] = {
        name: [found[video].columns.get(name) for video, _ in videos.places] for name in PROBED
    }
    values["error"] = [
        f"{path}: {verdict.reason}" if verdict.kind.broken else None
        for path, verdict in zip(paths, verdicts, strict=True)
    ]
    values["path"] = paths
    table = manifest.table
    for name, column in values.items():
        place = SCHEMA.get_field_index(name)
        field = SCHEMA.field(place)
        table = table.set_column(place, field, pa.array(column, field.type))
    return Checked(Manifest(table, out).write(out), verdicts)


def _moved(manifest: Manifest, out: Path) -> list[str]:
    """The paths of the rows, as seen from the folder of ``out``."""
    paths: list[str] = manifest.column("path")
    here, there = manifest.path.parent.resolve(), out.parent.resolve()
    if here == there:
        return paths
    return [
        path
        if "://" in path or Path(path).is_absolute()
        else Path(os.path.relpath(here / path, there)).as_posix()
        for path in paths
    ]
