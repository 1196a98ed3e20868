"""Features of whole videos: the mean over uniformly spread clips (Section 4.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import ManifestError, VideoError
from crosspair.models import CPD
from crosspair.precision import autocast
from crosspair.video import Batch, centre_loader, decoding, uniform_positions

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
        failures: (pair_id, message) of each video that had to be left out, by any process.
    """

    rows: torch.Tensor
    visual: torch.Tensor
    embedding: torch.Tensor
    clips: int
    failures: list[tuple[str, str]]


@dataclass
class Encoded:
    """What came of some videos: a batch of them, or many batches put together.

    Attributes:
        rows: of the videos that could be read, v in number.
        visual: (F,) float32 on the CPU for each of them: the mean visual feature.
        embedding: (D,) float32 likewise: the mean embedding, of unit norm again.
        failures: a message for the row of each of the others.
    """

    rows: list[int] = field(default_factory=list)
    visual: list[torch.Tensor] = field(default_factory=list)
    embedding: list[torch.Tensor] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)

    def extend(self, other: Encoded) -> None:
        """Take in the videos of another."""
        self.rows += other.rows
        self.visual += other.visual
        self.embedding += other.embedding
        self.failures |= other.failures


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
    """Encode every video of a manifest; rows with an error are left out by name.

    Args:
        model: in eval mode while this runs, and afterwards as it was.
        manifest: the videos.
        clips: uniformly spread clips a video (10 in the paper).
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes.
        world: where to compute, and which share of the work is this process's; all processes get
            all features, and those that one process alone would get, to the last digit, as long as
            a process computes on as many threads.
        precision: see `crosspair.config.TrainingConfig`.
        progress: called with the clips done by this process and their number.

    Raises:
        VideoError: none of the videos can be read.
    """
    world = world or World()
    usable, failures = usable_rows(manifest)
    mine = [row for group in shares(usable, clips, batch_size, world) for row in group]
    visual = torch.zeros(len(manifest), model.video_encoder.features)
    embedding = torch.zeros(len(manifest), model.head.embedding)
    count = torch.zeros(len(manifest), dtype=torch.long)
    broken: dict[int, str] = {}
    for found in encode_videos(
        model, manifest, mine,
        clips=clips, batch_size=batch_size, workers=workers, world=world, precision=precision,
    ):  # fmt: skip
        broken |= found.failures
        for row, of_row, f_v in zip(found.rows, found.visual, found.embedding, strict=True):
            visual[row], embedding[row] = of_row, f_v
            count[row] += 1
        if progress:
            progress((int(count.sum()) + len(broken)) * clips, len(mine) * clips)
    failures |= _gathered(broken, world)
    # A row that is not this process's is all zeros, so that these sums change no digit.
    visual, embedding, count = (
        world.sum(each.to(world.device)).cpu() for each in (visual, embedding, count)
    )
    rows = count.nonzero().squeeze(1)
    if len(rows) + len(failures) != len(manifest) or len(rows) != int(count.sum()):
        raise ManifestError(
            f"{manifest.path}: {int(count.sum())} videos were encoded and {len(failures)} left "
            f"out, of {len(manifest)}; have the processes read different manifests?"
        )
    named = name_failures(manifest, failures, world)
    if not len(rows):
        raise none_readable(manifest, failures)
    return Features(rows, visual[rows], embedding[rows], clips, named)


def usable_rows(manifest: Manifest) -> tuple[list[int], dict[int, str]]:
    """Rows without an error, and the errors of the others."""
    errors = manifest.column("error")
    known = {row: error for row, error in enumerate(errors) if error}
    return [row for row in range(len(errors)) if row not in known], known


