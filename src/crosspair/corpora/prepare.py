"""What is asked of a worker of any engine, and what it answers."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import signal
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np

from crosspair.cluster import map_on_ray, ray_cluster
from crosspair.config import Clip
from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.transcode import TranscodeSettings, transcode
from crosspair.corpora.video_files import absolute_path, file_size
from crosspair.errors import ManifestError, RunError, VideoError
from crosspair.files import JsonlWriter, read_jsonl, write_atomically
from crosspair.video.container import probe
from crosspair.workers import WorkerFailure, map_isolated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TranscodeRequest:
    """One file to be made.

    Attributes:
        clip: the source, and the part of it to take.
        settings: of the file.
        target: where the file is to stand.
        key: of the settings, the clip, and the state in which its source was found.
    """

    clip: Clip
    settings: TranscodeSettings
    target: Path
    key: str


@dataclass(frozen=True)
class TranscodeOutcome:
    """What became of a request.

    Attributes:
        seconds: how long it took.
        size: of the file, in bytes.
        probed: the manifest's columns that probing the file fills.
        error: what is wrong with the source, in one line; empty where nothing is.
        fatal: why no other request can do better, in one line; empty where others can.
    """

    seconds: float = 0.0
    size: int = 0
    probed: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    fatal: str = ""


def run_request(request: TranscodeRequest) -> TranscodeOutcome:
    """Make a file, in one step."""
    begun = time.perf_counter()
    try:
        content = transcode(request.clip, request.settings)
        write_atomically(request.target, content)
        probed = asdict(probe(str(request.target)))
        return TranscodeOutcome(time.perf_counter() - begun, len(content), probed)
    except VideoError as error:
        fault = str(error)
    except RunError as error:
        kept = "; what is done is kept, and the same command goes on from there"
        return TranscodeOutcome(fatal=_one_line(str(error)) + kept)
    except Exception as error:  # of 240,000 files from the web, one will show a fault unknown yet
        fault = f"{request.clip.path}: cannot be prepared ({type(error).__name__}: {error})"
    return TranscodeOutcome(time.perf_counter() - begun, error=_one_line(fault))


def _one_line(text: str) -> str:
    return " ".join(text.split())


SECONDS = 120.0  # for a file to open and to be written; its frames have time of their own

TranscodeBackend = Callable[[Sequence[TranscodeRequest]], Generator[tuple[int, TranscodeOutcome]]]
"""From requests to their indices and outcomes, in the order in which they end."""


def transcode_locally(
    requests: Sequence[TranscodeRequest], workers: int
) -> Generator[tuple[int, TranscodeOutcome]]:
    """Answer requests in so many processes of this machine.

    One that crashes or hangs is replaced, and costs its file only.
    """
    results = map_isolated(run_request, requests, timeout=SECONDS, workers=workers)
    with closing(results):
        for index, result in results:
            if isinstance(result, WorkerFailure):
                result = _lost(requests[index], result.reason)
            yield index, result


def transcode_on_ray(
    requests: Sequence[TranscodeRequest], workers: int, address: str | None = None
) -> Generator[tuple[int, TranscodeOutcome]]:
    """Answer requests by tasks of Ray, one core each.

    Sources and targets must be at the same paths, or URLs, on all nodes, and this package must be
    installed there.

    Args:
        workers: cores of the instance that is started here where no address is given.
        address: of a running cluster, as ``auto`` or ``ray://head:10001``.

    Raises:
        RunError: Ray is not installed, or no cluster is to be found there.
    """
    with ray_cluster(address, workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=0)(transcode_with_timeout)
        # More than can run, so that no core waits.
        at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        for index, reference in map_on_ray(ray, task.remote, requests, at_once):
            try:
                yield index, ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = f"the process that decoded it ended ({type(error).__name__})"
                yield index, _lost(requests[index], reason)


def transcode_with_timeout(request: TranscodeRequest) -> TranscodeOutcome:
    """An attempt; the process ends when its time is over, however deep in the decoder it is."""

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return run_request(request)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _lost(request: TranscodeRequest, reason: str) -> TranscodeOutcome:
    return TranscodeOutcome(error=f"{request.clip.path}: {reason}")


VERSION = 1  # of the files: raise it when the same request would give other bytes
VIDEOS = "videos"
MANIFEST = "manifest.parquet"
JOURNAL = "prepared.jsonl"
"""A line for each prepared file: its name, its request's key, its size in bytes, what probing it
found. Of two lines for one file the later counts."""

LONGEST = 80  # characters of an id that are kept; file systems take 255 bytes for the whole name


@dataclass(frozen=True)
class PreparationPlan:
    """All that a prepared corpus will be, before any of it is made.

    Attributes:
        manifest: of the sources.
        out: the folder for the new manifest and its videos.
        requests: each once, although rows may share it.
        of_row: index of each row's request.
        done: what probing found, for each request whose file is there already.
    """

    manifest: Manifest
    out: Path
    requests: list[TranscodeRequest]
    of_row: list[int]
    done: dict[int, dict[str, Any]]

    @property
    def missing(self) -> list[int]:
        """Requests that are still to be done."""
        return [index for index in range(len(self.requests)) if index not in self.done]


def plan_preparation(manifest: Manifest, out: Path, settings: TranscodeSettings) -> PreparationPlan:
    """Find out what is to be done, without writing anything.

    Raises:
        ManifestError: the manifest has no rows, or ``out`` is not a folder to prepare into.
    """
    if not len(manifest):
        raise ManifestError(f"manifest {manifest.path} has no rows; there is nothing to prepare")
    _check_folder(manifest, out)
    # From the root: whoever answers may be in another folder, and a key holds wherever one is.
    clips = [
        Clip(absolute_path(clip.path), clip.start or 0.0, clip.end) for clip in manifest.clips()
    ]
    videos = out.absolute() / VIDEOS
    states = _states(sorted({clip.path for clip in clips}), out)
    requests: list[TranscodeRequest] = []
    of_clip: dict[Clip, int] = {}
    of_row = []
    for clip, name in zip(clips, file_names(manifest.column("pair_id")), strict=True):
        if clip not in of_clip:
            of_clip[clip] = len(requests)
            told = repr((VERSION, astuple(clip), astuple(settings), states[clip.path]))
            key = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            requests.append(TranscodeRequest(clip, settings, videos / f"{name}.mp4", key))
        of_row.append(of_clip[clip])
    return PreparationPlan(manifest, out, requests, of_row, _done(requests, out))


def file_names(pair_ids: Sequence[str]) -> list[str]:
    """A name without suffix for each id, in order; no two are alike, even in another case.

    An id that is a good name stays as it is; one that had to be changed, or that another repeats
    in another case, ends with a hash of itself.

    Args:
        pair_ids: each different from all others.

    >>> file_names(["v_Rowing_g01_c01", "../Été 2019?"])
    ['v_Rowing_g01_c01', 'Ete_2019-c48bf3989875cf88']
    """
    names = [_safe(each) for each in pair_ids]
    counts = Counter(name.casefold() for name in names)
    return [
        name
        if name == each and counts[name.casefold()] == 1 and not _HASHED.search(name)
        else f"{name}-{hashlib.sha256(each.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        for each, name in zip(pair_ids, names, strict=True)
    ]


def _check_folder(manifest: Manifest, out: Path) -> None:
    if ":/" in str(out):
        raise ManifestError(f"{out} is no local folder; prepare into one, and copy it from there")
    if out.exists() and not out.is_dir():
        raise ManifestError(f"{out} is a file; prepared videos need a folder")
    if out.resolve() == manifest.path.parent.resolve():
        raise ManifestError(
            f"{out} is the folder of the manifest itself; prepare into another, as {out / 'small'}"
        )
    if not (out / JOURNAL).exists() and (
        (out / MANIFEST).exists() or any((out / VIDEOS).glob("[!.]*"))
    ):
        raise ManifestError(
            f"{out} holds a manifest or videos that were not prepared there; choose another folder"
        )


def _states(paths: list[str], out: Path) -> dict[str, object]:
    """Of each source what changes when its content does.

    Raises:
        ManifestError: a source is one of the files that are to be written.
    """
    made: set[tuple[int, int]] = set()
    if (out / VIDEOS).is_dir():
        with os.scandir(out / VIDEOS) as read_jsonl:
            # Compared by number, since links and other spellings lead to the same file.
            made = {(at.st_dev, at.st_ino) for at in map(os.stat, read_jsonl) if at.st_ino}

    def state(path: str) -> object:
        try:
            if "://" in path:
                system, within = fsspec.core.url_to_fs(path)
                return system.ukey(within)
            found = Path(path).stat()
        except Exception:  # whatever is wrong with a source is told when it is opened
            return None
        if (found.st_dev, found.st_ino) in made:
            raise ManifestError(
                f"source {path} lies in {out / VIDEOS} and might be overwritten; "
                "choose another folder"
            )
        return found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(state, paths), strict=True))


def _done(requests: list[TranscodeRequest], out: Path) -> dict[int, dict[str, Any]]:
    latest = {
        entry["file"]: entry
        for entry in read_jsonl(out / JOURNAL)
        if isinstance(entry, dict) and entry.keys() >= {"file", "key", "size", "probed"}
    }
    done = {}
    for index, request in enumerate(requests):
        entry = latest.get(request.target.name)
        if entry and entry["key"] == request.key and file_size(request.target) == entry["size"]:
            done[index] = entry["probed"]
    return done


_HASHED = re.compile(r"-[0-9a-f]{16}$", re.IGNORECASE)


def _safe(pair_id: str) -> str:
    plain = unicodedata.normalize("NFKD", pair_id).encode("ascii", "ignore").decode()
    # No dot or hyphen in front: hidden files, and options of commands.
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:LONGEST] or "clip"


KEPT = ("pair_id", "title", "title_clean", "title_tree", "label", "split")

Tell = Callable[[int, int], None]
"""Called after every file with the files that are done, and how many sources were broken."""


def prepare_corpus(
    plan: PreparationPlan, engine: TranscodeBackend, progress: Tell = lambda *_: None
) -> Manifest:
    """Do what is planned.

    Files appear whole or not at all, so a call that was cut short is made again to go on.

    Returns:
        The manifest of the prepared files. Rows whose source is broken have ``error`` filled.

    Raises:
        RunError: the folder cannot be written to, or another run prepares into it.
    """
    videos = plan.out / VIDEOS
    try:
        videos.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{plan.out} cannot be written to: {error.strerror}") from error
    with exclusive_lock(plan.out):
        _clean(videos)
        try:
            probed = _probed(plan, engine, progress)
        finally:
            _clean(videos)
        rows = plan.manifest.table.select(KEPT).to_pylist()
        for row, index in zip(rows, plan.of_row, strict=True):
            row |= {"path": f"{VIDEOS}/{plan.requests[index].target.name}", **probed[index]}
        return manifest_from_rows(rows, plan.out / MANIFEST).write(plan.out / MANIFEST)


@dataclass(frozen=True)
class PreparationEstimate:
    """What is missing, and what a sample says about it.

    Attributes:
        missing: files to be made.
        sampled: how many of them were made to see.
        broken: how many of these could not be.
        work: of one core for all that is missing, in s.
        size: of all that is missing, in bytes.
    """

    missing: int
    sampled: int
    broken: int
    work: float
    size: float


def estimate_cost(
    plan: PreparationPlan,
    engine: TranscodeBackend,
    sample: int,
    seed: int = 0,
    progress: Tell = lambda *_: None,
) -> PreparationEstimate:
    """Make a random sample of the missing files in a temporary folder.

    Args:
        plan: see `plan_preparation`.
        engine: of as many processes as the real run has, since they slow each other.
        sample: how many, at most.
        seed: of the choice.
        progress: see `Tell`.

    Raises:
        ManifestError: ``sample`` is not positive.
        RunError: the temporary folder cannot be written to.
    """
    if sample < 1:
        raise ManifestError(f"the sample is {sample} videos; it must be 1 or more")
    missing = plan.missing
    chosen = np.random.default_rng(seed).permutation(len(missing))[:sample]
    requests = [plan.requests[missing[place]] for place in chosen]
    with TemporaryDirectory() as folder:
        elsewhere = [replace(each, target=Path(folder) / each.target.name) for each in requests]
        with closing(engine(elsewhere)) as outcomes:
            made = [outcome for _, outcome in _told(outcomes, 0, progress)]
    scale = len(missing) / max(1, len(made))
    work, size = (scale * sum(of) for of in ([o.seconds for o in made], [o.size for o in made]))
    return PreparationEstimate(
        len(missing), len(made), sum(bool(o.error) for o in made), work, size
    )


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Raises:
        RunError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run prepares into {folder}; wait until it ends") from error
        except OSError:
            pass  # file systems without locks
        yield
    finally:
        os.close(descriptor)


def _probed(
    plan: PreparationPlan, engine: TranscodeBackend, progress: Tell
) -> dict[int, dict[str, Any]]:
    """What the manifest says of each request's file beyond its path."""
    probed, missing = dict(plan.done), plan.missing
    requests = [plan.requests[index] for index in missing]
    # Closed at once when `progress` raises, so that no process works on.
    with JsonlWriter(plan.out / JOURNAL) as journal, closing(engine(requests)) as outcomes:
        for place, outcome in _told(outcomes, len(probed), progress):
            target, key = requests[place].target, requests[place].key
            if outcome.error:
                logger.warning("broken: %s", outcome.error)
                probed[missing[place]] = {"error": outcome.error}
                target.unlink(missing_ok=True)  # of an earlier request, which it no longer answers
            else:
                probed[missing[place]] = found = outcome.probed
                journal.add(
                    {"file": target.name, "key": key, "size": outcome.size, "probed": found}
                )
    return probed


def _told(
    outcomes: Iterable[tuple[int, TranscodeOutcome]], done: int, progress: Tell
) -> Iterator[tuple[int, TranscodeOutcome]]:
    broken = 0
    progress(done, broken)
    for count, (place, outcome) in enumerate(outcomes, done + 1):
        if outcome.fatal:
            raise RunError(outcome.fatal)
        yield place, outcome
        broken += bool(outcome.error)
        progress(count, broken)


def _clean(videos: Path) -> None:
    """Remove what killed processes have left."""
    for partial in videos.glob(".*.partial"):
        partial.unlink(missing_ok=True)
