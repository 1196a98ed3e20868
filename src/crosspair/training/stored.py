"""Training of projection heads from stored features of frozen encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch

from crosspair.config import Recipe
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, dtype_for, to_device
from crosspair.distributed import World
from crosspair.errors import VideoError
from crosspair.evaluation.encode import InferenceEngine, eval_mode
from crosspair.evaluation.stored import (
    ChunkFeatures,
    StoredFeatures,
    encoder_key,
    store_features,
    store_videos,
    videos_key,
)
from crosspair.models.cpd import CPD
from crosspair.models.hub import weights_hash
from crosspair.video.loader import Batch, TrainingOrder, training_loader, view_numbers
from crosspair.video.pixels import preprocess_clips


class StoredTowers:
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
        training = recipe.training
        batch_size = training.batch_size // (training.accumulate * world.size)
        self._engine = InferenceEngine(model, world.device, training.precision, batch_size, training.workers)

    def load_views(self, pairs: Manifest, views: int) -> list[StoredFeatures]:
        """Return the features of each of the training views; an item is a row of ``pairs``."""
        training, clips = self.recipe.training, pairs.clips()
        key = {"videos": videos_key(pairs), "seed": training.seed, **encoder_key(self._engine)}

        def encode(chunks: Sequence[range], view: int) -> Iterator[ChunkFeatures]:
            order = ChunkOrder(chunks, view, self._engine.batch_size)
            batches = iter(
                training_loader(clips, order, self.recipe.clip, seed=training.seed, workers=training.workers)
            )
            for chunk in chunks:
                features = torch.full((len(chunk), self.model.video_encoder.features), torch.nan)
                failures: dict[int, str] = {}
                for _ in range(0, len(chunk), self._engine.batch_size):
                    batch: Batch = next(batches)
                    failures |= batch.failures
                    if len(batch.rows):
                        features[batch.rows - chunk.start] = self._encode_clips(batch)
                yield features, failures

        return [
            store_features(
                {"view": view, **key}, (len(clips), self.model.video_encoder.features),
                partial(encode, view=view), self.world,
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
        stored, items = store_videos(self._engine, videos, 1, self.world)
        rows = [row for row in range(len(videos)) if items[row] not in stored.failures]
        if not rows:
            raise VideoError(f"{videos.path}: no video of split val can be read: {stored.failures[0]}")
        return rows, stored[[items[row] for row in rows]]

    def load_titles(self, titles: Iterable[str]) -> None:
        """Compute the features of all titles by the text encoder, for `text_features`."""
        encoder = self.model.text_encoder
        unique = sorted(set(titles))

        @torch.no_grad()
        def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
            for chunk in chunks:
                with eval_mode(encoder), autocast(self._engine.device, self._engine.precision):
                    yield encoder(unique[chunk.start : chunk.stop]).float(), {}

        digest = hashlib.sha256("\0".join(unique).encode(errors="surrogatepass")).hexdigest()
        key = {
            "titles": digest, "weights": weights_hash(encoder.state_dict()),
            "encoder": hashlib.sha256(encoder.description.encode(errors="surrogatepass")).hexdigest()[:16],
            "precision": str(dtype_for(self._engine.device, self._engine.precision)),
            "device": self._engine.device.type,
        }  # fmt: skip
        self._texts = store_features(key, (len(unique), encoder.features), encode, self.world, "encoding titles")
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


def stored_batches(order: TrainingOrder, views: Sequence[StoredFeatures], views_per_step: int) -> Iterator[Batch]:
    """Yield the batches of an order with the stored features of views, which epochs use in turn, instead of clips."""
    for jobs in order:
        epoch = jobs[0][1]
        used = [views[number] for number in view_numbers(epoch, len(views), views_per_step)]
        unreadable = {row: message for view in used for row, message in view.failures.items()}
        failures = [(row, unreadable[row]) for row, _ in jobs if row in unreadable]
        rows = [row for row, _ in jobs if row not in unreadable]
        features = torch.cat([view[rows] for view in used], dim=1) if rows else torch.empty(0)
        colors = torch.ones(len(rows), 4 * views_per_step)
        yield Batch(epoch, torch.tensor(rows, dtype=torch.long), features, colors, failures)
