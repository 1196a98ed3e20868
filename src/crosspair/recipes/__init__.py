"""Recipes: one YAML file each, and how they are read, overridden, checked and hashed."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from crosspair.config import FinetuneRecipe, ObjectiveConfig, Recipe
from crosspair.errors import RecipeError

AnyRecipe = TypeVar("AnyRecipe", Recipe, FinetuneRecipe)
FOLDERS = {Recipe: "", FinetuneRecipe: "finetune"}  # where the packaged files of a kind are

SMALLEST = 32  # pixels: res5 sees a sixteenth of them
POSITIVE = frozenset({
    "size", "frames", "stride", "width", "embedding", "hidden", "dimensions", "max_words",
    "max_tokens", "temperature", "noise_samples", "lr", "epochs", "batch_size", "accumulate",
    "validate_every", "log_every", "patience", "margin",
})  # fmt: skip
NOT_NEGATIVE = frozenset({
    "color_jitter", "momentum", "weight_decay", "warmup_epochs", "clip_norm", "stage2_epoch",
    "stage2_lr", "text_lr", "text_head_factor", "seed", "workers", "checkpoint_steps", "drops",
})  # fmt: skip
SHARES = frozenset({"bank_momentum", "dropout", "label_smoothing", "hold_out"})  # of 1, never all
OBJECTIVES_OF = {  # fields that other objectives can do nothing with
    "estimate": {"cross_pair", "self_instance"},
    "instances": {"self_instance"},
    "margin": {"ranking"},
}


def recipe_names(kind: type[Recipe | FinetuneRecipe] = Recipe) -> list[str]:
    """The recipes of a kind that come with the package."""
    files = (resources.files(__name__) / FOLDERS[kind]).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of pre-training by name or file; see `read_recipe`.

    >>> load_recipe("laptop", ["training.epochs=3"]).training.epochs
    3
    """
    return read_recipe(Recipe, name, overrides)


def read_recipe(kind: type[AnyRecipe], name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe by name or file, and apply ``dotted.key=value`` overrides.

    Args:
        kind: of pre-training or of fine-tuning.
        name: of a recipe that comes with the package, or a file.
        overrides: later ones hold.

    Raises:
        RecipeError: no such recipe, a key that no recipe has (the nearest one is named), or a
            value of the wrong type.

    >>> read_recipe(FinetuneRecipe, "ucf101").clip.frames
    16
    """
    settings = _flat(_parsed(_text(kind, name), name), name)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RecipeError(f"{override!r} is not of the form key=value, as training.epochs=10")
        settings[key.strip().removeprefix("--")] = _parsed(value, override)
    return make_recipe(kind, settings, name)


def recipe_of(settings: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Make a recipe of pre-training; see `make_recipe`."""
    return make_recipe(Recipe, settings, name)


def make_recipe(
    kind: type[AnyRecipe], settings: Mapping[str, Any], name: str = "recipe"
) -> AnyRecipe:
    """Make a recipe of dotted keys and their values; keys left out have the defaults."""
    known = list(recipe_settings(kind()))
    for key in settings:
        if key not in known:
            raise RecipeError(f"{name}: {key!r} is no key of a recipe; {_nearest(key, known)}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "recipe")
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, field = key.partition(".")
        nested.setdefault(section, {})[field] = value
    try:
        namespace = parser.parse_object({"recipe": nested})
        recipe = parser.instantiate(namespace).recipe
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(f"{name}: {_first_fault(settings, str(error))}") from error
    assert isinstance(recipe, kind)
    _check(recipe, name)
    return recipe


def recipe_settings(recipe: Recipe | FinetuneRecipe) -> dict[str, Any]:
    """A recipe as dotted keys and plain values: the inverse of `make_recipe`."""
    plain = json.loads(json.dumps(dataclasses.asdict(recipe)))  # tuples become lists
    return _flat(plain, "recipe")


def dump_recipe(recipe: Recipe | FinetuneRecipe) -> str:
    """A recipe as the YAML that a run folder keeps."""
    plain = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def recipe_hash(recipe: Recipe | FinetuneRecipe) -> str:
    """12 hex digits that tell recipes apart."""
    return hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()[:12]


def hash_beside(kind: type[AnyRecipe], model: str) -> str:
    """Hash of the recipe of the run whose model this is; empty where no recipe lies beside it.

    Args:
        kind: of the recipe.
        model: its folder, or what else names a model.
    """
    file = Path(model).parent / "recipe.yaml"
    beside = Path(model).is_dir() and file.is_file()  # a model on the hub lies beside nothing
    return recipe_hash(read_recipe(kind, str(file))) if beside else ""


def _text(kind: type[AnyRecipe], name: str) -> str:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe file {name} cannot be read: {error}") from error
    names = recipe_names(kind)
    if name not in names:
        of_the_other = [
            other for other in FOLDERS if other is not kind and name in recipe_names(other)
        ]
        if of_the_other:
            what = "fine-tuning" if kind is Recipe else "pre-training"
            raise RecipeError(
                f"{name!r} is a recipe of {what}; those for this are {', '.join(names)}"
            )
        raise RecipeError(f"no recipe {name!r}; {_nearest(name, names)}, or give a file")
    file = resources.files(__name__) / FOLDERS[kind] / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML ({' '.join(str(error).split())})") from error


def _flat(nested: Any, name: str) -> dict[str, Any]:
    if not isinstance(nested, dict):
        raise RecipeError(f"{name}: a recipe is a YAML mapping of sections, not {nested!r}")
    flat = {}
    for section, fields in nested.items():
        if isinstance(fields, dict):
            flat.update({f"{section}.{field}": value for field, value in fields.items()})
        else:
            flat[str(section)] = fields
    return flat


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    last = name.rsplit(".", 1)[-1]
    close = (
        [key for key in known if key.endswith(f".{name}")]
        or difflib.get_close_matches(name, known, n=1)
        or [key for key in known if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]])]
    )
    return f"did you mean {close[0]!r}" if close else f"there are {', '.join(known)}"


