"""Cells of an ablation: one training with its evaluation, for one row and one seed.

A cell has a folder named after the hash of all settings that determine its results. The folder
contains ``job.json`` (the work to do), ``cell.json`` (state) and ``results.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from crosspair.ablation.plan import (
    AblationPlan,
    AblationRow,
    CorpusPlan,
    ProtocolName,
    expand_rows,
    plan_settings,
    row_name,
    suggest,
)
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest, add_title_noise, fingerprint, manifest_from_rows
from crosspair.corpora.rendered.render import plan as plan_rendered_pairs
from crosspair.corpora.rendered.render import render_corpus
from crosspair.corpora.titles.stage import prepare_titles
from crosspair.errors import ManifestError, RecipeError
from crosspair.files import write_atomically
from crosspair.progress import progress
from crosspair.recipes import load_recipe, make_recipe, read_recipe, recipe_settings

VERSION = 1  # part of every hash: increase it when a change of the code changes results of cells
CLIP_TOLERANCE = 0.02  # largest relative difference in clips seen between two rows
DONE, FAILED, MISSING = "done", "failed", "missing"
JOB, STATE, RESULTS = "job.json", "cell.json", "results.json"
_CORPUS = "corpus."


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        row: row of the plan.
        seed: seed of the training, of the evaluation, and of wrong titles.
        recipe: pre-training recipe.
        finetuning: fine-tuning recipe, or None.
        corpus: training pairs.
        pairs: number of training pairs.
        random_baseline: whether the network with random weights is evaluated, too.
        hash: 12 hex digits over all settings that determine the results.
    """

    row: AblationRow
    seed: int
    recipe: Recipe
    finetuning: FinetuneRecipe | None
    corpus: CorpusPlan
    pairs: int
    random_baseline: bool
    hash: str

    @property
    def name(self) -> str:
        """Name in messages, for example "words / joint, seed 0"."""
        return f"{row_name(self.row)}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Folder of the cell, relative to the folder of the ablation."""
        return f"cells/{self.hash}"

    @property
    def clips(self) -> int:
        """Number of clips seen in pre-training."""
        return count_clips(self.recipe, self.pairs)


