"""Features of whole videos: the mean over uniformly spread clips (Section 4.2)."""

from __future__ import annotations

import functools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.cluster import map_on_ray, ray_cluster
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, dtype_for
from crosspair.distributed import World
from crosspair.errors import CrosspairError, ManifestError, RunError, VideoError
from crosspair.models.cpd import CPD
from crosspair.models.inference import inference
from crosspair.video.decode import uniform_positions
from crosspair.video.loader import Batch, centre_loader, explain_dead_workers
from crosspair.workers import cpu_count

logger = logging.getLogger(__name__)

CLIPS = 10  # uniformly spread over a video (Section 4.2)
_NONE = torch.empty(0)


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


class VideoFeatures(NamedTuple):
    """What came of one video.

    Attributes:
        row: of the manifest.
        visual: (F,) float32 on the CPU, the mean visual feature; empty where there is an error.
        embedding: (D,) float32 likewise, the mean embedding, of unit norm again.
        error: why it could not be read; empty where it could.
    """

    row: int
    visual: torch.Tensor = _NONE
    embedding: torch.Tensor = _NONE
    error: str = ""


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
    mine = [row for group in shard_batches(usable, clips, batch_size, world) for row in group]
    visual = torch.zeros(len(manifest), model.video_encoder.features)
    embedding = torch.zeros(len(manifest), model.head.embedding)
    count = torch.zeros(len(manifest), dtype=torch.long)
    broken: dict[int, str] = {}
    for encoded in encode_videos(
        model, manifest, mine,
        clips=clips, batch_size=batch_size, workers=workers, world=world, precision=precision,
    ):  # fmt: skip
        for each in encoded:
            if each.error:
                broken[each.row] = each.error
            else:
                visual[each.row], embedding[each.row] = each.visual, each.embedding
                count[each.row] += 1
        if progress:
            progress((int(count.sum()) + len(broken)) * clips, len(mine) * clips)
    named = gather_failures(manifest, failures | broken, world)
    # A row that is not this process's is all zeros, so that these sums change no digit.
    visual, embedding, count = (
        world.sum(each.to(world.device)).cpu() for each in (visual, embedding, count)
    )
    rows = count.nonzero().squeeze(1)
    if len(rows) + len(named) != len(manifest) or len(rows) != int(count.sum()):
        raise ManifestError(
            f"{manifest.path}: {int(count.sum())} videos were encoded and {len(named)} left "
            f"out, of {len(manifest)}; have the processes read different manifests?"
        )
    return Features(rows, visual[rows], embedding[rows], clips, named)


def usable_rows(manifest: Manifest) -> tuple[list[int], dict[int, str]]:
    """Rows without an error, and the errors of the others."""
    errors = manifest.column("error")
    known = {row: error for row, error in enumerate(errors) if error}
    return [row for row in range(len(errors)) if row not in known], known


