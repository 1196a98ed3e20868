"""Whether the videos of a manifest can be used, and what is wrong with those that cannot."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from crosspair.corpora.manifest import SCHEMA, Manifest
from crosspair.corpora.tables import csv_text
from crosspair.corpora.video_files import absolute_path
from crosspair.errors import CheckResult, VideoStatus
from crosspair.files import JsonlWriter, read_jsonl, write_atomically
from crosspair.video.integrity import inspect_job
from crosspair.workers import WorkerFailure, map_isolated

logger = logging.getLogger(__name__)

PROBED = SCHEMA.names[SCHEMA.get_field_index("width") : SCHEMA.get_field_index("error")]
LISTED = ("pair_id", "path", "kind", "message")


@dataclass(frozen=True)
class CheckedManifest:
    """A manifest whose videos were looked at.

    Attributes:
        manifest: the columns that probing fills are as found, and ``error`` tells what is wrong
            with a video that training is to leave out; otherwise it is null.
        verdicts: one a row.
    """

    manifest: Manifest
    verdicts: list[CheckResult]

    @property
    def broken(self) -> int:
        """Rows that training leaves out."""
        return sum(verdict.kind.broken for verdict in self.verdicts)

    def counts(self) -> dict[VideoStatus, tuple[int, int]]:
        """How many videos and how many rows there are of each kind, of those that occur."""
        rows = list(zip(self.manifest.column("path"), self.verdicts, strict=True))
        found = {}
        for kind in VideoStatus:
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
            if verdict.kind is not VideoStatus.FINE
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
) -> CheckedManifest:
    """Look at every video of a manifest, and write what was found into it.

    A video that stands in several rows is opened once, and what they share of it decoded once. A
    check with ``decode`` that was stopped goes on where it was, if it is called again.

    Args:
        manifest: read from its file.
        out: where to write, a file or a folder; over ``manifest`` where it is None.
        decode: decode every frame of the rows' parts, too.
        workers, seconds: as for `crosspair.corpora.check.check_videos`.
        progress: told how many videos are done.

    Raises:
        CrosspairError: nothing can be written, or processes cannot be started.
    """
    if out is None:
        out = manifest.path
    elif out.suffix != ".parquet":
        out = out / manifest.path.name
    numbers: dict[str, dict[Segment, int]] = defaultdict(dict)  # of the parts, for each video
    places = []  # of each row: its video, and the number of its part
    for clip in manifest.clips():
        parts = numbers[clip.path]
        places.append((clip.path, parts.setdefault((clip.start, clip.end), len(parts))))
    videos = {path: list(parts) for path, parts in numbers.items()}
    journal = out.with_name(f".{out.name}.checked")
    found = _found(videos, journal, decode, workers, seconds, progress)
    verdicts = [found[path].verdicts[part] for path, part in places]
    moved = manifest.rebased(out)
    columns: dict[str, list[Any]] = {
        name: [found[path].columns.get(name) for path, _ in places] for name in PROBED
    }
    columns["error"] = [
        f"{path}: {verdict.reason}" if verdict.kind.broken else None
        for path, verdict in zip(moved.column("path"), verdicts, strict=True)
    ]
    checked = CheckedManifest(moved.with_columns(columns).write(out), verdicts)
    if decode:
        journal.unlink(missing_ok=True)
    return checked


def _found(
    videos: Mapping[str, list[Segment]],
    journal: Path,
    decode: bool,
    workers: int | None,
    seconds: float | None,
    progress: Callable[[int], None],
) -> dict[str, ProbeResult]:
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
    finding = check_videos(jobs, decode=decode, workers=workers, seconds=seconds)
    with JsonlWriter(journal) if decode else nullcontext() as lines, closing(finding):
        for job, of_video in finding:
            path = jobs[job][0]
            found[path] = of_video
            if lines:
                verdicts = [[verdict.kind.name, verdict.reason] for verdict in of_video.verdicts]
                lines.add([keys[path], of_video.columns, verdicts])
            progress(len(found))
    return found


def _known(journal: Path) -> dict[str, ProbeResult]:
    known = {}
    for entry in read_jsonl(journal):
        with suppress(ValueError, KeyError, TypeError):  # of another version
            key, columns, verdicts = entry
            known[key] = ProbeResult(
                columns, [CheckResult(VideoStatus[kind], why) for kind, why in verdicts]
            )
    return known


def _key(path: str, parts: list[Segment]) -> str:
    """Parts of a video as long as it is not changed; a remote one is taken to be what it was."""
    state: Any = None
    with suppress(OSError, ValueError):
        status = Path(path).stat()
        state = status.st_size, status.st_mtime_ns
    return json.dumps([absolute_path(path), state, parts])


HEADER_SECONDS, DECODE_SECONDS = 20.0, 60.0  # for one file; decoding has its own length besides

Segment: TypeAlias = "tuple[float | None, float | None]"
WHOLE: Segment = (None, None)


@dataclass(frozen=True)
class ProbeResult:
    """What was found in a video.

    Attributes:
        columns: the manifest's columns of that name; empty where the header cannot be read.
        verdicts: one for each part that was asked for.
    """

    columns: dict[str, Any]
    verdicts: list[CheckResult]


def probe_videos(
    paths: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda _: None,
    decode: bool = False,
) -> list[dict[str, Any]]:
    """Probe files or URLs in parallel; one that stands several times is looked at once.

    Args:
        paths: as in `Clip.path`.
        progress: told how many are done.
        decode: decode every frame, too.

    Returns:
        For each path, in order, the manifest's columns that probing fills: those of `VideoInfo`,
        or ``error`` alone, one line that says what is wrong.

    Raises:
        CrosspairError: processes cannot be started.
    """
    times = Counter(paths)
    jobs = [(path, [WHOLE]) for path in times]
    columns: dict[str, dict[str, Any]] = {}
    done = 0
    with closing(check_videos(jobs, decode=decode)) as all_found:
        for job, found in all_found:
            path, verdict = jobs[job][0], found.verdicts[0]
            broken = {"error": f"{path}: {verdict.reason}"}
            columns[path] = broken if verdict.kind.broken else found.columns
            done += times[path]
            progress(done)
    return [dict(columns[path]) for path in paths]


def check_videos(
    jobs: Sequence[tuple[str, Sequence[Segment]]],
    *,
    decode: bool = False,
    workers: int | None = None,
    seconds: float | None = None,
) -> Generator[tuple[int, ProbeResult]]:
    """Look at parts of files or URLs in parallel.

    Args:
        jobs: paths, each with the parts of it that are wanted: (start, end) in s, as in `Clip`.
        decode: decode every frame of the parts, too.
        workers: processes; one a core where it is None.
        seconds: for one file (default: 20, and 60 and the video's own length for decoding).

    Yields:
        (index of the job, `Found`), in the order in which they are done.

    Raises:
        CrosspairError: processes cannot be started.
    """
    limit = seconds or (DECODE_SECONDS if decode else HEADER_SECONDS)
    answers = map_isolated(
        inspect_job,
        [(path, parts, decode) for path, parts in jobs],
        timeout=limit,
        workers=workers,
    )
    with closing(answers):
        for job, answer in answers:
            if isinstance(answer, WorkerFailure):
                yield job, _lost(answer, decode, len(jobs[job][1]))
            else:
                yield job, ProbeResult(*answer)


def _lost(answer: WorkerFailure, decode: bool, parts: int) -> ProbeResult:
    if answer.timed_out:
        own = " and its own length" if decode else ""
        verdict = CheckResult(VideoStatus.HANG, f"{answer.reason}{own}; left out")
    else:
        verdict = CheckResult(VideoStatus.CRASH, answer.reason)
    return ProbeResult({}, [verdict] * parts)
