"""Features of whole videos: the mean over evenly spaced clips (Section 4.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from crosspair.cluster import map_on_ray, ray_cluster
from crosspair.corpora.manifest import Manifest
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import CrosspairError, ManifestError, RunError, VideoError
from crosspair.evaluation.encode import CLIPS, InferenceEngine, encode_features, eval_mode
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.cpd import CPD
from crosspair.workers import cpu_count

logger = logging.getLogger(__name__)

_EMPTY = torch.empty(0)
RAY_TASK_VIDEOS = 128  # about: enough to make the start of a task's workers negligible


@dataclass(frozen=True)
class Features:
    """Features of the videos of a manifest.

    Attributes:
        rows: (V,) int64, the videos' rows in the manifest, ascending; unreadable ones are absent.
        visual: (V, F) float32, the mean visual feature (before the mapping layer).
        embedding: (V, D) float32, the mean embedding f_v, normalized.
        clips: Number of clips per video.
        failures: (pair_id, message) of each video that was skipped, by any process.
    """

    rows: torch.Tensor
    visual: torch.Tensor
    embedding: torch.Tensor
    clips: int
    failures: list[tuple[str, str]]


class VideoFeatures(NamedTuple):
    """Features of one video.

    Attributes:
        row: Row of the video in the manifest.
        visual: (F,) float32 on the CPU, the mean visual feature; empty if there is an error.
        embedding: (D,) float32 on the CPU, the mean embedding, normalized; empty likewise.
        error: Why the video could not be read; empty if it could.
    """

    row: int
    visual: torch.Tensor = _EMPTY
    embedding: torch.Tensor = _EMPTY
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
    """Encode every video of a manifest; rows with an error are skipped and listed.

    Args:
        model: Set to eval mode while this runs.
        manifest: The videos.
        clips: Evenly spaced clips per video (10 in the paper).
        batch_size: Maximum number of clips in a call of the network.
        workers: Decoding processes.
        world: Device and processes. Each process encodes some of the videos and gets all features:
            the same as a single process, if each computes on as many threads.
        precision: See `crosspair.config.TrainingConfig`.
        progress: Called with the number of clips encoded by this process and their total.

    Raises:
        ManifestError: The processes read different manifests.
        VideoError: None of the videos can be read.
    """
    world = world or World()
    usable, failures = usable_rows(manifest)
    rows = [row for group in shard_batches(usable, clips, batch_size, world) for row in group]
    visual = torch.zeros(len(manifest), model.video_encoder.features)
    embedding = torch.zeros(len(manifest), model.head.embedding)
    count = torch.zeros(len(manifest), dtype=torch.long)
    unreadable: dict[int, str] = {}
    for video in encode_videos(
        model, manifest, rows,
        clips=clips, batch_size=batch_size, workers=workers, world=world, precision=precision,
    ):  # fmt: skip
        if video.error:
            unreadable[video.row] = video.error
        else:
            visual[video.row], embedding[video.row] = video.visual, video.embedding
            count[video.row] += 1
        if progress:
            progress((int(count.sum()) + len(unreadable)) * clips, len(rows) * clips)
    skipped = gather_failures(manifest, failures | unreadable, world)
    # Rows of other processes are zeros, so that the sums over processes are exact.
    visual, embedding, count = (world.sum(values.to(world.device)).cpu() for values in (visual, embedding, count))
    encoded = count.nonzero().squeeze(1)
    if len(encoded) + len(skipped) != len(manifest) or len(encoded) != int(count.sum()):
        raise ManifestError(
            f"{manifest.path}: {int(count.sum())} videos were encoded and {len(skipped)} skipped, "
            f"of {len(manifest)}; check that all processes read the same manifest"
        )
    return Features(encoded, visual[encoded], embedding[encoded], clips, skipped)


def usable_rows(manifest: Manifest) -> tuple[list[int], dict[int, str]]:
    """Return the indices of the rows with an empty ``error`` column, and the errors of the others by row."""
    errors = {row: error for row, error in enumerate(manifest.column("error")) if error}
    return [row for row in range(len(manifest)) if row not in errors], errors


def shard_batches(rows: Sequence[int], clips: int, batch_size: int, world: World) -> list[list[int]]:
    """Divide rows into groups that form a batch of the network, and return the groups of this process.

    The groups, and hence the features, do not depend on the number of processes.
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
) -> Iterator[VideoFeatures]:
    """Encode rows of a manifest: the mean features over evenly spaced clips of each video.

    Args:
        rows: Rows of the manifest, in whole groups of `shard_batches`.

    Yields:
        Features per video, in order; with only an `error` if it cannot be read.
    """
    # A batch is some whole videos, or a whole fraction of one if it cannot hold all its clips.
    per_job = max(size for size in range(1, min(clips, batch_size) + 1) if clips % size == 0)
    together = max(1, batch_size // clips) * per_job
    engine = InferenceEngine(model, world.device, precision, together, workers)
    sources = manifest.clips()
    plans = [whole_video_plan(row, sources[row], clips, per_job) for row in rows]
    for video in encode_features(engine, plans):
        if video.spans:
            yield VideoFeatures(video.row, video.visual[0], video.embedding[0])
        else:
            yield VideoFeatures(video.row, error=video.failure)


@torch.no_grad()
def embed_texts(model: CPD, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embed texts.

    Returns:
        (T, D) float32 embeddings f_t of unit norm, on the CPU.
    """
    with eval_mode(model):
        parts = [model.encode_text(texts[i : i + batch_size]).cpu() for i in range(0, len(texts), batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, model.head.embedding)


def gather_failures(manifest: Manifest, failures: dict[int, str], world: World) -> list[tuple[str, str]]:
    """Collect the failures (message by row) of all processes; the main process logs them.

    Returns:
        (pair_id, message) of the failed rows of all processes, in order of rows.

    Raises:
        VideoError: All rows of the manifest failed.
    """
    gathered = map(json.loads, world.gather_texts(json.dumps(list(failures.items()))))
    messages = {row: message for pairs in gathered for row, message in pairs}
    ids = manifest.column("pair_id")
    skipped = [(ids[row], message) for row, message in sorted(messages.items())]
    for pair_id, message in skipped if world.is_main else ():
        logger.warning("skipped %s: %s", pair_id, message)
    if len(skipped) == len(manifest):
        raise no_readable_video_error(manifest, messages)
    return skipped


def no_readable_video_error(manifest: Manifest, failures: dict[int, str]) -> VideoError:
    """Return the error for a manifest of which no video can be read, with the first failure as the reason."""
    reason = next(iter(failures.values()), "the manifest has no rows")
    return VideoError(f"{manifest.path}: none of the {len(manifest)} videos can be read: {reason}")


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
) -> Iterator[VideoFeatures]:
    """Run `encode_videos` in tasks of a Ray cluster; yield features as tasks finish, not in order.

    A task has one GPU, or as many cores as it has workers and one more. Videos must have the same paths, or URLs, on
    all nodes, and this package must be installed there. Ray repeats the task of a lost node.

    Args:
        world: This process alone; its device decides what precision "auto" is.
        address: Address of a running cluster, see `ray_cluster`.

    Raises:
        RunError: There is no such cluster, or a task failed.
    """
    settings: dict[str, Any] = {
        "clips": clips, "batch_size": batch_size, "workers": workers,
        "precision": "bf16" if dtype_for(world.device, precision) == torch.bfloat16 else "fp32",
    }  # fmt: skip
    group = max(1, batch_size // clips)  # videos that form a batch of the network
    size = group * max(1, RAY_TASK_VIDEOS // group)
    blocks = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    with ray_cluster(address, cpu_count()) as ray:
        resources, slots = _task_resources(ray, workers)
        task = ray.remote(max_retries=2, **resources)(_encode_block)
        # Relative paths would start elsewhere in Ray's workers.
        absolute = Manifest(manifest.table, manifest.path.absolute())
        inputs = ray.put((model.cpu(), absolute, settings))  # once per node
        submit: Callable[[Any], Any] = lambda block: task.remote(block, inputs)  # noqa: E731
        for _, reference in map_on_ray(ray, submit, blocks, slots):
            try:
                yield from ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, CrosspairError):
                    raise cause from None
                reason = str(error).strip().splitlines()[-1]
                raise RunError(f"a Ray task failed ({type(error).__name__}: {reason})") from error


def _task_resources(ray: Any, workers: int) -> tuple[dict[str, int], int]:
    """Return the Ray resources of a task (one GPU, or cores if there is none), and how many tasks to submit at once."""
    resources = ray.cluster_resources()
    if gpus := int(resources.get("GPU", 0)):
        return {"num_gpus": 1}, 2 * gpus
    # A task that requires more cores than any node has would wait forever.
    smallest = min(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    cores = max(1, min(workers + 1, smallest))
    return {"num_cpus": cores}, 2 * max(1, int(resources.get("CPU", 1)) // cores)


def _encode_block(block: Sequence[int], inputs: tuple[CPD, Manifest, dict[str, Any]]) -> list[VideoFeatures]:
    """Encode rows of a manifest in a Ray task, on a GPU if it has one."""
    model, manifest, settings = inputs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(device=device)
    return list(encode_videos(model.to(device), manifest, block, world=world, **settings))
