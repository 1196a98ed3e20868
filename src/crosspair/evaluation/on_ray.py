"""Videos that are encoded by the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from crosspair.cluster import answers, ray_cluster
from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation.features import Encoded, encode_videos
from crosspair.isolation import cores
from crosspair.models import CPD
from crosspair.precision import dtype_for

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
) -> Iterator[list[Encoded]]:
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
    with ray_cluster(address, cores()) as ray:
        needs, slots = _share(ray, workers)
        task = ray.remote(max_retries=2, **needs)(_encode)
        # Workers are in other folders than this process.
        there = Manifest(manifest.table, manifest.path.absolute())
        tools = ray.put((model.cpu(), there, settings))  # once for each node
        for _, reference in answers(ray, lambda block: task.remote(block, tools), blocks, slots):
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


def _encode(block: Sequence[int], tools: tuple[CPD, Manifest, dict[str, Any]]) -> list[Encoded]:
    model, manifest, settings = tools
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = encode_videos(
        model.to(device), manifest, block, world=World(device=device), **settings
    )
    return [encoded for batch in batches for encoded in batch]
