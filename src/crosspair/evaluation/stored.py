"""Features of frozen encoders, computed once and stored on disk.

The features of one encoder and one list of items lie in a folder below `cache_folder`: an array ``features.npy``, and
``failures.json``. While they are computed, each process writes chunks of items below ``parts/``, so that an interrupted
computation resumes; the first process merges them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from crosspair.corpora.manifest import Manifest, fingerprint
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import TRY_LATER, ModelError, RunError, format_error
from crosspair.evaluation.encode import (
    InferenceEngine,
    ProgressCallback,
    WindowFeatures,
    encode_features,
    eval_mode,
    no_features,
    usable_rows,
)
from crosspair.evaluation.windows import whole_video_plan
from crosspair.files import atomic_write, read_json, wait_for_file, write_atomically
from crosspair.models.hub import weights_hash
from crosspair.progress import delayed_progress

logger = logging.getLogger(__name__)

FEATURES, FAILURES = "features.npy", "failures.json"
VERSION = 1  # of the features: to be raised when decoding or an encoder changes what it computes
LARGE = 10_000_000  # bytes of a file that is reported
CHUNK = 64  # items that are written together
POLL_INTERVAL = 0.2  # s between checks for the files of other processes

ChunkFeatures = tuple[torch.Tensor, dict[int, str]]  # features (n, F) of a chunk, and messages of unreadable items


def cache_folder() -> Path:
    """Return the folder for stored features: ``$CROSSPAIR_CACHE``, by default ``~/.cache/crosspair``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosspair"
    return Path(os.environ.get("CROSSPAIR_CACHE") or default)