def shares(rows: Sequence[int], clips: int, batch_size: int, world: World) -> list[list[int]]:
    """This process's share of videos, in the groups that go through the network together.

    The groups do not depend on the number of processes, and hence neither do the features.
    """
    videos = max(1, batch_size // clips)
    groups = [list(rows[i : i + videos]) for i in range(0, len(rows), videos)]
    return groups[world.rank :: world.size]


def encode_videos(
    model: CPD,
    manifest: Manifest,
    rows: Sequence[int],
    *,
    clips: int,
    batch_size: int,
    workers: int,
    world: World,
    precision: str,
) -> Iterator[Encoded]:
    """Encode videos batch by batch, with the model in eval mode.

    Args:
        rows: whole groups of `shares`.

    Yields:
        What came of the videos that are done by now, but for those told before.

    Raises:
        VideoError: a decoding process died, or gives nothing any more.
    """
    # Whole videos, or a whole fraction of one where a batch may not hold as many clips.
    part = max(size for size in range(1, min(clips, batch_size) + 1) if clips % size == 0)
    together = max(1, batch_size // clips) * part
    loader = centre_loader(
        manifest.clips(), rows, uniform_positions(clips), model.clip,
        batch_size=together, workers=workers,
    )  # fmt: skip
    sums: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
    with _evaluating(model), decoding(manifest.path):
        for batch in loader:
            of_parts = _encode(model, batch, part, world, precision)
            yield _finished(of_parts, batch, sums, part, clips)


@torch.no_grad()
def embed_texts(model: CPD, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embeddings f_t (T, D) float32 of unit norm, on the CPU, with the model in eval mode."""
    with _evaluating(model):
        parts = [
            model.encode_text(texts[i : i + batch_size]).cpu()
            for i in range(0, len(texts), batch_size)
        ]
    return torch.cat(parts) if parts else torch.empty(0, model.head.embedding)


def name_failures(
    manifest: Manifest, failures: dict[int, str], world: World
) -> list[tuple[str, str]]:
    """(pair_id, message) of rows that are left out, in their order; the first process tells."""
    ids = manifest.column("pair_id")
    named = [(ids[row], message) for row, message in sorted(failures.items())]
    for pair_id, message in named if world.is_main else ():
        logger.warning("left out %s: %s", pair_id, message)
    return named


def none_readable(manifest: Manifest, failures: dict[int, str]) -> VideoError:
    """The fault of a manifest whose videos all fail."""
    reason = next(iter(failures.values()), "there are none")
    return VideoError(f"none of the {len(manifest)} videos can be read: {reason}")


@torch.no_grad()
def _encode(
    model: CPD, batch: Batch, part: int, world: World, precision: str
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """(row, sum of visual features, sum of embeddings) over each ``part`` clips of a video."""
    whole = ~torch.isin(batch.rows, torch.tensor([row for row, _ in batch.failures]))
    if not whole.any():
        return []
    with autocast(world.device, precision):
        visual, embedding = model.encode_video(batch.clips.to(world.device, non_blocking=True))
    sums = (
        each[whole.to(each.device)].float().view(-1, part, each.shape[1]).sum(dim=1).cpu()
        for each in (visual, embedding)
    )
    return list(zip(batch.rows[whole][::part].tolist(), *sums, strict=True))


def _finished(
    of_parts: list[tuple[int, torch.Tensor, torch.Tensor]],
    batch: Batch,
    sums: dict[int, tuple[torch.Tensor, torch.Tensor, int]],
    part: int,
    clips: int,
) -> Encoded:
    """Add parts of videos to what is there of them; take out the videos that are whole now."""
    done = Encoded()
    for row, visual, embedding in of_parts:
        if row in sums:
            before = sums.pop(row)
            visual, embedding = before[0] + visual, before[1] + embedding
            count = before[2] + part
        else:
            count = part
        if count < clips:
            sums[row] = visual, embedding, count
        else:
            done.rows.append(row)
            done.visual.append(visual / clips)
            done.embedding.append(F.normalize(embedding, dim=0))
    # A video counts whole or not at all.
    done.failures.update(batch.failures)
    return done


def _gathered(failures: dict[int, str], world: World) -> dict[int, str]:
    """The failures of all processes."""
    if world.size == 1:
        return failures
    # As bytes in a tensor: what the processes exchange are tensors.
    text = "".join(json.dumps([row, message]) + "\n" for row, message in failures.items())
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8, device=world.device)
    everyones = bytes(world.gather_rows(mine).tolist()).decode()
    return dict(json.loads(line) for line in everyones.splitlines())


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
