"""The run folder: recipe, metrics, checkpoints and model."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import torch

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.distributed import World
from crosspair.errors import RecipeError, RunError, format_error
from crosspair.files import (
    JsonlWriter,
    check_output,
    check_output_folder,
    file_lock,
    read_jsonl,
    wait_for_file,
    write_atomically,
)
from crosspair.recipes import dump_recipe, read_recipe, recipe_settings

logger = logging.getLogger(__name__)

METRICS, RECIPE, CHECKPOINTS, MODEL = "metrics.jsonl", "recipe.yaml", "checkpoints", "model"
ORIGIN, LOCK = "manifest.json", ".run.lock"
# Keys that do not change the training and may differ when a run is resumed.
MUTABLE_KEYS = frozenset({
    "training.workers", "training.log_every", "training.checkpoint_steps",
    "multiview.clips", "multiview.crops", "multiview.crop_scale",
})  # fmt: skip
_PREFIX = "step-"  # of a checkpoint's folder


def check_run_folder(path: Path) -> None:
    """Raise RunError unless a folder is absent, empty, or has a run that has at least begun."""
    check_output_folder(path, "a run folder", RECIPE, ORIGIN)
    if not (path / RECIPE).is_file():
        check_output(path / ORIGIN, "a record of a run's inputs")


class RunFolder:
    """Creates or resumes a run folder, and logs metrics to it.

    Args:
        path: the folder; created if it does not exist.
        recipe: recipe of the run.
        manifest: hash of the manifest.
        resume: continue the run in the folder, if there is one.
        world: the processes; only rank 0 writes.
        origin: other inputs that must not change on resume, for example the initial weights.
        manifest_file: path of the manifest, recorded for the report; it may change.

    Raises:
        RunError: the folder contains a run and ``resume`` is False, or a run with another recipe,
            manifest or origin, or only damaged checkpoints; another process trains in it; or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe | FinetuneRecipe,
        manifest: str,
        *,
        resume: bool,
        world: World,
        origin: Mapping[str, str] | None = None,
        manifest_file: str = "",
    ) -> None:
        origin = {"manifest": manifest, **(origin or {})}
        self.path, self.world = path, world
        self.checkpoints, self.model = path / CHECKPOINTS, path / MODEL
        if (path / RECIPE).exists():
            if not resume:
                raise RunError(f"{path} already contains a run; continue it with --resume or choose another folder")
            _check_recipe(path, recipe)
            _check_origin(path, origin)
        elif path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder")
        self._open = ExitStack()
        if world.is_main:
            self._open.enter_context(file_lock(path / LOCK, f"another process trains in {path}"))
        world.barrier()
        if world.is_main:
            write_atomically(path / ORIGIN, json.dumps({**origin, "file": manifest_file}) + "\n")
            write_atomically(path / RECIPE, dump_recipe(recipe))
        world.barrier()
        _wait_for_origin(path)
        # From rank 0, since other machines may see the newest checkpoint later.
        step = find_checkpoint(self.checkpoints) if world.is_main else None
        self.last_step = int(world.gather_counts(step or 0)[0]) or None

    def __enter__(self) -> Self:
        if self.world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            step = self.last_step or 0
            _truncate_metrics(self.path / METRICS, step or -1)  # without a checkpoint, lines of step 0 are repeated
            self._metrics = JsonlWriter(self.path / METRICS)
            self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            if self.world.is_main:
                self._metrics.__exit__(*error)
                with suppress(OSError):  # on a full disk closing fails again and would hide the first error
                    self._events.close()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``, and its numbers to the TensorBoard log, on rank 0 only.

        Numbers that are not finite are null in the line: JSON has no such numbers.
        """
        if not self.world.is_main:
            return
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self._metrics.add({"kind": kind, "step": step, **line})
        try:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise RunError(f"{self.path / 'tensorboard'} cannot be written: {format_error(error)}") from error


def _truncate_metrics(file: Path, step: int) -> None:
    """Drop lines after a step, and incomplete lines of a killed run."""
    lines = (line for line in read_jsonl(file) if isinstance(line, dict))
    kept = [line for line in lines if line.get("step", step + 1) <= step]
    write_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def _check_recipe(path: Path, recipe: Recipe | FinetuneRecipe) -> None:
    """Raise RunError if the run's recipe differs in more than `MUTABLE_KEYS`."""
    kind: type[Any] = type(recipe)
    try:
        saved = recipe_settings(read_recipe(kind, str(path / RECIPE)))
    except RecipeError as error:
        raise RunError(f"{path} contains a run of another kind: {error}") from error
    new = recipe_settings(recipe)
    changed = [key for key in new if new[key] != saved[key] and key not in MUTABLE_KEYS]
    if changed:
        changes = ", ".join(f"{key} was {saved[key]} and is now {new[key]}" for key in changed)
        raise RunError(f"{path} contains a run with another recipe: {changes}")


