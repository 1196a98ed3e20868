"""Cells: one row of a plan with one seed each, and what tells them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosspair.ablation.pairs import Pairs
from crosspair.ablation.plan import CorpusPlan, Plan, Row, row_name, rows_of
from crosspair.ablation.reading import nearest
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.corpora import Manifest
from crosspair.corpora.fingerprint import fingerprint
from crosspair.errors import ManifestError, RecipeError
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

    row: Row
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
        return clips_seen(self.recipe, self.pairs)


def cells_of(plan: Plan, source: Pairs) -> list[Cell]:
    """All cells of a plan: every row with the first seed, then with the next.

    So whatever a stopped ablation has done can be compared.

    Raises:
        RecipeError: a row that its recipe refuses, two rows that are the same, or rows that see
            unequally many clips.
        ManifestError: the pairs do not do.
    """
    named = {plan.evaluation.manifest, plan.finetuning.manifest if plan.finetuning else ""}
    videos = {path: _videos(path) if path else "" for path in named}
    cells = [_cell(plan, source, videos, row, seed) for seed in plan.seeds for row in rows_of(plan)]
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


def clips_seen(recipe: Recipe, pairs: int) -> int:
    """Clips of a whole pre-training on so many pairs; what does not fill a batch is left over."""
    training = recipe.training
    return training.epochs * (pairs // training.batch_size) * training.batch_size


def _videos(path: str) -> str:
    manifest = Manifest.read(path)
    return manifest.hash + fingerprint(manifest)


def _cell(plan: Plan, source: Pairs, videos: Mapping[str, str], row: Row, seed: int) -> Cell:
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


def _finetuning(plan: Plan, recipe: Recipe, where: str) -> FinetuneRecipe | None:
    if plan.finetuning is None:
        return None
    settings = recipe_settings(read_recipe(FinetuneRecipe, plan.finetuning.recipe))
    settings |= plan.finetuning.overrides
    settings |= {f"video.{k}": v for k, v in dataclasses.asdict(recipe.video).items()}
    settings |= {"training.seed": recipe.training.seed}
    return make_recipe(FinetuneRecipe, settings, f"{where}, fine-tuning")


def _check_equal(plan: Plan, cells: Sequence[Cell]) -> None:
    fewest, most = min(cells, key=lambda c: c.clips), max(cells, key=lambda c: c.clips)
    if most.clips - fewest.clips > ALIKE * most.clips:
        raise RecipeError(
            f"plan {plan.title!r}: {row_name(fewest.row)!r} sees {fewest.clips:,} clips in all, "
            f"{row_name(most.row)!r} {most.clips:,} (epochs × whole batches of {fewest.pairs:,} "
            f"and {most.pairs:,} usable pairs); rows are only compared at equally many"
        )