def expand_cells(plan: AblationPlan, source: PairSource) -> list[Cell]:
    """Create the cells of a plan.

    All rows with the first seed come first, then all rows with the next seed, so that the results
    of an interrupted ablation are comparable.

    Raises:
        RecipeError: The recipe rejects the settings of a row, two rows have the same settings, or
            rows see different numbers of clips.
        ManifestError: The manifest has too few usable pairs.
    """
    manifests = {plan.evaluation.manifest, plan.finetuning.manifest if plan.finetuning else ""}
    hashes = {path: _hash_manifest(path) if path else "" for path in manifests}
    cells = [
        _create_cell(plan, source, hashes, row, seed)
        for seed in plan.seeds
        for row in expand_rows(plan)
    ]
    known: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        other = known.setdefault((cell.recipe, cell.corpus), cell)
        if other is not cell:
            raise RecipeError(
                f"plan {plan.title!r}: rows {row_name(other.row)!r} and {row_name(cell.row)!r} "
                "have the same settings"
            )
    fewest, most = min(cells, key=lambda c: c.clips), max(cells, key=lambda c: c.clips)
    if most.clips - fewest.clips > CLIP_TOLERANCE * most.clips:
        raise RecipeError(
            f"plan {plan.title!r}: all rows must see the same number of clips, but "
            f"{row_name(fewest.row)!r} sees {fewest.clips:,} and {row_name(most.row)!r} "
            f"{most.clips:,} (epochs × whole batches of {fewest.pairs:,} and {most.pairs:,} pairs)"
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
    if not only:
        return list(cells)
    wanted = [{part.strip() for part in name.split("/")} for name in only]
    for parts in wanted:
        if not any(parts <= set(cell.row.values()) for cell in cells):
            known = {value for cell in cells for value in cell.row.values()}
            unknown = (sorted(parts - known) or [" / ".join(sorted(parts))])[0]
            raise RecipeError(f"--only: unknown row {unknown!r}. {suggest(unknown, known)}")
    return [cell for cell in cells if any(parts <= set(cell.row.values()) for parts in wanted)]


def count_clips(recipe: Recipe, pairs: int) -> int:
    """Return the number of clips seen in a pre-training; incomplete batches are dropped."""
    training = recipe.training
    return training.epochs * (pairs // training.batch_size) * training.batch_size


@dataclass(frozen=True)
class Job:
    """Content of ``job.json``: the input of the process that runs a cell.

    Attributes:
        recipe: settings of the pre-training recipe.
        manifest: file of the training pairs.
        protocols: evaluation protocols of the frozen model.
        clips: clips per video in the evaluation of the frozen model.
        videos: manifest that the frozen model is evaluated on.
        finetuning: None, or ``recipe``, ``videos`` (a manifest), ``clips`` and ``crops``.
        random_baseline: whether random weights are evaluated, too.
    """

    recipe: dict[str, Any]
    manifest: str
    protocols: tuple[ProtocolName, ...]
    clips: int
    videos: str
    finetuning: dict[str, Any] | None
    random_baseline: bool


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json`` to the folder of a cell."""
    write_atomically(folder / JOB, json.dumps(asdict(job), indent=2) + "\n")


def read_job(folder: Path) -> Job:
    """Read ``job.json`` from the folder of a cell."""
    return Job(**json.loads((folder / JOB).read_text(encoding="utf-8")))


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a cell: status, seconds, clips, pairs and error; empty if there is none."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a cell."""
    write_atomically(folder / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def status(folder: Path) -> str:
    """Return whether a cell is "done", "failed" or "missing"."""
    state = read_state(folder)
    if state.get("status") == DONE and (folder / RESULTS).is_file():
        return DONE
    return FAILED if state.get("status") == FAILED else MISSING


def write_summary(out: Path, plan: AblationPlan, cells: Sequence[Cell]) -> None:
    """Write ``plan.yaml`` and ``ablation.json`` with the current state of the cells.

    Args:
        out: folder of the ablation.
        plan: plan with its overrides applied.
        cells: all cells of the plan.
    """
    settings = plan_settings(plan)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomically(out / "plan.yaml", text)
    content = {"plan": settings, "cells": [_summarize(out / cell.folder, cell) for cell in cells]}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "ablation.json", text)


class PairSource:
    """Manifests with the training pairs of cells.

    Args:
        folder: folder of rendered videos and of manifests with changed titles.
        manifest: the user's manifest, if any.
        titles: whether clean titles and tree titles of rendered pairs are needed, too. Empty ones
            are replaced with the raw title, so that all columns have the same number of pairs.
    """

    def __init__(self, folder: Path, manifest: str | None = None, titles: bool = False) -> None:
        self.folder, self._titles = folder, titles
        self._manifest = Manifest.read(manifest) if manifest else None
        self._previews: dict[tuple[CorpusPlan, int], Manifest] = {}

    def preview(self, corpus: CorpusPlan, seed: int) -> Manifest:
        """Return the pairs, without clean and tree titles, before anything is rendered or written.

        Args:
            corpus: training pairs.
            seed: seed of the cell, which selects wrong titles.

        Raises:
            RecipeError: The plan requires a manifest and there is none, or the reverse.
            ManifestError: The settings of the corpus are invalid.
        """
        key = (corpus, seed if corpus.wrong_titles else 0)
        if key not in self._previews:
            if corpus.wrong_titles:
                right = self._with_right_titles(corpus)
                self._previews[key] = add_title_noise(right, corpus.wrong_titles, seed)
            else:
                self._previews[key] = self._read_or_plan(corpus)
        return self._previews[key]

    def hash_pairs(self, corpus: CorpusPlan, seed: int) -> str:
        """Return a hash of the pairs and of their files."""
        pairs = self.preview(corpus, seed)
        # Rendered files are determined by the seed, which the manifest's hash covers.
        return _hash_pairs(pairs) + (fingerprint(pairs) if corpus.manifest else "")

    def count_pairs(self, corpus: CorpusPlan, seed: int, column: str) -> int:
        """Count the pairs of the train split with a title in ``column`` and a valid video.

        Raises:
            ManifestError: No pair has such a title.
        """
        column = "title" if self._prepares_titles(corpus) else column
        return _count_usable(self.preview(corpus, seed), column)

    def write(self, corpus: CorpusPlan, seed: int) -> Path:
        """Render and write what is missing, and return the path of the manifest."""
        right, pairs = self._with_right_titles(corpus), self.preview(corpus, seed)
        folder, titles = right.path.parent, self._prepares_titles(corpus)
        if not corpus.manifest:
            with progress("rendering", corpus.pairs, "videos") as bar:
                render_corpus(
                    folder, corpus.pairs, corpus.seed, corpus.noise,
                    progress=lambda done, _: bar.advance(done),
                )  # fmt: skip
        if pairs is right and not titles:
            return right.path
        suffix = "-titles" if titles else ""
        path = self.folder / f"{folder.name}-{_hash_pairs(pairs)}{suffix}.parquet"
        if not path.is_file():
            if titles:
                prepared, _ = prepare_titles(right, empty="raw")
                pairs = add_title_noise(prepared, corpus.wrong_titles, seed)
            pairs.rebased(path).write(path)
        return path

    def _prepares_titles(self, corpus: CorpusPlan) -> bool:
        return self._titles and not corpus.manifest

    def _with_right_titles(self, corpus: CorpusPlan) -> Manifest:
        return self.preview(replace(corpus, wrong_titles=0.0), 0)

    def _read_or_plan(self, corpus: CorpusPlan) -> Manifest:
        if corpus.manifest:
            if self._manifest is None:
                raise RecipeError("this plan requires a manifest of training pairs: --manifest M")
            return self._manifest
        if self._manifest is not None:
            raise RecipeError(
                "this plan renders its training pairs. Remove --manifest, or set "
                "corpus.manifest=true to use it."
            )
        rows = (pair.row for pair in plan_rendered_pairs(corpus.pairs, corpus.seed, corpus.noise))
        folder = self.folder / f"rendered-{corpus.pairs}-{corpus.noise:g}-{corpus.seed}"
        return manifest_from_rows(rows, folder / "manifest.parquet")


def _create_cell(
    plan: AblationPlan, source: PairSource, hashes: Mapping[str, str], row: AblationRow, seed: int
) -> Cell:
    where = f"plan {plan.title!r}, row {row_name(row)!r}"
    settings = recipe_settings(load_recipe(plan.recipe)) | plan.overrides
    corpus = plan.corpus
    for axis, value in row.items():
        keys = plan.axes[axis][value]
        corpus = _replace_corpus_keys(corpus, keys, where)
        settings |= {key: value for key, value in keys.items() if not key.startswith(_CORPUS)}
    recipe = make_recipe(Recipe, settings | {"training.seed": seed}, where)
    finetuning = _finetune_recipe(plan, recipe, where)
    pairs = source.count_pairs(corpus, seed, recipe.text.column)
    if pairs < recipe.training.batch_size:
        raise ManifestError(
            f"{where}: {pairs} usable training pairs are fewer than training.batch_size "
            f"({recipe.training.batch_size})"
        )
    random_baseline = row == plan.baseline
    hashed = {
        "version": VERSION,
        "recipe": recipe_settings(recipe),
        "pairs": source.hash_pairs(corpus, seed),
        "protocols": list(plan.evaluation.protocols),
        "clips": plan.evaluation.clips,
        "videos": hashes[plan.evaluation.manifest],
        "finetuning": None if finetuning is None or plan.finetuning is None else {
            "recipe": recipe_settings(finetuning),
            "videos": hashes[plan.finetuning.manifest],
            "views": [plan.finetuning.clips, plan.finetuning.crops],
        },
        "random": random_baseline,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]
    return Cell(row, seed, recipe, finetuning, corpus, pairs, random_baseline, digest)


def _replace_corpus_keys(corpus: CorpusPlan, keys: Mapping[str, Any], where: str) -> CorpusPlan:
    changes = {k.removeprefix(_CORPUS): v for k, v in keys.items() if k.startswith(_CORPUS)}
    fields = [field.name for field in dataclasses.fields(CorpusPlan)]
    for key, value in changes.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {_CORPUS}{key}. {suggest(key, fields)}")
        kind = type(getattr(corpus, key))
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise RecipeError(f"{where}: {_CORPUS}{key} must be {kind.__name__}, not {value!r}")
    return replace(corpus, **changes)


def _finetune_recipe(plan: AblationPlan, recipe: Recipe, where: str) -> FinetuneRecipe | None:
    if plan.finetuning is None:
        return None
    settings = recipe_settings(read_recipe(FinetuneRecipe, plan.finetuning.recipe))
    settings |= plan.finetuning.overrides
    settings |= {f"video.{key}": value for key, value in asdict(recipe.video).items()}
    settings |= {"training.seed": recipe.training.seed}
    return make_recipe(FinetuneRecipe, settings, f"{where}, fine-tuning")


def _hash_manifest(path: str) -> str:
    manifest = Manifest.read(path)
    return manifest.hash + fingerprint(manifest)


# With 250,000 pairs these two take seconds, and they are called for every cell.
@lru_cache(maxsize=16)
def _hash_pairs(pairs: Manifest) -> str:
    return pairs.hash


@lru_cache(maxsize=16)
def _count_usable(pairs: Manifest, column: str) -> int:
    train = pairs.split("train")
    titles = train.column(column)
    if len(train) and not any(titles):
        raise ManifestError(
            f'{pairs.path}: column {column} is empty. Run "crosspair titles" to fill it.'
        )
    errors = train.column("error")
    return sum(bool(title) and not error for title, error in zip(titles, errors, strict=True))


def _summarize(folder: Path, cell: Cell) -> dict[str, Any]:
    state, current = read_state(folder), status(folder)
    return {
        "row": cell.row,
        "seed": cell.seed,
        "hash": cell.hash,
        "folder": cell.folder,
        "status": current,
        "error": state.get("error") if current == FAILED else None,  # not that of an earlier run
        "seconds": state.get("seconds", {}),
        "clips": state.get("clips", cell.clips),
        "pairs": state.get("pairs", cell.pairs),
    }
