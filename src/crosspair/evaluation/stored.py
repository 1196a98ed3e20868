"""Features of frozen encoders, computed once and stored on disk.

The features of one encoder and one list of items lie in a folder below `cache_folder`, in files of one chunk of items
each. A file is complete once it exists, so that an interrupted computation resumes, and processes share the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from crosspair.corpora.manifest import Manifest, fingerprint
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import TRY_LATER, RunError, VideoError, format_error
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
from crosspair.files import atomic_write, read_json, write_atomically
from crosspair.models.hub import weights_hash
from crosspair.progress import delayed_progress

logger = logging.getLogger(__name__)

CHUNK = 256  # minimum number of items in a file
MAX_FILES = 32  # of one store; each is an open memory map
POLL_INTERVAL = 0.2  # s between checks for the files of other processes

Encoded = tuple[torch.Tensor, dict[int, str]]  # features (n, F) of a chunk, and messages of unreadable items


def cache_folder() -> Path:
    """Return the folder for stored features: ``$CROSSPAIR_CACHE``, by default ``~/.cache/crosspair``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosspair"
    return Path(os.environ.get("CROSSPAIR_CACHE") or default)


class StoredFeatures:
    """Features of numbered items, in memory-mapped files.

    Attributes:
        failures: message of each item that could not be read; its features are NaN.
    """

    def __init__(self, folder: Path, chunks: Sequence[range]) -> None:
        self.folder, self.failures = folder, dict[int, str]()
        self._size = len(chunks[0])
        self._files = [self._open(chunk) for chunk in chunks]

    def _open(self, chunk: range) -> np.ndarray:
        file = _chunk_file(self.folder, chunk)
        try:
            values = np.asarray(np.load(file, mmap_mode="r"))
            if values.ndim != 2 or len(values) != len(chunk):
                raise ValueError(f"shape {values.shape}")
            failures = file.with_suffix(".json")
            if failures.is_file():
                self.failures |= {int(item): text for item, text in read_json(failures).items()}
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{file} is damaged ({format_error(error)}); remove {self.folder}") from error
        return values

    def __getitem__(self, items: Sequence[int]) -> torch.Tensor:
        """Return the features (n, F) float32 of n items."""
        return torch.from_numpy(np.stack([self._files[item // self._size][item % self._size] for item in items]))


def store_features(
    key: Mapping[str, object],
    count: int,
    encode: Callable[[Sequence[range]], Iterable[Encoded]],
    world: World,
    name: str,
) -> StoredFeatures:
    """Compute the features of items that are not stored yet, on all processes, and open all of them.

    Args:
        key: everything that the features depend on: encoder, items and settings; determines the folder.
        count: number of items, at least 1.
        encode: computes the features of chunks of items, in order.
        world: the processes, each of which calls this function; they need a common `cache_folder`.
        name: description for the progress bar.

    Raises:
        RunError: the files cannot be written or read.
        VideoError: a server or the system failed to provide an item, which may be temporary.
    """
    folder = cache_folder() / "features" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    size = max(CHUNK, -(-count // MAX_FILES))
    chunks = [range(first, min(first + size, count)) for first in range(0, count, size)]
    own = [chunk for chunk in chunks[world.rank :: world.size] if not _chunk_file(folder, chunk).exists()]
    if own:
        write_atomically(folder / "key.json", json.dumps(key, indent=2))
    with delayed_progress(name, "items", world.is_main) as advance:
        done, total = 0, sum(map(len, own))
        for chunk, (features, failures) in zip(own, encode(own), strict=True):
            if temporary := next((text for text in failures.values() if TRY_LATER in text), ""):
                raise VideoError(temporary)
            if failures:
                write_atomically(_chunk_file(folder, chunk).with_suffix(".json"), json.dumps(failures))
            with atomic_write(_chunk_file(folder, chunk)) as partial, partial.open("wb") as file:
                np.save(file, features.float().cpu().numpy())
            if not done:
                logger.info("%s: %.0f MB in %s", name, count * features.shape[1] * 4 / 1e6, folder)
            done += len(chunk)
            advance(done, total)
    while not all(_chunk_file(folder, chunk).exists() for chunk in chunks):  # a barrier would time out
        time.sleep(POLL_INTERVAL)
    return StoredFeatures(folder, chunks)


def _chunk_file(folder: Path, chunk: range) -> Path:
    return folder / f"{chunk.start:010d}.npy"


def encoder_key(engine: InferenceEngine) -> dict[str, object]:
    """Return what the visual features of a clip depend on other than its pixels."""
    encoder = engine.model.video_encoder
    return {
        "encoder": f"{type(encoder).__name__} {encoder.mean} {encoder.std} {weights_hash(encoder.state_dict())}",
        "clip": asdict(engine.model.clip),
        "precision": str(dtype_for(engine.device, engine.precision)),
        "device": engine.device.type,
    }


def store_videos(engine: InferenceEngine, manifest: Manifest, clips: int, world: World) -> StoredFeatures:
    """Store the visual features (clips · F) of evenly spaced clips of each video; an item is a row of the manifest."""
    usable, errors = usable_rows(manifest)
    sources, features = manifest.clips(), engine.model.video_encoder.features

    def encode(chunks: Sequence[range]) -> Iterator[Encoded]:
        for chunk in chunks:
            values = torch.full((len(chunk), clips * features), torch.nan)
            failures = {row: errors[row] for row in chunk if row in errors}
            plans = [whole_video_plan(row, sources[row], clips, average=False) for row in chunk if row not in errors]
            for video in encode_features(engine, plans):
                if len(video.spans) == clips:
                    values[video.row - chunk.start] = video.visual.flatten()
                else:
                    failures[video.row] = video.failure
            yield values, failures

    key = {"videos": fingerprint(manifest), "usable": len(usable), "clips": clips, **encoder_key(engine)}
    return store_features(key, len(manifest), encode, world, "encoding videos")


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
    stored = store_videos(engine, manifest, clips, world)
    for done, row in enumerate(rows, start=1):
        if row in stored.failures:
            yield no_features(model, row, stored.failures[row])
            continue
        features = stored[[row]].view(clips, -1)
        with eval_mode(model), torch.no_grad():
            embedding = model.project_video(features.to(engine.device)).float().cpu().sum(dim=0, keepdim=True)
        span = sources[row].start, sources[row].end
        yield WindowFeatures(row, [span], features.mean(dim=0, keepdim=True), F.normalize(embedding, dim=1))
        if progress:
            progress(done * clips, len(rows) * clips)
