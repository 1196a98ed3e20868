"""A run folder: its recipe, its lines of metrics, its checkpoints, its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crosspair.atomic import write_atomically
from crosspair.config import Recipe
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.recipes import dump_recipe, load_recipe, recipe_settings
from crosspair.training.checkpoint import last_step

METRICS, RECIPE, CHECKPOINTS, MODEL = "metrics.jsonl", "recipe.yaml", "checkpoints", "model"


class RunFolder:
    """Opens a run, new or to be resumed, and writes its lines of metrics.

    Args:
        path: the folder; made if need be.
        recipe: what is to be run.
        manifest: what the pairs are (a manifest's hash), so that a run is not resumed on others.
        resume: go on with the run that the folder holds; begin where there is none.
        world: only rank 0 writes.

    Raises:
        RunError: the folder holds a run and ``resume`` is not set, or a run of another recipe or
            of other pairs, or it cannot be written.
    """

    def __init__(
        self, path: Path, recipe: Recipe, manifest: str, *, resume: bool, world: World
    ) -> None:
        self.path, self.world = path, world
        self.checkpoints, self.model = path / CHECKPOINTS, path / MODEL
        if (path / RECIPE).exists():
            if not resume:
                raise RunError(
                    f"{path} already holds a run; go on with it by --resume, or name another folder"
                )
            self._check_same(recipe, manifest)
        elif path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; a run needs a folder")
        world.barrier()
        if world.is_main:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                write_atomically(path / "manifest.json", json.dumps({"manifest": manifest}) + "\n")
                write_atomically(path / RECIPE, dump_recipe(recipe))
            except OSError as error:
                raise RunError(f"run folder {path} cannot be written: {error.strerror}") from error
        world.barrier()
        self.last_step = last_step(self.checkpoints)

    def __enter__(self) -> Self:
        if self.world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._forget_after(self.last_step or 0)
            self._lines = (self.path / METRICS).open("a", encoding="utf-8")
            self._events = SummaryWriter(
                str(self.path / "tensorboard"), purge_step=(self.last_step or 0) + 1
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world.is_main:
            self._lines.close()
            self._events.close()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``, and its numbers to TensorBoard."""
        if not self.world.is_main:
            return
        line = json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False)
        try:
            self._lines.write(line + "\n")
            self._lines.flush()
        except OSError as error:
            raise RunError(f"{self.path / METRICS} cannot be written: {error.strerror}") from error
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, and a line that a kill cut short."""
        metrics = self.path / METRICS
        if not metrics.exists():
            return
        kept = []
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        write_atomically(metrics, "".join(kept))

    def _check_same(self, recipe: Recipe, manifest: str) -> None:
        saved = recipe_settings(load_recipe(str(self.path / RECIPE)))
        now = recipe_settings(recipe)
        other = [key for key in now if now[key] != saved[key]]
        if other:
            differences = ", ".join(f"{key} was {saved[key]}, not {now[key]}" for key in other)
            raise RunError(f"{self.path} holds a run of another recipe: {differences}")
        try:
            begun_with = json.loads((self.path / "manifest.json").read_text())["manifest"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self.path / 'manifest.json'} is missing or damaged") from error
        if begun_with != manifest:
            raise RunError(
                f"{self.path} holds a run on other pairs: "
                f"its manifest was {begun_with}, this one is {manifest}"
            )