def _check_origin(path: Path, origin: Mapping[str, str]) -> None:
    """Raise RunError if the run was started with other inputs."""
    try:
        content = {"init": "random", **json.loads((path / ORIGIN).read_text())}
        saved = {name: content[name] for name in origin}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / ORIGIN} is missing or damaged") from error
    for name, new in origin.items():
        if saved[name] != new:
            raise RunError(f"{path} contains a run with another {name}: it was {saved[name]} and is now {new}")


def _wait_for_origin(path: Path) -> None:
    """Wait until the files of rank 0 are visible on this machine; RunError if it has another folder."""
    if not wait_for_file(path / ORIGIN):
        raise RunError(
            f"{path} on this machine is not the folder of the first process; all machines need the same run folder on "
            "a shared file system"
        )


def save_checkpoint(
    folder: Path, step: int, shared: Mapping[str, Any], rank_state: Mapping[str, Any], world: World
) -> None:
    """Write a checkpoint from all processes, then delete all but it and the one before it.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: training steps done.
        shared: tensors and plain values that are the same on all processes; rank 0 writes them.
        rank_state: tensors and plain values of this process.

    Raises:
        RunError: the checkpoint cannot be written, for example to a full disk, or the machines have
            separate folders; older checkpoints are kept.
    """
    partial = folder / f".{_PREFIX}{step:08d}.partial"
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
    world.barrier()
    reason = ""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if world.is_main:
            _write(partial / "shared.pt", {**shared, "step": step, "world_size": world.size})
        _write(partial / _rank_file(world.rank), rank_state)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        cause = error.__context__ or error
        reason = (getattr(cause, "strerror", None) or str(cause)).splitlines()[0]
    failures = int(world.gather_counts(int(bool(reason))).sum())
    if not failures:
        missing = [rank for rank in range(world.size) if not (partial / _rank_file(rank)).exists()]
        if missing:
            reason = f"{_rank_file(missing[0])} is missing: all machines need the same folder"
        failures = int(world.gather_counts(len(missing)).sum())
    if failures:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        previous = max(_steps(folder), default=None)
        raise RunError(
            f"{folder}: failed to write the checkpoint of step {step} "
            f"({reason or 'another process failed'}); free disk space and continue with --resume "
            + (f"from step {previous}" if previous else "from the beginning")
        )
    if world.is_main:
        final = folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        kept = {step, *[other for other in _steps(folder) if other < step][-1:]}
        for other in _steps(folder):
            if other not in kept:
                shutil.rmtree(folder / f"{_PREFIX}{other:08d}", ignore_errors=True)
    world.barrier()


def load_checkpoint(folder: Path, step: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a checkpoint: ``shared``, and the memory-mapped ``rank_state`` of each process that wrote it.

    Raises:
        RunError: a file is missing or damaged.
    """
    checkpoint = folder / f"{_PREFIX}{step:08d}"
    shared = _read(checkpoint / "shared.pt")
    ranks = range(shared["world_size"])
    return shared, [_read(checkpoint / _rank_file(rank), mmap=True) for rank in ranks]


def find_checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, or None; damaged ones are skipped with a warning.

    Raises:
        RunError: all checkpoints are damaged.
    """
    problems: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            load_checkpoint(folder, step)
        except RunError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("%s; resuming from step %d", "; ".join(problems), step)
        return step
    if problems:
        raise RunError(f"{'; '.join(problems)}; no other checkpoint is left, remove {folder} to train from the start")
    return None


def _steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, ascending."""
    names = [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*/")]
    return sorted(int(name) for name in names if name.isdecimal())  # not "step-00000010 (copy)"


def _rank_file(rank: int) -> str:
    return f"process-{rank}.pt"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint file with ``torch.save`` and flush it to disk (fsync)."""
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint file to the CPU; RunError if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # zipfile and torch raise many types for damaged files
        raise RunError(f"{path} is not a readable checkpoint: {format_error(error)}") from error
    return content
