"""Cells: one row of a plan with one seed each, and what tells them apart."""

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
    nearest,
    plain,
    row_name,
)
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora.manifest import Manifest, add_title_noise, fingerprint, manifest_from_rows
from crosspair.corpora.rendered.render import plan as scenes
from crosspair.corpora.rendered.render import render_corpus
from crosspair.corpora.titles.stage import prepare_titles
from crosspair.errors import ManifestError, RecipeError
from crosspair.files import write_atomically
from crosspair.progress import progress
from crosspair.recipes import load_recipe, make_recipe, read_recipe, recipe_settings

VERSION = 1  # of what a cell does: raise it when the same cell would give other numbers
ALIKE = 0.02  # by how much rows may differ in the clips that they see
_CORPUS = "corpus."


@dataclass(frozen=True)
class Cell:
    """One training and its tests.

    Attributes:
        row: of the plan.
        seed: of all that is drawn.
        recipe: of pre-training.
        finetuning: its recipe, if there is any.
        corpus: the pairs.
        pairs: how many of them are learnt from.
        beside_random: whether the network with random weights is tested, too.
        hash: of everything that decides the numbers.
    """

    row: AblationRow
    seed: int
    recipe: Recipe
    finetuning: FinetuneRecipe | None
    corpus: CorpusPlan
    pairs: int
    beside_random: bool
    hash: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{row_name(self.row)}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Within the ablation's folder."""
        return f"cells/{self.hash}"

    @property
    def clips(self) -> int:
        """That pre-training sees."""
        return count_clips(self.recipe, self.pairs)


def expand_cells(plan: AblationPlan, source: PairSource) -> list[Cell]:
    """All cells of a plan: every row with the first seed, then with the next.

    So whatever a stopped ablation has done can be compared.

    Raises:
        RecipeError: a row that its recipe refuses, two rows that are the same, or rows that see
            unequally many clips.
        ManifestError: the pairs do not do.
    """
    named = {plan.evaluation.manifest, plan.finetuning.manifest if plan.finetuning else ""}
    videos = {path: _videos(path) if path else "" for path in named}
    cells = [
        _cell(plan, source, videos, row, seed) for seed in plan.seeds for row in expand_rows(plan)
    ]
    known: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        other = known.setdefault((cell.recipe, cell.corpus), cell)
        if other is not cell:
            raise RecipeError(
                f"plan {plan.title!r}: rows {row_name(other.row)!r} and {row_name(cell.row)!r} are "
                "the same in every setting"
            )
    _check_equal(plan, cells)
    return cells


def select(cells: Sequence[Cell], only: Collection[str]) -> list[Cell]:
    """The cells of some rows.

    Args:
        cells: of a plan.
        only: rows' names, or names of values, "/" between those that are to meet; none: all rows.

    Raises:
        RecipeError: a name that no row has.
    """
    if not only:
        return list(cells)
    wanted = [{part.strip() for part in name.split("/")} for name in only]
    for parts in wanted:
        if not any(parts <= set(cell.row.values()) for cell in cells):
            known = {value for cell in cells for value in cell.row.values()}
            lost = sorted(parts - known) or [" / ".join(sorted(parts))]
            raise RecipeError(f"--only: no row is called {lost[0]!r}; {nearest(lost[0], known)}")
    return [cell for cell in cells if any(parts <= set(cell.row.values()) for parts in wanted)]


