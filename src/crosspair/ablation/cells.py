"""Cells of an ablation: one training with its evaluation, for one row and one seed.

A cell is a run folder named after the hash of all settings that determine its results. In addition
to the files of a run, it contains ``job.json`` (its settings), ``cell.json`` (durations and the
error of the last attempt) and, once it is done, ``results.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from crosspair.ablation.plan import (
    AblationPlan,
    AblationRow,
    CorpusPlan,
    build_settings,
    expand_rows,
    plan_settings,
    row_name,
)
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest, add_title_noise, fingerprint, manifest_from_rows
from crosspair.corpora.rendered.render import plan as plan_rendered_pairs
from crosspair.corpora.rendered.render import render_corpus
from crosspair.corpora.titles import prepare_titles
from crosspair.errors import ManifestError, RecipeError
from crosspair.files import read_jsonl, write_atomically
from crosspair.models.video import resolve_recipe
from crosspair.progress import delayed_progress
from crosspair.recipes import hashed_settings, read_settings, suggest

VERSION = 1  # part of every hash: increase it when a change of the code changes results of cells
CLIP_TOLERANCE = 0.02  # largest relative difference in clips seen between two rows
DONE, FAILED, MISSING = "done", "failed", "missing"
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

    @property
    def name(self) -> str:
        """Name in messages, for example "words / joint, seed 0"."""
        return f"{row_name(self.row)}, seed {self.seed}"

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Folder of the cell, relative to the folder of the ablation."""
        return f"cells/{self.hash}"

    def count_clips(self, pairs: int | None = None) -> int:
        """Count the clips of all epochs of a pre-training on ``pairs`` pairs; incomplete batches are dropped."""
        training, pairs = self.recipe.training, self.pairs if pairs is None else pairs
        return training.epochs * (pairs // training.batch_size) * training.batch_size


def plan_cells(plan: AblationPlan, out: Path, manifest: str | None = None) -> list[Cell]:
    """Create the cells of a plan without writing anything.

    All rows with the first seed come first, then all rows with the next seed, so that the results
    of an interrupted ablation are comparable.

    Args:
        plan: plan, see `crosspair.ablation.read_plan`.
        out: folder of the ablation.
        manifest: training pairs, for plans that do not render them.

    Raises:
        RecipeError: The recipe rejects the settings of a row, two rows have the same settings, or
            rows see different numbers of clips.
        ManifestError: The manifest has too few usable pairs.
    """
    keys = [plan.overrides, *(keys for values in plan.axes.values() for keys in values.values())]
    titles = any("text.column" in each for each in keys)
    user = Manifest.read(manifest) if manifest else None
    source = PairSource(out.absolute() / "corpora", user, titles and user is None)
    hashes = {"": ""}
    for path in {plan.evaluation.manifest, plan.finetuning.manifest if plan.finetuning else ""} - {""}:
        videos = Manifest.read(path)
        hashes[path] = videos.hash + fingerprint(videos)
    rows = expand_rows(plan)
    cells = [_create_cell(plan, source, hashes, row, seed) for seed in plan.seeds for row in rows]
    for one, other in combinations(cells[: len(rows)], 2):
        if (one.recipe, one.corpus) == (other.recipe, other.corpus):
            raise RecipeError(
                f"plan {plan.title!r}: rows {row_name(one.row)!r} and {row_name(other.row)!r} have the same settings"
            )
    fewest, most = min(cells, key=Cell.count_clips), max(cells, key=Cell.count_clips)
    if most.count_clips() - fewest.count_clips() > CLIP_TOLERANCE * most.count_clips():
        raise RecipeError(
            f"plan {plan.title!r}: all rows must see the same number of clips, but {row_name(fewest.row)!r} sees "
            f"{fewest.count_clips():,} and {row_name(most.row)!r} {most.count_clips():,} (epochs × whole batches of "
            f"{fewest.pairs:,} and {most.pairs:,} pairs)"
        )
    return cells


def select(cells: Sequence[Cell], only: Collection[str]) -> list[Cell]:
    """Select the cells of some rows.

    Args:
        cells: cells of a plan.
        only: names of rows ("words / joint"), or names of values that select all rows with them;
            empty: all rows.

    Raises:
        RecipeError: A name matches no row.
    """
    known = {value for cell in cells for value in cell.row.values()}
    rows = [{value.strip() for value in name.split("/")} for name in only] or [set()]
    for values in rows:
        if not any(values <= set(cell.row.values()) for cell in cells):
            unknown = min(values - known, default=" / ".join(values))
            raise RecipeError(f"--only: no row {unknown!r}; {suggest(unknown, sorted(known))}")
    return [cell for cell in cells if any(values <= set(cell.row.values()) for values in rows)]


def write_jobs(out: Path, plan: AblationPlan, cells: Sequence[Cell]) -> list[Cell]:
    """Write ``job.json`` and the training pairs (and render their videos) of cells not done; return these."""
    todo = [cell for cell in cells if status(out / cell.folder) != DONE]
    for cell in todo:
        pairs = cell.source.write(cell.corpus, cell.seed)
        paths = {"training": pairs}
        if plan.evaluation.protocols:
            paths["evaluation"] = Path(plan.evaluation.manifest or pairs)
        if plan.finetuning:
            paths["finetuning"] = Path(plan.finetuning.manifest or pairs)
        absolute = {name: str(path.absolute()) for name, path in paths.items()}
        text = json.dumps({**cell.settings, "paths": absolute}, indent=2) + "\n"
        write_atomically(out / cell.folder / JOB, text)
    return todo


def read_state(folder: Path) -> dict[str, Any]:
    """Read ``cell.json``: ``seconds`` by step, and ``error`` of the last attempt; empty without the file."""
    file = folder / STATE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def update_state(folder: Path, **changes: Any) -> None:
    """Set keys of ``cell.json``, and keep the others."""
    text = json.dumps(read_state(folder) | changes, indent=2, ensure_ascii=False)
    write_atomically(folder / STATE, text + "\n")


def status(folder: Path) -> str:
    """Return "done" (``results.json`` exists), "failed" (the last attempt left an error) or "missing"."""
    if (folder / RESULTS).is_file():
        return DONE
    return FAILED if read_state(folder).get("error") else MISSING


def describe_cell(out: Path, cell: Cell) -> dict[str, Any]:
    """Return the current state of a cell, as listed in ``ablation.json``."""
    folder = out / cell.folder
    state, current = read_state(folder), status(folder)
    # Those of the training, which skips titles without a known word; before it, those planned.
    metrics = read_jsonl(folder / "metrics.jsonl")
    pairs = next((int(line["train"]) for line in metrics if line["kind"] == "pairs"), cell.pairs)
    return {
        "row": cell.row,
        "seed": cell.seed,
        "hash": cell.hash,
        "folder": cell.folder,
        "status": current,
        "error": state.get("error") if current == FAILED else None,
        "seconds": state.get("seconds", {}),
        "clips": cell.count_clips(pairs),
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
    plan: AblationPlan, source: PairSource, hashes: Mapping[str, str], row: AblationRow, seed: int
) -> Cell:
    """Merge the settings of plan, row and seed to a `Cell`; reject fewer usable pairs than a batch. Write nothing."""
    where = f"plan {plan.title!r}, row {row_name(row)!r}"
    values = {key: value for axis in row for key, value in plan.axes[axis][row[axis]].items()}
    changes = {key: values.pop(key) for key in list(values) if key.startswith("corpus.")}
    changes = {key.removeprefix("corpus."): value for key, value in changes.items()}
    corpus = build_settings(CorpusPlan, asdict(plan.corpus) | changes, where, "corpus.")
    settings = read_settings(Recipe, plan.recipe) | plan.overrides | values
    recipe = resolve_recipe(Recipe, settings | {"training.seed": seed}, where)
    manifest = source.preview(corpus, seed)
    pairs = _count_usable(manifest, "title" if source.titles else recipe.text.column)
    if pairs < recipe.training.batch_size:
        raise ManifestError(
            f"{where}: {pairs} usable training pairs are fewer than training.batch_size ({recipe.training.batch_size})"
        )
    finetuning = None
    if plan.finetuning:
        settings = read_settings(FinetuneRecipe, plan.finetuning.recipe)
        settings |= plan.finetuning.overrides | {"training.seed": seed}
        settings |= {f"video.{key}": value for key, value in asdict(recipe.video).items()}
        tuning = resolve_recipe(FinetuneRecipe, settings, f"{where}, fine-tuning")
        finetuning = {
            "recipe": hashed_settings(tuning),
            "videos": hashes[plan.finetuning.manifest],
            "views": [plan.finetuning.clips, plan.finetuning.crops],
        }
    hashed = {
        "version": VERSION,
        "recipe": hashed_settings(recipe),
        # Rendered files are determined by the seed, which the manifest's hash covers.
        "pairs": manifest.hash + (fingerprint(manifest) if corpus.manifest else ""),
        "protocols": list(plan.evaluation.protocols),
        "clips": plan.evaluation.clips,
        "videos": hashes[plan.evaluation.manifest],
        "finetuning": finetuning,
        "random": row == plan.baseline,
    }
    return Cell(row, seed, recipe, corpus, source, pairs, hashed)


@lru_cache(maxsize=16)  # with 250,000 pairs it takes a second, and each cell needs it
def _count_usable(pairs: Manifest, column: str) -> int:
    """Count the train pairs with a title and without an error; ManifestError if all titles are empty."""
    train = pairs.split("train")
    titles = train.column(column)
    if len(train) and not any(titles):
        raise ManifestError(f'{pairs.path}: column {column} is empty. Run "crosspair titles clean" to fill it.')
    errors = train.column("error")
    return sum(bool(title) and not error for title, error in zip(titles, errors, strict=True))
