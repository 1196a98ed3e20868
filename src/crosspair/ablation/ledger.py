"""An ablation's files: what each cell is told to do, what is known of it, and all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from crosspair.ablation.cells import Cell
from crosspair.ablation.plan import Plan, ProtocolName, plain
from crosspair.atomic import write_atomically

DONE, FAILED, MISSING = "done", "failed", "missing"
JOB, STATE, RESULTS = "job.json", "cell.json", "results.json"


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


def read_state(folder: Path) -> dict[str, Any]:
    """What a cell's folder says of it: status, seconds, clips, pairs, error; empty at first."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Keep what is known of a cell."""
    write_atomically(folder / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def status(folder: Path) -> str:
    """Whether a cell is done, failed, or missing still."""
    state = read_state(folder)
    if state.get("status") == DONE and (folder / RESULTS).is_file():
        return DONE
    return FAILED if state.get("status") == FAILED else MISSING


def write_ledger(out: Path, plan: Plan, cells: Sequence[Cell]) -> None:
    """Write ``plan.yaml`` and ``ablation.json``, of this moment.

    Args:
        out: the ablation's folder.
        plan: as it was resolved.
        cells: all of the plan, whether they are to be run now or not.
    """
    settings = plain(plan)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomically(out / "plan.yaml", text)
    content = {"plan": settings, "cells": [_entry(out / cell.folder, cell) for cell in cells]}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "ablation.json", text)


def _entry(folder: Path, cell: Cell) -> dict[str, Any]:
    state, now = read_state(folder), status(folder)
    return {
        "row": cell.row,
        "seed": cell.seed,
        "hash": cell.hash,
        "folder": cell.folder,
        "status": now,
        "error": state.get("error") if now == FAILED else None,  # not of an earlier trial
        "seconds": state.get("seconds", {}),
        "clips": state.get("clips", cell.clips),
        "pairs": state.get("pairs", cell.pairs),
    }
