"""What a cell's process is told to do: ``job.json`` in the cell's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosspair.ablation.plan import ProtocolName
from crosspair.atomic import write_atomically

JOB = "job.json"
STOPPED = 75  # status of a process that was asked to stop and can go on
ASK_EVERY = 5.0  # s between requests to stop


@dataclass(frozen=True)
class Job:
    """What ``job.json`` in a cell's folder asks for; see `crosspair.ablation.plan`.

    Attributes:
        recipe: of pre-training.
        manifest: file of the pairs.
        protocols, clips, videos: frozen ones, clips a video, and the manifest of what is tested.
        finetuning: none, or ``recipe``, ``videos`` (a manifest), ``clips`` and ``crops``.
        beside_random: whether random weights are tested, too.
    """

    recipe: dict[str, Any]
    manifest: str
    protocols: tuple[ProtocolName, ...]
    clips: int
    videos: str
    finetuning: dict[str, Any] | None
    beside_random: bool


def write_job(folder: Path, job: Job) -> None:
    """Into a cell's folder."""
    write_atomically(folder / JOB, json.dumps(asdict(job), indent=2) + "\n")


def read_job(folder: Path) -> Job:
    """From a cell's folder."""
    return Job(**json.loads((folder / JOB).read_text(encoding="utf-8")))