def shard_batches(
    rows: Sequence[int], clips: int, batch_size: int, world: World
) -> list[list[int]]:
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
) -> Iterator[list[VideoFeatures]]:
    """Encode videos batch by batch, with the model in eval mode.

    Args:
        rows: whole groups of `shares`.

    Yields:
        The videos that a batch completes. One that fails counts not at all, and may come twice.

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
    begun: dict[int, list[list[torch.Tensor]]] = defaultdict(list)
    fastest = inference(model.video_encoder, world.device, precision)
    with eval_mode(model), fastest, explain_dead_workers(manifest.path):
        for batch in loader:
            done = [
                VideoFeatures(row, error=message) for row, message in dict(batch.failures).items()
            ]
            for row, *sums in _encode(model, batch, part, world, precision):
                begun[row].append(sums)
                if len(begun[row]) * part == clips:
                    visual, embedding = map(_added, zip(*begun.pop(row), strict=True))
                    done.append(VideoFeatures(row, visual / clips, F.normalize(embedding, dim=0)))
            yield done


@torch.no_grad()
def embed_texts(model: CPD, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embeddings f_t (T, D) float32 of unit norm, on the CPU, with the model in eval mode."""
    with eval_mode(model):
        parts = [
            model.encode_text(texts[i : i + batch_size]).cpu()
            for i in range(0, len(texts), batch_size)
        ]
    return torch.cat(parts) if parts else torch.empty(0, model.head.embedding)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode; afterwards it is as it was, module by module.

    Stage I trains a model whose language model stays in eval mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def gather_failures(
    manifest: Manifest, failures: dict[int, str], world: World
) -> list[tuple[str, str]]:
    """(pair_id, message) of rows that any process leaves out, in their order; the first one tells.

    Raises:
        VideoError: no row is left.
    """
    everyones = map(json.loads, world.gather_texts(json.dumps(list(failures.items()))))
    messages = {row: message for of_one in everyones for row, message in of_one}
    ids = manifest.column("pair_id")
    named = [(ids[row], message) for row, message in sorted(messages.items())]
    for pair_id, message in named if world.is_main else ():
        logger.warning("left out %s: %s", pair_id, message)
    if len(named) == len(manifest):
        raise no_readable_video_error(manifest, messages)
    return named


def no_readable_video_error(manifest: Manifest, failures: dict[int, str]) -> VideoError:
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


def _added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, parts)


BLOCK = 128  # videos of a task, about: enough for the start of its workers to be nothing


def encode_on_ray(
    model: CPD,
    manifest: Manifest,
    rows: Sequence[int],
    *,
    clips: int,
    batch_size: int,
    workers: int,
    world: World,
    precision: str,
    address: str | None = None,
) -> Iterator[list[VideoFeatures]]:
    """`encode_videos` by tasks of Ray: each has a GPU, or cores for its workers and itself.

    Videos must be at the same paths, or URLs, on all nodes, and this package must be installed
    there. A task whose node is lost is done by another.

    Args:
        world: this process alone; what it computes in decides what precision "auto" is.
        address: of a running cluster, see `ray_cluster`.

    Raises:
        RunError: there is no such cluster, or a task ended for a reason of its own.
        VideoError: a decoding process died, or gives nothing any more.
    """
    settings: dict[str, Any] = {
        "clips": clips, "batch_size": batch_size, "workers": workers,
        "precision": "bf16" if dtype_for(world.device, precision) == torch.bfloat16 else "fp32",
    }  # fmt: skip
    videos = max(1, batch_size // clips)  # that go through the network together
    size = videos * max(1, BLOCK // videos)
    blocks = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    with ray_cluster(address, cpu_count()) as ray:
        needs, slots = _share(ray, workers)
        task = ray.remote(max_retries=2, **needs)(_encode_on_ray)
        # Workers are in other folders than this process.
        there = Manifest(manifest.table, manifest.path.absolute())
        tools = ray.put((model.cpu(), there, settings))  # once for each node
        for _, reference in map_on_ray(ray, lambda block: task.remote(block, tools), blocks, slots):
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, CrosspairError):
                    raise cause from None
                reason = str(error).strip().splitlines()[-1]
                raise RunError(f"Ray lost a task ({type(error).__name__}: {reason})") from error


def _share(ray: Any, workers: int) -> tuple[dict[str, int], int]:
    """What a task needs of a node, and how many tasks to ask for at a time."""
    resources = ray.cluster_resources()
    if gpus := int(resources.get("GPU", 0)):
        return {"num_gpus": 1}, 2 * gpus
    # A task that needs more cores than any node has would wait for ever.
    smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    each = max(1, min(workers + 1, smallest))
    return {"num_cpus": each}, 2 * max(1, int(resources.get("CPU", 1)) // each)


def _encode_on_ray(
    block: Sequence[int], tools: tuple[CPD, Manifest, dict[str, Any]]
) -> list[VideoFeatures]:
    model, manifest, settings = tools
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = encode_videos(
        model.to(device), manifest, block, world=World(device=device), **settings
    )
    return [encoded for batch in batches for encoded in batch]
