"""Cells of an ablation: one training with its evaluation, for one row and one seed, or for tuning the row.

A cell is a run folder named after the hash of all settings that determine its results. In addition
to the files of a run, it contains ``job.json`` (its settings), ``cell.json`` (durations and the
error of the last attempt) and, once it is done, ``results.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
import yaml

from crosspair.ablation.plan import (
    AblationPlan,
    AblationRow,
    CorpusPlan,
    build_settings,
    expand_grid,
    expand_rows,
    plan_settings,
    row_name,
    row_settings,
    split_settings,
    tuning_row,
)
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest, add_title_noise, fingerprint, manifest_from_rows
from crosspair.corpora.rendered.render import plan as plan_rendered_pairs
from crosspair.corpora.rendered.render import render_corpus
from crosspair.corpora.titles import prepare_titles
from crosspair.errors import ManifestError, RecipeError
from crosspair.evaluation.encode import usable_rows
from crosspair.evaluation.features import Features
from crosspair.evaluation.results import Result, read_results
from crosspair.evaluation.task import class_task
from crosspair.files import read_jsonl, write_atomically
from crosspair.models.video import resolve_recipe
from crosspair.progress import delayed_progress
from crosspair.recipes import hashed_settings, read_settings, suggest

VERSION = 2  # part of every hash: increase it when a change of the code changes results of cells
PAIR_TOLERANCE = 0.02  # largest relative difference in pairs seen between two rows
DONE, FAILED, MISSING, WAITING = "done", "failed", "missing", "waiting"
JOB, STATE, RESULTS = "job.json", "cell.json", "results.json"


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    row: AblationRow
    seed: int  # of the training, of the evaluation, and of wrong titles
    recipe: Recipe  # of the pre-training
    corpus: CorpusPlan
    source: PairSource
    pairs: int  # planned number of training pairs
    settings: dict[str, Any]  # all that determine the results, as stored in ``job.json``
    grid: dict[str, Any]  # values of the keys with a grid
    tuning: bool = False  # whether it only measures how good these values are
    waiting: bool = False  # whether the values are not chosen yet; ``grid`` has the first ones

    @property
    def name(self) -> str:
        """Name in messages, for example "words / joint, seed 0"."""
        values = "".join(f", {key}={value}" for key, value in self.grid.items() if not self.waiting)
        return f"{row_name(self.row)}, {'tuning' if self.tuning else f'seed {self.seed}'}{values}"

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Folder of the cell, relative to the folder of the ablation."""
        return f"cells/{self.hash}"

    @property
    def views(self) -> int:
        """Clips per pair and step, see `crosspair.config.ObjectiveConfig.video_weight`."""
        return 2 if self.recipe.objective.video_weight else 1

    def count_clips(self, pairs: int | None = None) -> int:
        """Count the clips of all epochs of a pre-training on ``pairs`` pairs; incomplete batches are dropped."""
        training, pairs = self.recipe.training, self.pairs if pairs is None else pairs
        return self.views * training.epochs * (pairs // training.batch_size) * training.batch_size

    def count_pairs_seen(self) -> int:
        """Count the pairs of all epochs, see `count_clips`."""
        return self.count_clips() // self.views


def plan_cells(plan: AblationPlan, out: Path, manifest: str | None = None) -> list[Cell]:
    """Create the cells of a plan without writing anything.

    The cells for tuning come first, then all rows with the first seed, then all rows with the next
    seed, so that the results of an interrupted ablation are comparable. Rows are waiting until all
    cells for their tuning are done or failed.

    Args:
        plan: plan, see `crosspair.ablation.read_plan`.
        out: folder of the ablation.
        manifest: training pairs, for plans that do not render them.

    Raises:
        RecipeError: The recipe rejects the settings of a row, two rows have the same settings, or
            rows see different numbers of pairs.
        ManifestError: The manifest has too few usable pairs, or its split val does not suffice for tuning.
    """
    keys = [plan.overrides, *(keys for values in plan.axes.values() for keys in values.values())]
    titles = any("text.column" in each for each in keys)
    user = Manifest.read(manifest) if manifest else None
    source = PairSource(out.absolute() / "corpora", user, titles and user is None)
    hashes = {"": ""}
    for path in {plan.evaluation.manifest, plan.finetuning.manifest if plan.finetuning else ""} - {""}:
        videos = Manifest.read(path)
        hashes[path] = videos.hash + fingerprint(videos)
    rows, cells, chosen = expand_rows(plan), list[Cell](), dict[str, dict[str, Any] | None]()
    create = partial(_create_cell, plan, source, hashes)
    for row in (tuning_row(plan, each) for each in rows):
        if row_name(row) not in chosen:
            tried = [create(row, plan.tuning.seed, grid, tuning=True) for grid in expand_grid(plan, row)]
            chosen[row_name(row)] = choose_grid(out, tried) if len(tried) > 1 else tried[0].grid
            cells += tried if len(tried) > 1 else []
    if cells:
        _check_tuning_videos(plan, cells[0])
    for seed, row in product(plan.seeds, rows):
        grid = chosen[row_name(tuning_row(plan, row))]
        cells.append(create(row, seed, expand_grid(plan, row)[0] if grid is None else grid, waiting=grid is None))
    compared = cells[-len(rows) :]
    for one, other in combinations(compared, 2):
        settings = [(cell.recipe, cell.corpus, expand_grid(plan, cell.row)) for cell in (one, other)]
        if settings[0] == settings[1]:
            raise RecipeError(
                f"plan {plan.title!r}: rows {row_name(one.row)!r} and {row_name(other.row)!r} have the same settings"
            )
    fewest, most = min(compared, key=Cell.count_pairs_seen), max(compared, key=Cell.count_pairs_seen)
    few, many = fewest.count_pairs_seen(), most.count_pairs_seen()
    if many - few > PAIR_TOLERANCE * many:
        raise RecipeError(
            f"plan {plan.title!r}: all rows must see the same number of pairs, but {row_name(fewest.row)!r} sees "
            f"{few:,} and {row_name(most.row)!r} {many:,} (epochs × whole batches of {fewest.pairs:,} and "
            f"{most.pairs:,} pairs)"
        )
    return cells


def _check_tuning_videos(plan: AblationPlan, cell: Cell) -> None:
    """Raise ManifestError if the videos that a cell for tuning evaluates lack the labels or titles of its metric."""
    path, metric = plan.evaluation.manifest, plan.tuning.metric
    videos = Manifest.read(path) if path else cell.source.preview(cell.corpus, cell.seed)
    try:
        if metric == "retrieval":
            column = "title" if cell.source.titles else cell.recipe.text.column
            if not _count_usable(videos, column, "val"):
                raise ManifestError(f"{videos.path}: split val has no readable video with a title")
        else:
            rows, _ = usable_rows(videos)
            empty = torch.empty(len(rows), 0)
            class_task(videos, Features(torch.tensor(rows), empty, empty, 0, []), "val", trained=metric != "zeroshot")
    except ManifestError as error:
        raise ManifestError(
            f"{error}. Plan {plan.title!r} compares values of {', '.join(cell.grid)} on split val by "
            f"tuning.metric={metric}: add such videos, or set these keys to a value"
        ) from error


def choose_grid(out: Path, cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Choose the values of the first cell for tuning with the highest accuracy; failed cells are skipped.

    Returns:
        None if a cell is missing, or all have failed.
    """
    states = [status(out, cell) for cell in cells]
    if MISSING in states or DONE not in states:
        return None
    done = [cell for cell, state in zip(cells, states, strict=True) if state == DONE]
    return max(done, key=lambda cell: tuning_score(read_results(out / cell.folder / RESULTS)[0])).grid


def tuning_score(results: Sequence[Result]) -> float:
    """Return the compared value of a cell for tuning: top-1 accuracy, or text→video R@10."""
    return next(each.value for each in results if each.of == "trained" and each.metric in ("top-1", "R@10"))


def select(plan: AblationPlan, cells: Sequence[Cell], only: Collection[str]) -> list[Cell]:
    """Select the cells of some rows, and those for their tuning.

    Args:
        plan: plan.
        cells: its cells.
        only: names of rows ("words / joint"), or names of values that select all rows with them;
            empty: all rows.

    Raises:
        RecipeError: A name matches no row.
    """
    rows = expand_rows(plan)
    known = {value for row in rows for value in row.values()}
    wanted = [{value.strip() for value in name.split("/")} for name in only] or [set()]
    for values in wanted:
        if not any(values <= {*row.values()} for row in rows):
            unknown = min(values - known, default=" / ".join(values))
            raise RecipeError(f"--only: no row {unknown!r}; {suggest(unknown, sorted(known))}")
    rows = [row for row in rows if any(values <= {*row.values()} for values in wanted)]
    tuned = [tuning_row(plan, row) for row in rows]
    return [cell for cell in cells if cell.row in (tuned if cell.tuning else rows)]


def write_jobs(out: Path, plan: AblationPlan, cells: Sequence[Cell]) -> list[Cell]:
    """Write ``job.json`` and training pairs (and render their videos) of cells that can run; return these."""
    todo = {cell.hash: cell for cell in cells if status(out, cell) in {MISSING, FAILED}}
    for cell in todo.values():
        pairs = cell.source.write(cell.corpus, cell.seed)
        paths = {"training": pairs}
        if cell.settings["protocols"]:
            paths["evaluation"] = Path(plan.evaluation.manifest or pairs)
        if plan.finetuning and not cell.tuning:
            paths["finetuning"] = Path(plan.finetuning.manifest or pairs)
        absolute = {name: str(path.absolute()) for name, path in paths.items()}
        text = json.dumps({**cell.settings, "paths": absolute}, indent=2) + "\n"
        write_atomically(out / cell.folder / JOB, text)
    return [*todo.values()]


def read_state(folder: Path) -> dict[str, Any]:
    """Read ``cell.json``: ``seconds`` by step, and ``error`` of the last attempt; empty without the file."""
    file = folder / STATE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def update_state(folder: Path, **changes: Any) -> None:
    """Set keys of ``cell.json``, and keep the others."""
    text = json.dumps(read_state(folder) | changes, indent=2, ensure_ascii=False)
    write_atomically(folder / STATE, text + "\n")


def status(out: Path, cell: Cell) -> str:
    """Return "done" (``results.json`` exists), "failed" (the last attempt left an error), "missing", or "waiting"."""
    folder = out / cell.folder
    if cell.waiting:
        return WAITING
    if (folder / RESULTS).is_file():
        return DONE
    return FAILED if read_state(folder).get("error") else MISSING


def describe_cell(out: Path, cell: Cell) -> dict[str, Any]:
    """Return the current state of a cell, as listed in ``ablation.json``."""
    folder = out / cell.folder
    state, current = read_state(folder), status(out, cell)
    # Those of the training, which skips titles without a known word; before it, those planned.
    metrics = read_jsonl(folder / "metrics.jsonl")
    pairs = next((int(line["train"]) for line in metrics if line["kind"] == "pairs"), cell.pairs)
    return {
        "row": cell.row,
        "seed": cell.seed,
        "tuning": cell.tuning,
        "grid": cell.grid,
        "hash": cell.hash,
        "folder": cell.folder,
        "status": current,
        "error": state.get("error") if current == FAILED else None,
        "seconds": state.get("seconds", {}),
        "clips": cell.count_clips(pairs),
        "views": cell.views,
        "pairs": pairs,
    }


def write_summary(out: Path, plan: AblationPlan, cells: Sequence[Cell]) -> None:
    """Write ``plan.yaml``, with overrides applied, and ``ablation.json`` with the current state of all cells."""
    settings = plan_settings(plan)
    summary = {"plan": settings, "cells": [describe_cell(out, cell) for cell in cells]}
    write_atomically(out / "plan.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    write_atomically(out / "ablation.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class PairSource:
    """Manifests with the training pairs of cells.

    With ``titles``, rendered pairs get clean titles and tree titles, too. Empty ones are replaced with the raw title,
    so that all columns have the same number of pairs.
    """

    folder: Path  # of rendered videos and of manifests with changed titles
    manifest: Manifest | None  # the user's
    titles: bool

    def preview(self, corpus: CorpusPlan, seed: int) -> Manifest:
        """Return the pairs of a cell with a seed, without clean and tree titles; render and write nothing.

        Raises:
            RecipeError: The plan requires a manifest and there is none, or the reverse.
            ManifestError: The settings of the corpus are invalid.
        """
        if corpus.manifest != (self.manifest is not None):
            raise RecipeError(
                "this plan requires a manifest of training pairs: --manifest M" if corpus.manifest
                else "this plan renders its pairs. Remove --manifest, or set corpus.manifest=true"
            )  # fmt: skip
        pairs = self.manifest
        if pairs is None:
            name = f"rendered-{corpus.pairs}-{corpus.noise:g}-{corpus.seed}/manifest.parquet"
            pairs = _plan_rendered(self.folder / name, corpus.pairs, corpus.seed, corpus.noise)
        return _swap_titles(pairs, corpus.wrong_titles, seed) if corpus.wrong_titles else pairs

    def write(self, corpus: CorpusPlan, seed: int) -> Path:
        """Render missing videos, write the manifest with the cell's titles if missing, and return its path."""
        correct, pairs = self.preview(replace(corpus, wrong_titles=0.0), seed), self.preview(corpus, seed)
        folder = correct.path.parent
        if not corpus.manifest:
            with delayed_progress("rendering", "videos") as advance:
                render_corpus(folder, corpus.pairs, corpus.seed, corpus.noise, progress=advance)
        if pairs is correct and not self.titles:
            return pairs.path
        suffix = "-titles" if self.titles else ""
        path = self.folder / f"{folder.name}-{pairs.hash}{suffix}.parquet"
        if not path.is_file():
            if self.titles:
                prepared, _ = prepare_titles(correct, empty="raw")
                pairs = add_title_noise(prepared, corpus.wrong_titles, seed)
            pairs.rebased(path).write(path)
        return path


_swap_titles = lru_cache(maxsize=16)(add_title_noise)


@lru_cache(maxsize=16)
def _plan_rendered(path: Path, pairs: int, seed: int, noise: float) -> Manifest:
    return manifest_from_rows((pair.row for pair in plan_rendered_pairs(pairs, seed, noise)), path)


def _create_cell(
    plan: AblationPlan,
    source: PairSource,
    hashes: Mapping[str, str],
    row: AblationRow,
    seed: int,
    grid: dict[str, Any],
    *,
    tuning: bool = False,
    waiting: bool = False,
) -> Cell:
    """Merge the settings of plan, row and seed to a `Cell`; reject fewer usable pairs than a batch. Write nothing."""
    where = f"plan {plan.title!r}, row {row_name(row)!r}"
    values = row_settings(plan, row, grid) | (split_settings(plan.tuning.overrides) if tuning else {})
    changes = {key: values.pop(key) for key in list(values) if key.startswith("corpus.")}
    changes = {key.removeprefix("corpus."): value for key, value in changes.items()}
    corpus = build_settings(CorpusPlan, asdict(plan.corpus) | changes, where, "corpus.")
    settings = read_settings(Recipe, plan.recipe) | values
    recipe = resolve_recipe(Recipe, settings | {"training.seed": seed}, where)
    manifest = source.preview(corpus, seed)
    pairs = _count_usable(manifest, "title" if source.titles else recipe.text.column, "train")
    if pairs < recipe.training.batch_size:
        raise ManifestError(
            f"{where}: {pairs} usable training pairs are fewer than training.batch_size ({recipe.training.batch_size})"
        )
    finetuning = None
    if plan.finetuning and not tuning:
        settings = read_settings(FinetuneRecipe, plan.finetuning.recipe)
        settings |= plan.finetuning.overrides | {"training.seed": seed}
        settings |= {f"video.{key}": value for key, value in asdict(recipe.video).items()}
        finetuning = {
            "recipe": hashed_settings(resolve_recipe(FinetuneRecipe, settings, f"{where}, fine-tuning")),
            "videos": hashes[plan.finetuning.manifest],
            "views": [plan.finetuning.clips, plan.finetuning.crops],
        }
    hashed = {
        "version": VERSION,
        "recipe": hashed_settings(recipe),
        # Rendered files are determined by the seed, which the manifest's hash covers.
        "pairs": manifest.hash + (fingerprint(manifest) if corpus.manifest else ""),
        "protocols": [plan.tuning.metric] if tuning else list(plan.evaluation.protocols),
        "clips": plan.evaluation.clips,
        "videos": hashes[plan.evaluation.manifest],
        "finetuning": finetuning,
        "random": row == plan.baseline and not tuning,
        **({"split": "val"} if tuning else {}),
    }
    return Cell(row, seed, recipe, corpus, source, pairs, hashed, grid, tuning, waiting)


@lru_cache(maxsize=16)  # with 250,000 pairs it takes a second, and each cell needs it
def _count_usable(pairs: Manifest, column: str, split: str) -> int:
    """Count the pairs of a split with a title and without an error; ManifestError if all titles are empty."""
    rows = pairs.split(split)
    titles = rows.column(column)
    if len(rows) and not any(titles):
        raise ManifestError(f'{pairs.path}: column {column} is empty. Run "crosspair titles clean" to fill it.')
    errors = rows.column("error")
    return sum(bool(title) and not error for title, error in zip(titles, errors, strict=True))