def _first_fault(settings: Mapping[str, Any], message: str) -> str:
    """jsonargparse explains over several lines; keep the key, the value and the cause."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Expected")] or lines[-1:]
    for key, value in settings.items():
        if f'"recipe.{key}"' in message:
            return f"{key}: {value!r} does not do ({', or '.join(causes)})"
    return " ".join(lines)


def _check(recipe: Recipe | FinetuneRecipe, name: str) -> None:
    for key, value in recipe_settings(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{name}: {key} is {value}; it must be a finite number")
        last = key.split(".")[-1]
        if last in POSITIVE and (value is None or value <= 0):
            raise RecipeError(f"{name}: {key} is {value}; it must be above 0")
        if last in NOT_NEGATIVE and value is not None and value < 0:
            raise RecipeError(f"{name}: {key} is {value}; it must not be below 0")
        if last in SHARES and not 0 <= value < 1:
            raise RecipeError(f"{name}: {key} must lie in [0, 1)")
    if recipe.training.seed >= 2**32:
        raise RecipeError(f"{name}: training.seed is {recipe.training.seed}; it ends at 2**32 - 1")
    if not 1 <= recipe.clip.scale[0] <= recipe.clip.scale[1] or recipe.clip.test_scale < 1:
        raise RecipeError(f"{name}: clip.scale and clip.test_scale must be at least 1, ascending")
    if recipe.clip.size < SMALLEST:
        # From a single pixel on, oneDNN's bfloat16 gradient of a strided 3×3×3 convolution hangs.
        raise RecipeError(
            f"{name}: clip.size is {recipe.clip.size}; below {SMALLEST} res5 would see one pixel"
        )
    if isinstance(recipe, FinetuneRecipe) and not 0 < recipe.labels.share <= 1:
        raise RecipeError(f"{name}: labels.share is {recipe.labels.share}; it must lie in (0, 1]")
    if recipe.training.batch_size % recipe.training.accumulate:
        raise RecipeError(f"{name}: training.accumulate must divide training.batch_size")
    if recipe.training.batch_size // recipe.training.accumulate < 2:
        raise RecipeError(
            f"{name}: training.batch_size is {recipe.training.batch_size} in "
            f"{recipe.training.accumulate} parts; batch normalisation needs two clips at a time"
        )
    if isinstance(recipe, Recipe):
        _check_objective(recipe, name)


def _check_objective(recipe: Recipe, name: str) -> None:
    objective, parts = recipe.objective, recipe.training.accumulate
    for field, objectives in OBJECTIVES_OF.items():
        value = getattr(objective, field)
        if value != getattr(ObjectiveConfig, field) and objective.name not in objectives:
            raise RecipeError(
                f"{name}: objective.{field}={value} means nothing to objective.name="
                f"{objective.name}, only to {' and '.join(sorted(objectives))}; leave it out"
            )
    if objective.name in {"ranking", "in_batch"} and parts > 1:
        raise RecipeError(
            f"{name}: training.accumulate is {parts}, but objective.name={objective.name} tells "
            "pairs from the rest of their batch, which must not be in parts; set it to 1, "
            "and lower training.batch_size if memory does not do"
        )
