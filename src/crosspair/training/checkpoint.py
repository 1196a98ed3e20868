"""Checkpoints: one folder each, there whole or not at all.

``checkpoints/step-00001200/`` holds ``shared.pt``, which is the same for all processes, and
``process-R.pt`` for what only process R has. A folder gets its name when all of it is on the disk.
Any number of processes can go on from it: each of them reads all files, of which it keeps its part.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from crosspair.distributed import World
from crosspair.errors import RunError

_PREFIX = "step-"


def save_checkpoint(
    folder: Path,
    step: int,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    world: World,
    keep: Collection[int] = (),
) -> None:
    """Write a checkpoint, then delete the older ones.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: optimiser steps done.
        shared: tensors and plain values that rank 0 writes for all.
        own: tensors and plain values of this process.
        world: the processes; all must call this.
        keep: steps whose checkpoints stay besides this one.

    Raises:
        RunError: it cannot be written, as on a full disk, or the machines write to folders of
            their own; older checkpoints stay as they are.
    """
    partial = folder / f".{_PREFIX}{step:08d}.partial"
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    world.barrier()
    fault = ""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if world.is_main:
            _write(partial / "shared.pt", {**shared, "step": step, "world_size": world.size})
        _write(partial / _own(world.rank), own)
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk behind the latter
        cause = error.__context__ or error
        fault = (getattr(cause, "strerror", None) or str(cause)).splitlines()[0]
    failed = int(world.counts(int(bool(fault))).sum())
    if not failed:
        missing = [rank for rank in range(world.size) if not (partial / _own(rank)).exists()]
        if missing:
            fault = f"{_own(missing[0])} is elsewhere: all machines need one folder"
        failed = int(world.counts(len(missing)).sum())
    if failed:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        last = last_step(folder)
        raise RunError(
            f"{folder}: the checkpoint of step {step} cannot be written "
            f"({fault or 'another process failed'}); "
            + (f"that of step {last} is whole: " if last else "there is none yet; ")
            + "make room on the disk and go on with --resume"
        )
    if world.is_main:
        final = folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for other in _steps(folder):
            if other != step and other not in keep:
                shutil.rmtree(folder / f"{_PREFIX}{other:08d}", ignore_errors=True)
    world.barrier()


def load_checkpoint(folder: Path, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what `save_checkpoint` wrote: ``shared``, and the ``own`` of each process there was.

    Tensors of the latter stay in their files until they are used.

    Raises:
        RunError: a file is missing or damaged.
    """
    whole = folder / f"{_PREFIX}{step:08d}"
    shared = _read(whole / "shared.pt")
    every = range(shared["world_size"])
    return shared, [_read(whole / _own(rank), mapped=True) for rank in every]


def last_step(folder: Path) -> int | None:
    """The step of the newest whole checkpoint, or None."""
    return max(_steps(folder), default=None)


def _own(rank: int) -> str:
    return f"process-{rank}.pt"


def _steps(folder: Path) -> list[int]:
    found = [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*/")]
    return [int(step) for step in found if step.isdecimal()]  # copies have other names


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=mapped
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: not a readable checkpoint ({reason})") from error
    return content
