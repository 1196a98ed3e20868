"""Probe and check videos in worker processes, and record their state in a manifest."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import csv_text
from crosspair.corpora.video_files import absolute_path, file_state
from crosspair.errors import CheckResult, ManifestError, VideoStatus
from crosspair.files import JsonlWriter, check_output, read_jsonl, write_atomically
from crosspair.video.integrity import inspect_job
from crosspair.workers import WorkerFailure, map_isolated

logger = logging.getLogger(__name__)

PROBED = ("width", "height", "fps", "frames", "duration", "codec")
HEADER_SECONDS = 20.0  # time limit of one file
DECODE_SECONDS = 60.0  # with decoding; the video's duration is added

Segment: TypeAlias = "tuple[float | None, float | None]"
"""Start and end of a part of a video, in s, as in `Clip`."""
WHOLE: Segment = (None, None)


@dataclass(frozen=True)
class CheckedManifest:
    """A manifest whose videos have been checked."""

    manifest: Manifest  # with the probed columns filled; ``error`` is set for videos that training skips
    results: list[CheckResult]  # one per row

    @property
    def broken(self) -> int:
        """Number of rows that training skips."""
        return sum(result.kind.broken for result in self.results)

    def count_statuses(self) -> dict[VideoStatus, tuple[int, int]]:
        """Return, for each status that occurs, the numbers of distinct videos and of rows."""
        paths: dict[VideoStatus, list[str]] = defaultdict(list)
        for path, result in zip(self.manifest.column("path"), self.results, strict=True):
            paths[result.kind].append(path)
        return {status: (len(set(paths[status])), len(paths[status])) for status in VideoStatus if status in paths}

    def write_list(self, path: Path) -> None:
        """Write a csv of the rows whose status is not ``fine``; RunError if that fails."""
        rows = zip(self.manifest.column("pair_id"), self.manifest.column("path"), self.results, strict=True)
        lines = [(*row, found.kind.value, found.reason) for *row, found in rows if found.kind is not VideoStatus.FINE]
        write_atomically(path, csv_text(("pair_id", "path", "kind", "message"), lines))


@dataclass(frozen=True)
class ProbeResult:
    """What was found in a video."""

    columns: dict[str, Any]  # the probed columns of the manifest; empty if the header cannot be read
    results: list[CheckResult]  # one per requested segment


def check(
    manifest: Manifest,
    out: Path | None = None,
    *,
    decode: bool = False,
    workers: int | None = None,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckedManifest:
    """Check every video of a manifest, and write the manifest with the results.

    A video in several rows is opened once, and overlapping segments are decoded once. An
    interrupted check with ``decode`` is resumed by the next call.

    Args:
        manifest: read from its file.
        out: output file or folder; None overwrites ``manifest``.
        decode: also decode every frame of the rows' segments.
        workers, seconds: as for `check_videos`.
        progress: called with the number of finished videos.

    Raises:
        CrosspairError: the output cannot be written, or processes cannot be started.
    """
    if out is None:
        out = manifest.path
    elif out.suffix != ".parquet":
        out = out / manifest.path.name
    check_output(out, "a manifest", error_type=ManifestError)
    parts = [(clip.path, (clip.start, clip.end)) for clip in manifest.clips()]
    segments: dict[str, list[Segment]] = defaultdict(list)  # distinct, of each video
    number = {}
    for path, segment in dict.fromkeys(parts):
        number[path, segment] = len(segments[path])
        segments[path].append(segment)
    journal = out.with_name(f".{out.name}.checked") if decode else None
    found = _check_resumable(segments, journal, workers, seconds, progress)
    results = [found[path].results[number[path, segment]] for path, segment in parts]
    rebased = manifest.rebased(out)
    columns: dict[str, list[Any]] = {name: [found[path].columns.get(name) for path, _ in parts] for name in PROBED}
    columns["error"] = [
        f"{path}: {result.reason}" if result.kind.broken else None
        for path, result in zip(rebased.column("path"), results, strict=True)
    ]
    checked = CheckedManifest(rebased.with_columns(columns).write(out), results)
    if journal:
        journal.unlink(missing_ok=True)
    return checked


def probe_videos(
    paths: Sequence[str], *, progress: Callable[[int], None] = lambda _: None, decode: bool = False
) -> list[dict[str, Any]]:
    """Probe files or URLs in parallel; duplicates are opened once.

    Args:
        paths: as in `Clip.path`.
        progress: called with the number of finished paths.
        decode: also decode every frame.

    Returns:
        For each path, in order, the probed columns of the manifest (the fields of `VideoInfo`), or
        only ``error``, a one-line message.
    """
    times = Counter(paths)
    jobs = [(path, [WHOLE]) for path in times]
    columns: dict[str, dict[str, Any]] = {}
    done = 0
    with closing(check_videos(jobs, decode=decode)) as probes:
        for job, probe in probes:
            path, result = jobs[job][0], probe.results[0]
            columns[path] = {"error": f"{path}: {result.reason}"} if result.kind.broken else probe.columns
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
    """Check segments of files or URLs in parallel.

    Args:
        jobs: path and segments of each video.
        decode: also decode every frame of the segments.
        workers: processes; None for one per core.
        seconds: time limit per file; by default 20, or 60 plus the video's duration for decoding.

    Yields:
        (index of the job, `ProbeResult`), in the order of completion.
    """
    limit = seconds or (DECODE_SECONDS if decode else HEADER_SECONDS)
    answers = map_isolated(inspect_job, [(path, parts, decode) for path, parts in jobs], timeout=limit, workers=workers)
    with closing(answers):
        for job, answer in answers:
            if isinstance(answer, WorkerFailure):
                yield job, ProbeResult({}, [_failure_result(answer, decode)] * len(jobs[job][1]))
            else:
                yield job, ProbeResult(*answer)


def _failure_result(failure: WorkerFailure, decode: bool) -> CheckResult:
    """Return a result with status HANG for a worker that exceeded its time limit, otherwise CRASH."""
    if failure.timed_out:
        extra = " plus the video's duration" if decode else ""
        return CheckResult(VideoStatus.HANG, f"{failure.reason}{extra}; skipped")
    return CheckResult(VideoStatus.CRASH, failure.reason)


def _check_resumable(
    videos: Mapping[str, list[Segment]],
    journal: Path | None,
    workers: int | None,
    seconds: float | None,
    progress: Callable[[int], None],
) -> dict[str, ProbeResult]:
    """Check each video; with a journal, decode it, and reuse and extend the journal of an interrupted check."""
    keys = {}
    if journal:
        keys = {path: json.dumps([absolute_path(path), file_state(path), parts]) for path, parts in videos.items()}
    known = _read_journal(journal) if journal else {}
    found = {path: known[key] for path, key in keys.items() if key in known}
    if found:
        logger.info("resuming a check: %d of %d videos are done", len(found), len(videos))
    progress(len(found))
    jobs = [(path, parts) for path, parts in videos.items() if path not in found]
    checking = check_videos(jobs, decode=journal is not None, workers=workers, seconds=seconds)
    with JsonlWriter(journal) if journal else nullcontext() as lines, closing(checking):
        for job, probe in checking:
            path = jobs[job][0]
            found[path] = probe
            if lines:
                results = [[result.kind.name, result.reason] for result in probe.results]
                lines.add([keys[path], probe.columns, results])
            progress(len(found))
    return found


def _read_journal(journal: Path) -> dict[str, ProbeResult]:
    """Read the results of an interrupted check by the key of the video, without entries of another format."""
    known = {}
    for entry in read_jsonl(journal):
        with suppress(ValueError, KeyError, TypeError):  # written by another version
            key, columns, results = entry
            known[key] = ProbeResult(columns, [CheckResult(VideoStatus[name], reason) for name, reason in results])
    return known
