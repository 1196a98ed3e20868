"""Prepare a corpus: transcode every clip to a small file, on this machine or on a Ray cluster.

`plan_preparation` lists the files to make without writing anything, `prepare_corpus` makes the
missing ones and writes the manifest, and `estimate_cost` extrapolates time and size from a sample.
An interrupted preparation is resumed by the next call.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np

from crosspair.cluster import map_on_ray
from crosspair.config import Clip
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.transcode import TranscodeSettings, transcode
from crosspair.corpora.video_files import absolute_path, file_size
from crosspair.errors import ManifestError, RunError, VideoError, format_error
from crosspair.files import JsonlWriter, file_lock, read_jsonl, write_atomically
from crosspair.video.container import probe
from crosspair.workers import WorkerFailure, map_isolated, run_with_timeout

logger = logging.getLogger(__name__)

VERSION = 1  # increase it if the same request would give other bytes
VIDEOS = "videos"
MANIFEST = "manifest.parquet"
LOCK = ".lock"
JOURNAL = "prepared.jsonl"
"""One line per prepared file: name, key of its request, size in bytes and probed columns. For a
file with several lines, the last one counts."""
KEPT = ("pair_id", "title", "title_clean", "title_tree", "label", "split")
MAX_NAME_LENGTH = 80  # characters of an id used in a file name; file systems allow 255 bytes in all
TIMEOUT = 120.0  # time limit to open and write a file; `transcode` adds time for its frames


@dataclass(frozen=True)
class TranscodeRequest:
    """One file to make.

    Attributes:
        clip: source file and segment.
        settings: of the output.
        target: output path.
        key: hash of the settings, the clip, and the state of its source.
    """

    clip: Clip
    settings: TranscodeSettings
    target: Path
    key: str


@dataclass(frozen=True)
class TranscodeOutcome:
    """The outcome of a request.

    Attributes:
        seconds: time it took.
        size: of the file, in bytes.
        probed: the probed columns of the manifest.
        error: what is wrong with the source, one line; empty on success.
        fatal: an error that affects all requests, such as a full disk, one line.
    """

    seconds: float = 0.0
    size: int = 0
    probed: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    fatal: str = ""


TranscodeBackend = Callable[[Sequence[TranscodeRequest]], Generator[tuple[int, TranscodeOutcome]]]
"""From requests to (index, outcome), in the order of completion."""

ProgressCallback = Callable[[int, int], None]
"""Called after every file with the numbers of finished files and of broken sources."""


@dataclass(frozen=True)
class PreparationPlan:
    """The content of a prepared corpus, before it is made.

    Attributes:
        manifest: of the sources.
        out: folder for the new manifest and its videos.
        requests: one per distinct clip.
        request_of_row: index of each row's request.
        done: probed columns by index of the requests whose files exist.
    """

    manifest: Manifest
    out: Path
    requests: list[TranscodeRequest]
    request_of_row: list[int]
    done: dict[int, dict[str, Any]]

    @property
    def missing(self) -> list[int]:
        """Indices of the requests whose files do not exist or are outdated."""
        return [index for index in range(len(self.requests)) if index not in self.done]


def plan_preparation(manifest: Manifest, out: Path, settings: TranscodeSettings) -> PreparationPlan:
    """List the files to make, and which of them exist; nothing is written.

    Raises:
        ManifestError: the manifest has no rows, or ``out`` cannot be used.
    """
    if not len(manifest):
        raise ManifestError(f"manifest {manifest.path} has no rows")
    _check_out(manifest, out)
    # Absolute, because workers may run in another folder and keys must not depend on the folder.
    clips = [Clip(absolute_path(clip.path), clip.start or 0.0, clip.end) for clip in manifest.clips()]
    videos = out.absolute() / VIDEOS
    states = _source_states(sorted({clip.path for clip in clips}), out)
    requests: list[TranscodeRequest] = []
    request_of_clip: dict[Clip, int] = {}
    request_of_row = []
    for clip, name in zip(clips, file_names(manifest.column("pair_id")), strict=True):
        if clip not in request_of_clip:
            request_of_clip[clip] = len(requests)
            key = _hash(repr((VERSION, astuple(clip), astuple(settings), states[clip.path])), 32)
            requests.append(TranscodeRequest(clip, settings, videos / f"{name}.mp4", key))
        request_of_row.append(request_of_clip[clip])
    done = _find_done(requests, out / JOURNAL)
    return PreparationPlan(manifest, out, requests, request_of_row, done)


def prepare_corpus(
    plan: PreparationPlan, backend: TranscodeBackend, progress: ProgressCallback = lambda *_: None
) -> Manifest:
    """Make the missing files of a plan and write the manifest.

    Files are written atomically, so an interrupted call can be repeated to resume.

    Returns:
        The manifest of the prepared files; rows with a broken source have ``error`` set.

    Raises:
        RunError: the folder cannot be written to, or another process prepares into it.
    """
    videos = plan.out / VIDEOS
    message = f"{plan.out}: another process prepares into this folder; wait until it has finished"
    with file_lock(plan.out / LOCK, message):
        videos.mkdir(exist_ok=True)
        _remove_partial(videos)
        try:
            columns = _make_missing(plan, backend, progress)
        finally:
            _remove_partial(videos)
        rows = plan.manifest.table.select(KEPT).to_pylist()
        for row, index in zip(rows, plan.request_of_row, strict=True):
            row |= {"path": f"{VIDEOS}/{plan.requests[index].target.name}", **columns[index]}
        return manifest_from_rows(rows, plan.out / MANIFEST).write(plan.out / MANIFEST)


@dataclass(frozen=True)
class PreparationEstimate:
    """Cost of the missing files, extrapolated from a sample.

    Attributes:
        missing: number of files to make.
        sampled: number of files made for the estimate.
        broken: how many of these failed.
        work: time of one core for all missing files, in s.
        size: of all missing files, in bytes.
    """

    missing: int
    sampled: int
    broken: int
    work: float
    size: float


def estimate_cost(
    plan: PreparationPlan,
    backend: TranscodeBackend,
    sample: int,
    seed: int = 0,
    progress: ProgressCallback = lambda *_: None,
) -> PreparationEstimate:
    """Extrapolate time and size of all missing files from a random sample, made in a temporary folder.

    Args:
        plan: see `plan_preparation`.
        backend: with as many processes as the real run, as they slow each other down.
        sample: number of files, at most.
        seed: selects the sample.
        progress: see `ProgressCallback`.

    Raises:
        ManifestError: ``sample`` is not positive.
        RunError: the temporary folder cannot be written to.
    """
    if sample < 1:
        raise ManifestError(f"sample is {sample}; it must be at least 1")
    missing = plan.missing
    chosen = np.random.default_rng(seed).permutation(len(missing))[:sample]
    requests = [plan.requests[missing[place]] for place in chosen]
    with TemporaryDirectory() as folder:
        temporary = [replace(each, target=Path(folder) / each.target.name) for each in requests]
        with closing(backend(temporary)) as outcomes:
            made = [outcome for _, outcome in _track(outcomes, 0, progress)]
    scale = len(missing) / max(1, len(made))
    return PreparationEstimate(
        missing=len(missing),
        sampled=len(made),
        broken=sum(bool(outcome.error) for outcome in made),
        work=scale * sum(outcome.seconds for outcome in made),
        size=scale * sum(outcome.size for outcome in made),
    )


def transcode_locally(requests: Sequence[TranscodeRequest], workers: int) -> Generator[tuple[int, TranscodeOutcome]]:
    """Run requests in ``workers`` processes of this machine.

    A process that crashes or hangs is replaced and fails only its file.
    """
    outcomes = map_isolated(run_request, requests, timeout=TIMEOUT, workers=workers)
    with closing(outcomes):
        for index, outcome in outcomes:
            if isinstance(outcome, WorkerFailure):
                outcome = _failed(requests[index], outcome.reason)
            yield index, outcome


def transcode_on_ray(
    requests: Sequence[TranscodeRequest], workers: int, address: str | None = None
) -> Generator[tuple[int, TranscodeOutcome]]:
    """Run requests as Ray tasks, one core each.

    Sources and targets must have the same paths or URLs on all nodes, and this package must be
    installed on each.

    Args:
        requests: files to make.
        workers: cores of the local instance that is started if there is no address.
        address: of a running cluster, for example ``auto`` or ``ray://head:10001``.

    Raises:
        RunError: Ray is not installed, or there is no cluster at the address.
    """
    outcomes = map_on_ray(_run_with_timeout, requests, workers=workers, address=address)
    with closing(outcomes):
        for index, outcome in outcomes:
            if isinstance(outcome, WorkerFailure):
                outcome = _failed(requests[index], outcome.reason)
            yield index, outcome


def _run_with_timeout(request: TranscodeRequest) -> TranscodeOutcome:
    outcome: TranscodeOutcome = run_with_timeout(run_request, TIMEOUT, request)
    return outcome


def run_request(request: TranscodeRequest) -> TranscodeOutcome:
    """Transcode and write one file; errors are returned in the outcome. The task of a worker process."""
    start = time.perf_counter()
    try:
        content = transcode(request.clip, request.settings)
        write_atomically(request.target, content)
        probed = asdict(probe(str(request.target)))
        return TranscodeOutcome(time.perf_counter() - start, len(content), probed)
    except VideoError as error:
        message = str(error)
    except RunError as error:
        fatal = f"{format_error(error)}. Finished files are kept; repeat the command to resume."
        return TranscodeOutcome(fatal=fatal)
    except Exception as error:  # large web corpora contain faults that no test has seen
        reason = f"{type(error).__name__}: {format_error(error)}"
        message = f"{request.clip.path}: cannot be prepared ({reason})"
    return TranscodeOutcome(time.perf_counter() - start, error=message)


def file_names(pair_ids: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each id, unique even if case is ignored.

    An id that is a valid file name is unchanged. An id that must be changed, or that equals another
    one except for case, is followed by its hash.

    Args:
        pair_ids: unique ids.

    >>> file_names(["v_Rowing_g01_c01", "../Été 2019?"])
    ['v_Rowing_g01_c01', 'Ete_2019-c48bf3989875cf88']
    """
    names = [_to_file_name(pair_id) for pair_id in pair_ids]
    counts = Counter(name.casefold() for name in names)
    return [
        name
        if name == pair_id and counts[name.casefold()] == 1 and not _HASH_SUFFIX.search(name)
        else f"{name}-{_hash(pair_id, 16)}"
        for pair_id, name in zip(pair_ids, names, strict=True)
    ]