class StoredFeatures:
    """Features of numbered items, in a memory-mapped file.

    Args:
        folder: contains ``features.npy`` and ``failures.json``.
        shape: number of items, and dimensions of a feature.

    Attributes:
        failures: message of each item that could not be read; its features are NaN.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        try:
            self._values = np.load(folder / FEATURES, mmap_mode="r")
            self.failures = {int(item): str(text) for item, text in read_json(folder / FAILURES).items()}
            if self._values.shape != shape:
                raise ValueError(f"shape {self._values.shape}")
        except (OSError, ValueError, EOFError, AttributeError) as error:
            raise RunError(f"{folder / FEATURES} is damaged ({format_error(error)}); remove {folder}") from error

    def __getitem__(self, items: Sequence[int]) -> torch.Tensor:
        """Return the features (n, F) float32 of n items."""
        return torch.from_numpy(self._values[items])


def store_features(
    key: Mapping[str, object],
    shape: tuple[int, int],
    encode: Callable[[Sequence[range]], Iterable[ChunkFeatures]],
    world: World,
    name: str,
) -> StoredFeatures:
    """Compute the features of items that are not stored yet, on all processes, and open all of them.

    Items that failed for a reason that may be temporary are computed again by the next call.

    Args:
        key: everything that the features depend on: encoder, items and settings; determines the folder.
        shape: number of items, at least 1, and dimensions of a feature.
        encode: computes the features of chunks of items, in order.
        world: the processes, each of which calls this function.
        name: description for the progress bar.

    Raises:
        RunError: the files cannot be written or read, or the processes have separate folders.
        ModelError: features are not finite.
    """
    key = {"version": VERSION, **key}
    folder = cache_folder() / "features" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    chunks = [range(first, min(first + CHUNK, shape[0])) for first in range(0, shape[0], CHUNK)]
    if world.is_main:
        try:
            write_atomically(folder / "key.json", json.dumps(key, indent=2))
        except RunError as error:
            raise RunError(f"{error}; set CROSSPAIR_CACHE to a folder for stored features") from error
        _forget_temporary_failures(folder)
        _remove_parts(folder)
    world.barrier()
    if not wait_for_file(folder / "key.json"):
        raise RunError(f"{folder} is not that of the first process; set CROSSPAIR_CACHE to a folder that all share")
    try:
        _write_parts(folder, chunks[world.rank :: world.size], encode, name, shown=world.is_main)
        while not (folder / FEATURES).is_file():  # a barrier would time out
            if world.is_main and all(_part(folder, chunk).is_file() for chunk in chunks):
                _merge_parts(folder, chunks, shape)
            elif world.size > 1:
                time.sleep(POLL_INTERVAL)
            else:
                raise RunError(f"{folder}: files were removed while features were computed; run the command again")
    except RunError:
        if not (folder / FEATURES).is_file():  # otherwise another run has computed the same features meanwhile
            raise
    stored = StoredFeatures(folder, shape)
    if stored.failures and world.is_main:
        failed = f"{len(stored.failures)} of {shape[0]} items cannot be read ({folder / FAILURES})"
        logger.warning("%s: %s. To try them again, remove %s", name, failed, folder)
    return stored


def _write_parts(
    folder: Path,
    chunks: Sequence[range],
    encode: Callable[[Sequence[range]], Iterable[ChunkFeatures]],
    name: str,
    *,
    shown: bool,
) -> None:
    """Compute the chunks that have no part yet, until all features are stored."""
    chunks = [chunk for chunk in chunks if not _part(folder, chunk).is_file()]
    if not chunks or (folder / FEATURES).is_file():
        return
    done, total = 0, sum(map(len, chunks))
    with delayed_progress(name, "items", shown) as advance:
        for chunk, (features, failures) in zip(chunks, encode(chunks), strict=True):
            good = [i for i, item in enumerate(chunk) if item not in failures]
            if not features[good].isfinite().all():
                raise ModelError("the features of this model are not finite: its weights are damaged or too large.")
            if (folder / FEATURES).is_file():
                return
            write_atomically(_part(folder, chunk).with_suffix(".json"), json.dumps(failures))
            with atomic_write(_part(folder, chunk)) as partial, partial.open("wb") as file:
                np.save(file, features.float().cpu().numpy())
            done += len(chunk)
            advance(done, total)


def _merge_parts(folder: Path, chunks: Sequence[range], shape: tuple[int, int]) -> None:
    """Write `FEATURES` and `FAILURES` from all parts."""
    failures: dict[str, str] = {}
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        with atomic_write(folder / FEATURES) as partial:
            with partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in chunks:
                    file.write(np.load(_part(folder, chunk)).astype("<f4").tobytes())
                    failures |= read_json(_part(folder, chunk).with_suffix(".json"))
            write_atomically(folder / FAILURES, json.dumps(failures, indent=2))
    except (ValueError, EOFError) as error:
        raise RunError(f"{folder / 'parts'} is damaged ({format_error(error)}); remove {folder}") from error
    size = (folder / FEATURES).stat().st_size
    logger.log(logging.INFO if size > LARGE else logging.DEBUG, "stored %.0f MB in %s", size / 1e6, folder)
    _remove_parts(folder)


def _remove_parts(folder: Path) -> None:
    """Remove parts that are merged, unless some of their failures may be temporary."""
    parts = folder / "parts"
    for file in parts.glob("*.json"):
        with suppress(FileNotFoundError):  # removed by another run
            if TRY_LATER in file.read_text(encoding="utf-8"):
                return
    if (folder / FEATURES).is_file():
        shutil.rmtree(parts, ignore_errors=True)


def _forget_temporary_failures(folder: Path) -> None:
    """Remove the parts, and the result, that have failures which may be temporary."""
    for file in (folder / "parts").glob("*.json"):
        with suppress(FileNotFoundError):  # removed by another run
            if TRY_LATER in file.read_text(encoding="utf-8"):
                (folder / FEATURES).unlink(missing_ok=True)
                file.with_suffix(".npy").unlink(missing_ok=True)


def _part(folder: Path, chunk: range) -> Path:
    return folder / "parts" / f"{chunk.start:010d}.npy"


def encoder_key(engine: InferenceEngine) -> dict[str, object]:
    """Return what the visual features of a clip depend on other than its pixels."""
    encoder = engine.model.video_encoder
    return {
        "encoder": hashlib.sha256(encoder.description.encode()).hexdigest()[:16],
        "weights": weights_hash(encoder.state_dict()),
        "clip": asdict(engine.model.clip),
        "precision": str(dtype_for(engine.device, engine.precision)),
        "device": engine.device.type,
    }


def videos_key(videos: Manifest) -> str:
    """Return a hash of paths, segments, sizes and modification times of videos."""
    digest = hashlib.sha256(fingerprint(videos).encode())
    for clip in videos.clips():
        with suppress(OSError, ValueError):  # missing, or a URL
            digest.update(f"{Path(clip.path).stat().st_mtime_ns} ".encode())
    return digest.hexdigest()[:16]


def store_videos(
    engine: InferenceEngine, manifest: Manifest, clips: int, world: World
) -> tuple[StoredFeatures, dict[int, int]]:
    """Store the visual features (clips · F) of evenly spaced clips of each video.

    Returns:
        The features, and the item of each row. Items are sorted by path, so that official splits share them.
    """
    _, errors = usable_rows(manifest)
    sources, features = manifest.clips(), engine.model.video_encoder.features
    rows = sorted(range(len(sources)), key=lambda row: (sources[row].path, sources[row].start or 0.0))

    def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
        for chunk in chunks:
            values = torch.full((len(chunk), clips * features), torch.nan)
            item_of = {rows[item]: item for item in chunk}
            failures = {item: errors[row] for row, item in item_of.items() if row in errors}
            plans = [whole_video_plan(row, sources[row], clips, average=False) for row in item_of if row not in errors]
            for video in encode_features(engine, plans):
                item = item_of[video.row]
                if len(video.spans) == clips:
                    values[item - chunk.start] = video.visual.flatten()
                else:
                    failures[item] = video.failure
            yield values, failures

    key = {
        "videos": videos_key(manifest.take(rows)), "errors": [item for item, row in enumerate(rows) if row in errors],
        "clips": clips, **encoder_key(engine),
    }  # fmt: skip
    stored = store_features(key, (len(rows), clips * features), encode, world, "encoding videos")
    return stored, {row: item for item, row in enumerate(rows)}


def encode_stored_rows(
    engine: InferenceEngine,
    manifest: Manifest,
    rows: Sequence[int],
    clips: int,
    progress: ProgressCallback | None = None,
    *,
    world: World,
) -> Iterator[WindowFeatures]:
    """Encode whole videos as `crosspair.evaluation.encode.encode_rows` does, from stored features of a frozen encoder.

    All processes call this function; features that are not stored yet are computed first.
    """
    model, sources = engine.model, manifest.clips()
    stored, items = store_videos(engine, manifest, clips, world)
    with eval_mode(model):
        for done, row in enumerate(rows, start=1):
            if items[row] in stored.failures:
                yield no_features(model, row, stored.failures[items[row]])
                continue
            features = stored[[items[row]]].view(clips, -1)
            with torch.no_grad():
                embedding = model.project_video(features.to(engine.device)).float().cpu().sum(dim=0, keepdim=True)
            span = sources[row].start, sources[row].end
            yield WindowFeatures(row, [span], features.mean(dim=0, keepdim=True), F.normalize(embedding, dim=1))
            if progress:
                progress(done * clips, len(rows) * clips)
