"""A run folder: its recipe, its lines of metrics, its checkpoints, its model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.distributed import World
from crosspair.errors import RecipeError, RunError
from crosspair.files import read_jsonl, write_atomically
from crosspair.recipes import dump_recipe, read_recipe, recipe_settings

METRICS, RECIPE, CHECKPOINTS, MODEL = "metrics.jsonl", "recipe.yaml", "checkpoints", "model"
ORIGIN = "manifest.json"
# What changes no number, and may be another when a run goes on.
MUTABLE_KEYS = frozenset({"training.workers", "training.log_every", "training.checkpoint_steps"})
NFS_CACHE_TIMEOUT_S = 90  # s after which network file systems look anew


class RunFolder:
    """Opens a run, new or to be resumed, and writes its lines of metrics.

    Args:
        path: the folder; made if need be.
        recipe: what is to be run.
        manifest: what the pairs are (a manifest's hash), so that a run is not resumed on others.
        resume: go on with the run that the folder holds; begin where there is none.
        world: only rank 0 writes.
        also: what else the run depends on, by name, as the weights that it begins with.

    Raises:
        RunError: the folder holds a run and ``resume`` is not set, or a run of another recipe or
            of other pairs, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe | FinetuneRecipe,
        manifest: str,
        *,
        resume: bool,
        world: World,
        also: Mapping[str, str] | None = None,
    ) -> None:
        origin = {"manifest": manifest, **(also or {})}
        self.path, self.world = path, world
        self.checkpoints, self.model = path / CHECKPOINTS, path / MODEL
        if (path / RECIPE).exists():
            if not resume:
                raise RunError(
                    f"{path} already holds a run; go on with it by --resume, or name another folder"
                )
            self._check_same(recipe)
            self._check_origin(origin)
        elif path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder")
        world.barrier()
        if world.is_main:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                write_atomically(path / ORIGIN, json.dumps(origin) + "\n")
                write_atomically(path / RECIPE, dump_recipe(recipe))
            except OSError as error:
                raise RunError(f"run folder {path} cannot be written: {error.strerror}") from error
        world.barrier()
        _wait_for(path / ORIGIN)
        # What the first process finds there: other machines may see the newest folder only later.
        self.last_step = int(world.counts(last_step(self.checkpoints) or 0)[0]) or None

    def __enter__(self) -> Self:
        if self.world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._forget_after(self.last_step or 0)
            self._lines = (self.path / METRICS).open("a", encoding="utf-8")
            self._events = SummaryWriter(
                str(self.path / "tensorboard"), purge_step=(self.last_step or 0) + 1
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.world.is_main:
            # On a full disk both try again to write, and would hide the message that tells of it.
            with suppress(OSError):
                self._lines.close()
            with suppress(OSError):
                self._events.close()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``, and its numbers to TensorBoard."""
        if not self.world.is_main:
            return
        line = json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False)
        try:
            self._lines.write(line + "\n")
            self._lines.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise RunError(f"{self.path / METRICS} cannot be written: {error.strerror}") from error

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, and a line that a kill cut short."""
        lines = (line for line in read_jsonl(self.path / METRICS) if isinstance(line, dict))
        kept = [line for line in lines if line.get("step", step + 1) <= step]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomically(self.path / METRICS, text)

    def _check_same(self, recipe: Recipe | FinetuneRecipe) -> None:
        file = str(self.path / RECIPE)
        try:
            saved = recipe_settings(
                read_recipe(Recipe, file)
                if isinstance(recipe, Recipe)
                else read_recipe(FinetuneRecipe, file)
            )
        except RecipeError as error:
            raise RunError(f"{self.path} holds a run of another kind: {error}") from error
        now = recipe_settings(recipe)
        other = [key for key in now if now[key] != saved[key] and key not in MUTABLE_KEYS]
        if other:
            differences = ", ".join(f"{key} was {saved[key]}, not {now[key]}" for key in other)
            raise RunError(f"{self.path} holds a run of another recipe: {differences}")

    def _check_origin(self, origin: Mapping[str, str]) -> None:
        try:
            saved = {"init": "random", **json.loads((self.path / ORIGIN).read_text())}
            begun_with = {name: saved[name] for name in origin}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path / ORIGIN} is missing or damaged") from error
        for name, now in origin.items():
            if begun_with[name] != now:
                what = "on other pairs" if name == "manifest" else f"with another {name}"
                raise RunError(
                    f"{self.path} holds a run {what}: "
                    f"its {name} was {begun_with[name]}, this one is {now}"
                )


def _wait_for(file: Path) -> None:
    """Until a file that is there can be seen on this machine, too."""
    for _ in range(NFS_CACHE_TIMEOUT_S):
        if file.exists():
            return
        time.sleep(1)
    raise RunError(
        f"{file.parent} is not the folder that the first process made: all machines need one run "
        "folder, on a file system that they share"
    )


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
