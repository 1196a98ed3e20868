"""Prepare a corpus: transcode every clip to a small file, on this machine or on a Ray cluster.

`plan_preparation` lists the files to make without writing anything, `prepare_corpus` makes the
missing ones and writes the manifest, and `estimate_cost` extrapolates time and size from a sample.
An interrupted preparation is resumed by the next call.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np

from crosspair.config import Clip
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.transcode import TranscodeSettings, transcode
from crosspair.corpora.video_files import absolute_path, file_size
from crosspair.errors import ManifestError, RunError, VideoError, format_error
from crosspair.files import JsonlWriter, check_output, file_lock, read_jsonl, write_atomically
from crosspair.video.decode import probe
from crosspair.workers import WorkerFailure, map_isolated, map_on_ray, run_with_timeout

logger = logging.getLogger(__name__)

VERSION = 1  # increase it if the same request would give other bytes
VIDEOS = "videos"
MANIFEST = "manifest.parquet"
LOCK = ".lock"
JOURNAL = "prepared.jsonl"
"""One line per prepared file: name, key of its request, size in bytes and probed columns. For a
file with several lines, the last one counts. Each shard has a journal of its own, which also lists
broken sources, with the size null and the error as the only column."""
KEPT = ("pair_id", "title", "title_clean", "title_tree", "label", "split", "titles")
MAX_NAME_LENGTH = 80  # characters of an id used in a file name; file systems allow 255 bytes in all
SHARD_WAIT = 30.0  # s that a shard waits for others that start or end at the same moment
TIMEOUT = 120.0  # time limit to open and write a file; `transcode` adds time for its frames


@dataclass(frozen=True)
class TranscodeRequest:
    """One file to make."""

    clip: Clip
    settings: TranscodeSettings
    target: Path
    key: str  # hash of the settings, the clip, and the state of its source


@dataclass(frozen=True)
class TranscodeOutcome:
    """The outcome of a request."""

    seconds: float = 0.0
    size: int = 0  # bytes
    probed: dict[str, Any] = field(default_factory=dict)  # columns of the manifest
    error: str = ""  # what is wrong with the source, one line; empty on success
    fatal: str = ""  # an error that affects all requests, such as a full disk, one line


TranscodeBackend = Callable[[Sequence[TranscodeRequest]], Generator[tuple[int, TranscodeOutcome]]]
"""From requests to (index, outcome), in the order of completion."""

ProgressCallback = Callable[[int, int], None]
"""Called after every file with the numbers of finished files and of broken sources."""


@dataclass(frozen=True)
class PreparationPlan:
    """The content of a prepared corpus, before it is made."""

    manifest: Manifest  # of the sources
    out: Path
    requests: list[TranscodeRequest]  # one per distinct clip
    request_of_row: list[int]
    done: dict[int, dict[str, Any]]  # probed columns by index of the requests whose files exist
    shard: tuple[int, int] | None = None  # see `plan_preparation`

    @property
    def selected(self) -> range:
        """Indices of the requests of this shard; of all requests if there are no shards."""
        number, count = self.shard or (1, 1)
        return range(number - 1, len(self.requests), count)

    @property
    def missing(self) -> list[int]:
        """Indices of the selected requests whose files do not exist or are outdated."""
        return [index for index in self.selected if index not in self.done]


def plan_preparation(
    manifest: Manifest, out: Path, settings: TranscodeSettings, shard: tuple[int, int] | None = None
) -> PreparationPlan:
    """List the files to make, and which of them exist; nothing is written.

    Args:
        manifest: of the sources.
        out: folder for the new manifest and its videos.
        settings: of the files.
        shard: (i, n) to make only the i-th (from 1) of n disjoint parts. The shards of a corpus can
            run at once, on several machines that share ``out`` and the sources.

    Raises:
        ManifestError: the manifest has no rows, or ``out`` or ``shard`` cannot be used.
    """
    if shard and not 1 <= shard[0] <= shard[1]:
        raise ManifestError(f"shard {shard[0]}/{shard[1]}: the first number must be from 1 to the second")
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
    return PreparationPlan(manifest, out, requests, request_of_row, _find_done(requests, out), shard)


def prepare_corpus(
    plan: PreparationPlan, backend: TranscodeBackend, progress: ProgressCallback = lambda *_: None
) -> Manifest | None:
    """Make the missing files of a plan and write the manifest.

    Files are written atomically, so an interrupted call can be repeated to resume.

    Returns:
        The manifest of the prepared files; rows with a broken source have ``error`` set. None for a
        shard while files of other shards are missing: the shard that finishes last writes the
        manifest, and so does a run without shards.

    Raises:
        RunError: the folder cannot be written to, or another process prepares into it.
    """
    with _lock_folder(plan) as writing:
        (plan.out / VIDEOS).mkdir(exist_ok=True)
        _remove_partial(plan)
        try:
            columns = _make_missing(plan, backend, progress)
        finally:
            _remove_partial(plan)
        with writing:
            if plan.shard:
                columns = _find_done(plan.requests, plan.out, broken=True)
                if len(columns) < len(plan.requests):
                    return None
            rows = plan.manifest.table.select(KEPT).to_pylist()
            for row, index in zip(rows, plan.request_of_row, strict=True):
                row |= {"path": f"{VIDEOS}/{plan.requests[index].target.name}", **columns[index]}
            return manifest_from_rows(rows, plan.out / MANIFEST).write(plan.out / MANIFEST)


@dataclass(frozen=True)
class PreparationEstimate:
    """Cost of the missing files, extrapolated from a sample."""

    missing: int  # files to make
    sampled: int  # files made for the estimate
    broken: int  # how many of these failed
    work: float  # time of one core for all missing files, in s
    size: float  # of all missing files, in bytes


def estimate_cost(
    plan: PreparationPlan, backend: TranscodeBackend, sample: int, progress: ProgressCallback = lambda *_: None
) -> PreparationEstimate:
    """Extrapolate time and size of all missing files from a random sample, made in a temporary folder.

    The backend should have as many processes as that of the real run, as they slow each other down.
    """
    missing = plan.missing
    chosen = np.random.default_rng(0).permutation(len(missing))[:sample]
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
    yield from _file_errors(requests, map_isolated(run_request, requests, timeout=TIMEOUT, workers=workers))


def transcode_on_ray(
    requests: Sequence[TranscodeRequest], workers: int, address: str | None = None
) -> Generator[tuple[int, TranscodeOutcome]]:
    """Run requests as Ray tasks, one core each.

    Sources and targets must have the same paths or URLs on all nodes, and this package must be
    installed on each. Without an ``address``, a local cluster of ``workers`` cores is started; see
    `crosspair.workers.map_on_ray`.
    """
    yield from _file_errors(requests, map_on_ray(_run_with_timeout, requests, workers=workers, address=address))


def _file_errors(
    requests: Sequence[TranscodeRequest], outcomes: Generator[tuple[int, Any]]
) -> Generator[tuple[int, TranscodeOutcome]]:
    """Turn each lost task into an outcome with an error."""
    with closing(outcomes):
        for index, outcome in outcomes:
            if isinstance(outcome, WorkerFailure):
                outcome = TranscodeOutcome(error=f"{requests[index].clip.path}: {outcome.reason}")
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
    """Return a file name without suffix for each of some unique ids, unique even if case is ignored.

    An id that is a valid file name is unchanged. An id that must be changed, or that equals another
    one except for case, is followed by its hash.

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
    for journal in _journals(out):
        check_output(journal, "a record of prepared videos", error_type=ManifestError)
    if not _journals(out) and ((out / MANIFEST).exists() or any((out / VIDEOS).glob("[!.]*"))):
        raise ManifestError(f"{out} holds a manifest or videos that were not prepared there. Choose another folder.")