def _check_out(manifest: Manifest, out: Path) -> None:
    """Raise ManifestError if ``out`` is a URL, a file, the manifest's own folder, or has foreign content."""
    if ":/" in str(out):
        raise ManifestError(f"{out} is not a local folder. Prepare locally, then copy the folder.")
    if out.exists() and not out.is_dir():
        raise ManifestError(f"{out} is a file; prepared videos need a folder")
    if out.resolve() == manifest.path.parent.resolve():
        raise ManifestError(f"{out} is the manifest's own folder. Choose another, for example {out / 'small'}.")
    if not (out / JOURNAL).exists() and ((out / MANIFEST).exists() or any((out / VIDEOS).glob("[!.]*"))):
        raise ManifestError(f"{out} holds a manifest or videos that were not prepared there. Choose another folder.")


def _source_states(paths: list[str], out: Path) -> dict[str, object]:
    """Return, by source, what changes with its content: size and time, or an ETag; None if inaccessible.

    Raises:
        ManifestError: a source is one of the output files.
    """
    outputs: set[tuple[int, int]] = set()
    if (out / VIDEOS).is_dir():
        with os.scandir(out / VIDEOS) as entries:
            # Compared by inode, since links and other spellings lead to the same file.
            outputs = {(at.st_dev, at.st_ino) for at in map(os.stat, entries) if at.st_ino}

    def state(path: str) -> object:
        try:
            if "://" in path:
                system, within = fsspec.core.url_to_fs(path)
                return system.ukey(within)
            status = Path(path).stat()
        except Exception:  # reported when the source is opened
            return None
        if (status.st_dev, status.st_ino) in outputs:
            raise ManifestError(f"source {path} is in {out / VIDEOS} and could be overwritten. Choose another folder.")
        return status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(state, paths), strict=True))


