"""Features of frozen encoders, computed once and stored on disk, from which projection heads are trained.

The features of one encoder and one list of items lie in a folder below `cache_folder`, in files of one chunk of items
each. A file is complete once it exists, so that an interrupted computation resumes, and processes share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from crosspair.config import Recipe
from crosspair.corpora.manifest import Manifest, fingerprint
from crosspair.device import autocast, dtype_for, to_device
from crosspair.distributed import World
from crosspair.errors import TRY_LATER, RunError, VideoError, format_error
from crosspair.evaluation.encode import InferenceEngine, encode_rows, eval_mode
from crosspair.files import atomic_write, read_json, write_atomically
from crosspair.models.cpd import CPD
from crosspair.models.hub import weights_hash
from crosspair.progress import delayed_progress
from crosspair.training.loop import preprocess_clips
from crosspair.video.loader import Batch, TrainingOrder, training_loader

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
            done += len(chunk)
            advance(done, total)
    while not all(_chunk_file(folder, chunk).exists() for chunk in chunks):  # a barrier would time out
        time.sleep(POLL_INTERVAL)
    return StoredFeatures(folder, chunks)


def _chunk_file(folder: Path, chunk: range) -> Path:
    return folder / f"{chunk.start:010d}.npy"


class FrozenTowers:
    """Stored features of what the frozen encoders of a training read: views, validation videos and titles.

    Args:
        model: model in training; its video encoder is frozen, and its text encoder in stage I.
        recipe: all settings.
        world: the processes.
    """

    def __init__(self, model: CPD, recipe: Recipe, world: World) -> None:
        self.model, self.recipe, self.world = model, recipe, world
        self._titles: dict[str, int] = {}  # item of each title
        self._texts: StoredFeatures | None = None
        encoder, training = model.video_encoder, recipe.training
        self._common = {"device": world.device.type, "precision": str(dtype_for(world.device, training.precision))}
        self._video = {
            "encoder": f"{type(encoder).__name__} {encoder.mean} {encoder.std} {weights_hash(encoder.state_dict())}",
            "clip": asdict(recipe.clip),
            **self._common,
        }
        self._batch_size = training.batch_size // (training.accumulate * world.size)

    def load_views(self, pairs: Manifest, views: int) -> list[StoredFeatures]:
        """Return the features of each of the training views; an item is a row of ``pairs``."""
        training, clips = self.recipe.training, pairs.clips()
        key = {"videos": fingerprint(pairs), "seed": training.seed, **self._video}

        def encode(chunks: Sequence[range], view: int) -> Iterator[Encoded]:
            order = ChunkOrder(chunks, view, self._batch_size)
            batches = iter(
                training_loader(clips, order, self.recipe.clip, seed=training.seed, workers=training.workers)
            )
            for chunk in chunks:
                features = torch.full((len(chunk), self.model.video_encoder.features), torch.nan)
                failures: dict[int, str] = {}
                for _ in range(0, len(chunk), self._batch_size):
                    batch: Batch = next(batches)
                    failures |= batch.failures
                    if len(batch.rows):
                        features[batch.rows - chunk.start] = self._encode_clips(batch)
                yield features, failures

        return [
            store_features(
                {"view": view, **key}, len(clips), partial(encode, view=view), self.world,
                f"encoding view {view + 1} of {views}",
            )
            for view in range(views)
        ]  # fmt: skip

    @torch.no_grad()
    def _encode_clips(self, batch: Batch) -> torch.Tensor:
        """Return the visual features (B, F) of a batch as a training step would compute them."""
        device = self.world.device
        pixels = preprocess_clips(to_device(batch.clips, device), to_device(batch.colors, device), self.recipe.clip)
        with eval_mode(self.model.video_encoder), autocast(device, self.recipe.training.precision):
            return self.model.visual_features(pixels).float().cpu()

    def load_videos(self, videos: Manifest) -> tuple[list[int], torch.Tensor]:
        """Return the rows of the readable videos of a manifest, and the features (V, F) of their centre clips."""
        training = self.recipe.training
        engine = InferenceEngine(self.model, self.world.device, training.precision, self._batch_size, training.workers)

        def encode(chunks: Sequence[range]) -> Iterator[Encoded]:
            for chunk in chunks:
                features = torch.full((len(chunk), self.model.video_encoder.features), torch.nan)
                failures: dict[int, str] = {}
                for video in encode_rows(engine, videos, chunk, clips=1):
                    if video.spans:
                        features[video.row - chunk.start] = video.visual[0]
                    else:
                        failures[video.row] = video.failure
                yield features, failures

        key = {"validation": fingerprint(videos), **self._video}
        stored = store_features(key, len(videos), encode, self.world, "encoding split val")
        rows = [row for row in range(len(videos)) if row not in stored.failures]
        if not rows:
            raise VideoError(f"{videos.path}: no video of split val can be read: {stored.failures[0]}")
        return rows, stored[rows]

    def load_titles(self, titles: Iterable[str]) -> None:
        """Compute the features of all titles by the text encoder, for `text_features`."""
        encoder = self.model.text_encoder
        unique = sorted(set(titles))

        @torch.no_grad()
        def encode(chunks: Sequence[range]) -> Iterator[Encoded]:
            for chunk in chunks:
                with eval_mode(encoder), autocast(self.world.device, self.recipe.training.precision):
                    yield encoder(unique[chunk.start : chunk.stop]), {}

        digest = hashlib.sha256("\0".join(unique).encode(errors="surrogatepass")).hexdigest()
        key = {
            "titles": digest, "encoder": f"{type(encoder).__name__} {weights_hash(encoder.state_dict())}",
            "text": asdict(self.recipe.text), **self._common,
        }  # fmt: skip
        self._texts = store_features(key, len(unique), encode, self.world, "encoding titles")
        self._titles = {title: item for item, title in enumerate(unique)}

    def text_features(self, titles: Sequence[str]) -> torch.Tensor:
        """Return the features (B, E) of B of the titles that were given to `load_titles`, on the CPU."""
        assert self._texts
        return self._texts[[self._titles[title] for title in titles]]


class ChunkOrder(TrainingOrder):
    """One view of chunks of rows, in batches."""

    def __init__(self, chunks: Sequence[range], view: int, batch_size: int) -> None:
        super().__init__(sum(map(len, chunks)), batch_size, 1, 0)
        self.chunks, self.view = chunks, view

    def __len__(self) -> int:
        return sum(-(-len(chunk) // self.batch_size) for chunk in self.chunks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for chunk in self.chunks:
            for first in range(0, len(chunk), self.batch_size):
                yield [(row, self.view) for row in chunk[first : first + self.batch_size]]


def stored_batches(order: TrainingOrder, views: Sequence[StoredFeatures]) -> Iterator[Batch]:
    """Yield the batches of an order with the stored features of views, which epochs use in turn, instead of clips."""
    for jobs in order:
        epoch = jobs[0][1]
        view = views[epoch % len(views)]
        failures = [(row, view.failures[row]) for row, _ in jobs if row in view.failures]
        rows = [row for row, _ in jobs if row not in view.failures]
        features = view[rows] if rows else torch.empty(0)
        yield Batch(epoch, torch.tensor(rows, dtype=torch.long), features, torch.ones(len(rows), 3), failures)