def _source_states(paths: list[str], out: Path) -> dict[str, object]:
    """Return, by source, size and time or an ETag, None if inaccessible; ManifestError if it is one of the outputs."""
    outputs: set[tuple[int, int]] = set()  # by inode, since links and other spellings lead to the same file
    for path in (out / VIDEOS).glob("[!.]*"):
        with suppress(FileNotFoundError):  # removed by another shard
            outputs.add((path.stat().st_dev, path.stat().st_ino))

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


def _journals(out: Path) -> list[Path]:
    """Return the journals of a folder, including those of shards, the one written last at the end."""
    return sorted(out.glob(f"{Path(JOURNAL).stem}*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path))


def _find_done(requests: list[TranscodeRequest], out: Path, *, broken: bool = False) -> dict[int, dict[str, Any]]:
    """Return the recorded columns by index of requests whose files exist, or, with ``broken``, cannot be made."""
    latest = {
        entry["file"]: entry
        for journal in _journals(out)
        for entry in read_jsonl(journal)
        if isinstance(entry, dict) and entry.keys() >= {"file", "key", "size", "probed"}
    }
    done = {}
    for index, request in enumerate(requests):
        entry = latest.get(request.target.name)
        usable = entry and entry["key"] == request.key and file_size(request.target) == entry["size"]
        if entry and usable and (broken or entry["size"] is not None):
            done[index] = entry["probed"]
    return done


@contextmanager
def _lock_folder(plan: PreparationPlan) -> Iterator[AbstractContextManager[None]]:
    """Exclude other runs without shards, and all runs of the same shard; yield the lock for the manifest."""
    message = f"{plan.out}: another process prepares into this folder; wait until it has finished"
    lock = plan.out / LOCK
    if plan.shard is None:
        with file_lock(lock, message):
            for shard_lock in plan.out.glob(f"{LOCK}-*"):
                with file_lock(shard_lock, message):
                    pass  # no such shard is running, and none can start now
            yield nullcontext()
        return
    with ExitStack() as held:
        with file_lock(lock, message, timeout=SHARD_WAIT):
            held.enter_context(file_lock(plan.out / f"{LOCK}-{_shard_name(plan.shard)}", message))
        yield file_lock(lock, message, timeout=SHARD_WAIT)


def _shard_name(shard: tuple[int, int]) -> str:
    return f"{shard[0]}-of-{shard[1]}"


def _make_missing(
    plan: PreparationPlan, backend: TranscodeBackend, progress: ProgressCallback
) -> dict[int, dict[str, Any]]:
    """Run the missing requests; return the probed columns or error by index of the request."""
    missing = plan.missing
    columns = {index: plan.done[index] for index in plan.selected if index in plan.done}
    requests = [plan.requests[index] for index in missing]
    journal_path = plan.out / JOURNAL
    if plan.shard:
        journal_path = journal_path.with_stem(f"{journal_path.stem}-{_shard_name(plan.shard)}")
    # Closed if `progress` raises, so that all worker processes end.
    with JsonlWriter(journal_path) as journal, closing(backend(requests)) as outcomes:
        for place, outcome in _track(outcomes, len(columns), progress):
            request, index = requests[place], missing[place]
            columns[index] = {"error": outcome.error} if outcome.error else outcome.probed
            if outcome.error:
                logger.warning("broken: %s", outcome.error)
                request.target.unlink(missing_ok=True)  # the outdated file of another request
            if plan.shard or not outcome.error:
                size = None if outcome.error else outcome.size
                journal.add({"file": request.target.name, "key": request.key, "size": size, "probed": columns[index]})
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


def _remove_partial(plan: PreparationPlan) -> None:
    """Remove partial files (``.*.partial``): those of the shard, or all if there are no shards."""
    own = {f".{plan.requests[index].target.name}.partial" for index in plan.selected}
    for file in (plan.out / VIDEOS).glob(".*.partial"):
        if plan.shard is None or file.name in own:
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