def _find_done(requests: list[TranscodeRequest], journal: Path) -> dict[int, dict[str, Any]]:
    """Return the recorded columns, by index, of requests whose files exist with equal key and size."""
    latest = {
        entry["file"]: entry
        for entry in read_jsonl(journal)
        if isinstance(entry, dict) and entry.keys() >= {"file", "key", "size", "probed"}
    }
    done = {}
    for index, request in enumerate(requests):
        entry = latest.get(request.target.name)
        if entry and entry["key"] == request.key and file_size(request.target) == entry["size"]:
            done[index] = entry["probed"]
    return done


def _make_missing(
    plan: PreparationPlan, backend: TranscodeBackend, progress: ProgressCallback
) -> dict[int, dict[str, Any]]:
    """Run the missing requests; return the probed columns or error by index of the request."""
    columns, missing = dict(plan.done), plan.missing
    requests = [plan.requests[index] for index in missing]
    # Closed if `progress` raises, so that all worker processes end.
    with JsonlWriter(plan.out / JOURNAL) as journal, closing(backend(requests)) as outcomes:
        for place, outcome in _track(outcomes, len(columns), progress):
            request = requests[place]
            if outcome.error:
                logger.warning("broken: %s", outcome.error)
                columns[missing[place]] = {"error": outcome.error}
                request.target.unlink(missing_ok=True)  # the outdated file of another request
            else:
                columns[missing[place]] = outcome.probed
                journal.add({
                    "file": request.target.name, "key": request.key, "size": outcome.size,
                    "probed": outcome.probed,
                })  # fmt: skip
    return columns