def count_clips(recipe: Recipe, pairs: int) -> int:
    """Clips of a whole pre-training on so many pairs; what does not fill a batch is left over."""
    training = recipe.training
    return training.epochs * (pairs // training.batch_size) * training.batch_size


def _videos(path: str) -> str:
    manifest = Manifest.read(path)
    return manifest.hash + fingerprint(manifest)


def _cell(
    plan: AblationPlan, source: PairSource, videos: Mapping[str, str], row: AblationRow, seed: int
) -> Cell:
    where = f"plan {plan.title!r}, row {row_name(row)!r}"
    settings = recipe_settings(load_recipe(plan.recipe)) | plan.overrides
    corpus = plan.corpus
    for axis, value in row.items():
        own = plan.axes[axis][value]
        corpus = _with_keys(corpus, own, where)
        settings |= {key: each for key, each in own.items() if not key.startswith(_CORPUS)}
    recipe = make_recipe(Recipe, settings | {"training.seed": seed}, where)
    finetuning = _finetuning(plan, recipe, where)
    pairs, batch = source.count(corpus, seed, recipe.text.column), recipe.training.batch_size
    if pairs < batch:
        raise ManifestError(
            f"{where}: {pairs} usable pairs to learn from, less than a batch ({batch})"
        )
    beside_random = row == plan.first
    decides = {
        "version": VERSION,
        "recipe": recipe_settings(recipe),
        "pairs": source.hash_of(corpus, seed),
        "protocols": list(plan.evaluation.protocols),
        "clips": plan.evaluation.clips,
        "videos": videos[plan.evaluation.manifest],
        "finetuning": None if finetuning is None or plan.finetuning is None else {
            "recipe": recipe_settings(finetuning),
            "videos": videos[plan.finetuning.manifest],
            "views": [plan.finetuning.clips, plan.finetuning.crops],
        },
        "random": beside_random,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return Cell(row, seed, recipe, finetuning, corpus, pairs, beside_random, digest)


def _with_keys(corpus: CorpusPlan, keys: Mapping[str, Any], where: str) -> CorpusPlan:
    own = {k.removeprefix(_CORPUS): v for k, v in keys.items() if k.startswith(_CORPUS)}
    fields = [field.name for field in dataclasses.fields(CorpusPlan)]
    for key, value in own.items():
        if key not in fields:
            raise RecipeError(f"{where}: {_CORPUS}{key} is no key; {nearest(key, fields)}")
        kind = type(getattr(corpus, key))
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise RecipeError(f"{where}: {_CORPUS}{key} is {value!r}, which is no {kind.__name__}")
    return dataclasses.replace(corpus, **own)


def _finetuning(plan: AblationPlan, recipe: Recipe, where: str) -> FinetuneRecipe | None:
    if plan.finetuning is None:
        return None
    settings = recipe_settings(read_recipe(FinetuneRecipe, plan.finetuning.recipe))
    settings |= plan.finetuning.overrides
    settings |= {f"video.{k}": v for k, v in dataclasses.asdict(recipe.video).items()}
    settings |= {"training.seed": recipe.training.seed}
    return make_recipe(FinetuneRecipe, settings, f"{where}, fine-tuning")


def _check_equal(plan: AblationPlan, cells: Sequence[Cell]) -> None:
    fewest, most = min(cells, key=lambda c: c.clips), max(cells, key=lambda c: c.clips)
    if most.clips - fewest.clips > ALIKE * most.clips:
        raise RecipeError(
            f"plan {plan.title!r}: {row_name(fewest.row)!r} sees {fewest.clips:,} clips in all, "
            f"{row_name(most.row)!r} {most.clips:,} (epochs × whole batches of {fewest.pairs:,} "
            f"and {most.pairs:,} usable pairs); rows are only compared at equally many"
        )


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


def write_ledger(out: Path, plan: AblationPlan, cells: Sequence[Cell]) -> None:
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


class PairSource:
    """Manifests of the cells' pairs, first as they will be, then on the disk.

    Args:
        folder: for rendered videos and for manifests that differ from their source's.
        given: the user's manifest, if there is one.
        titles: whether rendered pairs get clean and tree titles, too. What is empty then has the
            title that it was made of, so that all columns have as many pairs.
    """

    def __init__(self, folder: Path, given: str | None = None, titles: bool = False) -> None:
        self.folder, self._titles = folder, titles
        self._given = Manifest.read(given) if given else None
        self._planned: dict[tuple[CorpusPlan, int], Manifest] = {}

    def planned(self, corpus: CorpusPlan, seed: int) -> Manifest:
        """The pairs as they will be, but for clean and tree titles; nothing is written.

        Args:
            corpus: which.
            seed: of what is drawn for each cell.

        Raises:
            RecipeError: a manifest is needed and none is given.
            ManifestError: settings that do not do.
        """
        key = (corpus, seed if corpus.wrong_titles else 0)
        if key not in self._planned:
            if corpus.wrong_titles:
                source = self._source(corpus)
                self._planned[key] = add_title_noise(source, corpus.wrong_titles, seed)
            else:
                self._planned[key] = self._given_or_to_render(corpus)
        return self._planned[key]

    def hash_of(self, corpus: CorpusPlan, seed: int) -> str:
        """What tells these pairs from others, see `planned`."""
        pairs = self.planned(corpus, seed)
        files = fingerprint(pairs) if corpus.manifest else ""  # what is rendered, seeds decide
        return _hash(pairs) + files

    def count(self, corpus: CorpusPlan, seed: int, column: str) -> int:
        """Pairs of the train split with such a title and a video that is not broken.

        Raises:
            ManifestError: no pair has such a title.
        """
        pairs = self.planned(corpus, seed)
        return _usable(pairs, "title" if self._makes_titles(corpus) else column)

    def write(self, corpus: CorpusPlan, seed: int) -> Path:
        """Render, prepare and write what is not there yet; return the manifest's file."""
        source, pairs = self._source(corpus), self.planned(corpus, seed)
        folder, titles = source.path.parent, self._makes_titles(corpus)
        if not corpus.manifest:
            with progress("rendering", corpus.pairs, "videos") as bar:
                render_corpus(
                    folder, corpus.pairs, corpus.seed, corpus.noise,
                    progress=lambda done, _: bar.advance(done),
                )  # fmt: skip
        if pairs is source and not titles:
            return source.path
        suffix = "-titles" if titles else ""
        path = self.folder / f"{folder.name}-{_hash(pairs)}{suffix}.parquet"
        if not path.is_file():
            if titles:
                prepared, _ = prepare_titles(source, empty="raw")
                pairs = add_title_noise(prepared, corpus.wrong_titles, seed)
            pairs.rebased(path).write(path)
        return path

    def _makes_titles(self, corpus: CorpusPlan) -> bool:
        return self._titles and not corpus.manifest

    def _source(self, corpus: CorpusPlan) -> Manifest:
        """The pairs with their own titles."""
        return self.planned(replace(corpus, wrong_titles=0.0), 0)

    def _given_or_to_render(self, corpus: CorpusPlan) -> Manifest:
        if corpus.manifest:
            if self._given is None:
                raise RecipeError("this plan is for pairs of your own: give --manifest M")
            return self._given
        if self._given is not None:
            raise RecipeError(
                "this plan renders its pairs; leave out --manifest, or give corpus.manifest=true"
            )
        rows = (pair.row for pair in scenes(corpus.pairs, corpus.seed, corpus.noise))
        folder = self.folder / f"rendered-{corpus.pairs}-{corpus.noise:g}-{corpus.seed}"
        return manifest_from_rows(rows, folder / "manifest.parquet")


# Of a quarter of a million pairs both take seconds, and every cell asks.
@lru_cache(maxsize=16)
def _hash(pairs: Manifest) -> str:
    return pairs.hash


@lru_cache(maxsize=16)
def _usable(pairs: Manifest, column: str) -> int:
    train = pairs.split("train")
    titles = train.column(column)
    if len(train) and not any(titles):
        raise ManifestError(f'{pairs.path} has no {column}; "crosspair titles" fills it')
    errors = train.column("error")
    return sum(bool(title) and not error for title, error in zip(titles, errors, strict=True))
