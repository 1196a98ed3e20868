"""Features of whole videos: the mean over uniformly spread clips (Section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import VideoError
from crosspair.models import CPD
from crosspair.precision import autocast
from crosspair.video import centre_loader, uniform_positions

logger = logging.getLogger(__name__)

CLIPS = 10  # uniformly spread over a video (Section 4.2)


@dataclass(frozen=True)
class Features:
    """What a model makes of the videos of a manifest.

    Attributes:
        rows: (V,) int64, the videos' rows in the manifest, ascending; unreadable ones are absent.
        visual: (V, F) float32, the mean visual feature (before the mapping layer).
        embedding: (V, D) float32, the mean embedding f_v, of unit norm again.
        clips: how many clips of each video the means are over.
        failures: (pair_id, message) of each video that this process had to leave out.
    """

    rows: torch.Tensor
    visual: torch.Tensor
    embedding: torch.Tensor
    clips: int
    failures: list[tuple[str, str]]


@torch.no_grad()
def extract_features(
    model: CPD,
    manifest: Manifest,
    *,
    clips: int = CLIPS,
    batch_size: int = 32,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Encode every video of a manifest.

    Args:
        model: in eval mode while this runs, and afterwards as it was.
        manifest: the videos.
        clips: uniformly spread clips a video (10 in the paper).
        batch_size: clips that go through the network at a time.
        workers: decoding processes.
        world: where to compute, and which share (every ``size``-th video) of the work is this
            process's; all processes get all features.
        precision: see `crosspair.config.TrainingConfig`.
        progress: called with the clips done and their number.

    Raises:
        VideoError: none of the videos can be read.
    """
    world = world or World()
    mine = list(range(world.rank, len(manifest), world.size))
    loader = centre_loader(
        manifest.clips(),
        mine,
        uniform_positions(clips),
        model.clip,
        batch_size=batch_size,
        workers=workers,
    )
    visual = torch.zeros(len(manifest), model.video_encoder.features, device=world.device)
    embedding = torch.zeros(len(manifest), model.head.embedding, device=world.device)
    count = torch.zeros(len(manifest), device=world.device)
    broken: dict[int, str] = {}
    done = 0
    with _evaluating(model):
        for batch in loader:
            broken.update(batch.failures)
            if len(batch.rows):
                rows = batch.rows.to(world.device)
                pixels = batch.clips.to(world.device, non_blocking=True)
                with autocast(world.device, precision):
                    of_clips, f_v = model.encode_video(pixels)
                visual.index_add_(0, rows, of_clips.float())
                embedding.index_add_(0, rows, f_v)
                count.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float))
            done += len(batch.rows) + len(batch.failures)
            if progress:
                progress(done, len(mine) * clips)
    count[list(broken)] = 0  # a video counts whole or not at all
    visual, embedding, count = world.sum(visual), world.sum(embedding), world.sum(count)
    rows = count.nonzero().squeeze(1)
    if not len(rows):
        reason = next(iter(broken.values()), "there are none")
        raise VideoError(f"none of the {len(manifest)} videos can be read: {reason}")
    ids = manifest.column("pair_id")
    failures = [(ids[row], message) for row, message in sorted(broken.items())]
    for pair_id, message in failures:
        logger.warning("left out %s: %s", pair_id, message)
    per_video = count[rows].unsqueeze(1)
    return Features(
        rows=rows.cpu(),
        visual=(visual[rows] / per_video).cpu(),
        embedding=F.normalize(embedding[rows] / per_video, dim=1).cpu(),
        clips=clips,
        failures=failures,
    )


@torch.no_grad()
def embed_texts(model: CPD, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embeddings f_t (T, D) float32 of unit norm, on the CPU, with the model in eval mode."""
    with _evaluating(model):
        parts = [
            model.encode_text(texts[i : i + batch_size]).cpu()
            for i in range(0, len(texts), batch_size)
        ]
    return torch.cat(parts) if parts else torch.empty(0, model.head.embedding)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Module by module, as stage I trains a model whose language model stays in eval mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