def _track(
    outcomes: Iterable[tuple[int, TranscodeOutcome]], done: int, progress: ProgressCallback
) -> Iterator[tuple[int, TranscodeOutcome]]:
    """Yield the outcomes and report progress; raise RunError at a fatal outcome."""
    broken = 0
    progress(done, broken)
    for count, (place, outcome) in enumerate(outcomes, done + 1):
        if outcome.fatal:
            raise RunError(outcome.fatal)
        yield place, outcome
        broken += bool(outcome.error)
        progress(count, broken)


def _failed(request: TranscodeRequest, reason: str) -> TranscodeOutcome:
    """Return the outcome of a source that cannot be prepared."""
    return TranscodeOutcome(error=f"{request.clip.path}: {reason}")


def _remove_partial(videos: Path) -> None:
    """Remove all partial files (``.*.partial``) of a folder; the caller holds the folder's lock."""
    for file in videos.glob(".*.partial"):
        file.unlink(missing_ok=True)


_HASH_SUFFIX = re.compile(r"-[0-9a-f]{16}$", re.IGNORECASE)


def _to_file_name(pair_id: str) -> str:
    """Reduce an id to at most 80 ASCII letters, digits and ``._-``, or to "clip"; it may not be unique."""
    ascii_id = unicodedata.normalize("NFKD", pair_id).encode("ascii", "ignore").decode()
    # No leading dot or hyphen: hidden files and command line options start with them.
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_id).strip("._-")[:MAX_NAME_LENGTH]
    return name or "clip"


def _hash(text: str, digits: int) -> str:
    """Return the first hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
