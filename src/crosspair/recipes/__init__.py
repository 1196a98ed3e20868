"""Read, override, validate, write and hash recipes; the packaged recipes lie in this folder.

A recipe is a YAML file with one section for each field of `crosspair.config.Recipe` or `FinetuneRecipe`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.errors import RecipeError
from crosspair.files import read_yaml

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe | FinetuneRecipe)
FOLDERS: dict[type, str] = {Recipe: "", FinetuneRecipe: "finetune"}  # of the packaged files
ADDED = (
    ("clip", "hue"),
    ("clip", "grayscale"),
    ("clip", "area"),
    ("clip", "aspect"),
    ("video", "encoder"),
    ("video", "source"),
    ("video", "train"),
    ("video", "views"),
    ("video", "cache"),
    ("head", "projection"),
    ("head", "video_hidden"),
    ("head", "dropout"),
    ("head", "interpolation"),
    ("objective", "soft_targets"),
    ("objective", "merge_titles"),
    ("objective", "video_weight"),
    ("objective", "bank_init"),
    ("objective", "normalizer_decay"),
    ("objective", "learnable_temperature"),
    ("optimizer", "encoder_factor"),
    ("optimizer", "layer_decay"),
    ("multiview", "clips"),
    ("multiview", "crops"),
    ("multiview", "crop_scale"),
    ("training", "ema"),
)  # later; hashed only if not the default


def recipe_names(kind: type = Recipe) -> list[str]:
    """Return the names of the packaged recipes of a kind, sorted."""
    files = (resources.files(__name__) / FOLDERS[kind]).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a pre-training recipe; see `read_recipe`."""
    return read_recipe(Recipe, name, overrides)


def read_recipe(kind: type[AnyRecipe], name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe by name or file, and apply overrides.

    Args:
        kind: `Recipe` for pre-training, or `FinetuneRecipe`.
        name: name of a packaged recipe, or a YAML file.
        overrides: ``section.key=value`` with the value in YAML; the last one of a key is used.

    Raises:
        RecipeError: the recipe does not exist, a key is unknown (the closest one is suggested), or a value is invalid.

    >>> read_recipe(FinetuneRecipe, "ucf101", ["training.epochs=3"]).training.epochs
    3
    """
    return make_recipe(kind, read_settings(kind, name, overrides), name)


def read_settings(kind: type, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return only the values that a recipe and its overrides set, by ``section.key``; arguments as of `read_recipe`."""
    nested = read_yaml(_find_recipe(kind, name), name)
    if not isinstance(nested, dict):
        raise RecipeError(f"{name}: a recipe must be a YAML mapping of sections, not {nested!r}")
    return _flatten(nested) | parse_overrides(overrides)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``section.key=value``, in YAML, by ``section.key``; the last one of a key is used."""
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"{override!r} must have the form key=value, as training.epochs=10")
        settings[key.strip().removeprefix("--")] = read_yaml(value, override)
    return settings


def recipe_kind(name: str) -> type[Recipe | FinetuneRecipe]:
    """Return the kind of a recipe, by name or file; a file is for fine-tuning if it has a section of that only."""
    if name in recipe_names(FinetuneRecipe):
        return FinetuneRecipe
    own, other = ({field.name for field in dataclasses.fields(kind)} for kind in (FinetuneRecipe, Recipe))
    sections = {f"{key}".partition(".")[0] for key in read_yaml(_find_recipe(Recipe, name), name) or ()}
    return FinetuneRecipe if sections & (own - other) else Recipe


def read_any_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe | FinetuneRecipe:
    """Read a recipe of either kind, see `recipe_kind` and `read_recipe`."""
    return read_recipe(recipe_kind(name), name, overrides)


def recipe_of(settings: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Build a pre-training recipe; see `make_recipe`."""
    return make_recipe(Recipe, settings, name)


def make_recipe(kind: type[AnyRecipe], settings: Mapping[str, Any], name: str = "recipe") -> AnyRecipe:
    """Build a recipe from values by ``section.key``; missing keys have their defaults.

    Raises:
        RecipeError: a key is unknown, or a value is invalid; the message begins with ``name``.
    """
    defaults = recipe_settings(kind())
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key not in defaults:
            raise RecipeError(f"{name}: {key!r} is unknown; {suggest(key, defaults)}")
        if value is None and defaults[key] is not None:  # the default of optional fields is None
            raise RecipeError(f"{name}: {key} has no value")
        section, _, field = key.partition(".")
        nested.setdefault(section, {})[field] = value
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "recipe")
    try:
        recipe = parser.instantiate(parser.parse_object({"recipe": nested})).recipe
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from error
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(f"{name}: {_format_type_error(settings, str(error))}") from error
    assert isinstance(recipe, kind)
    return recipe


def recipe_settings(recipe: Recipe | FinetuneRecipe) -> dict[str, Any]:
    """Return a recipe as dotted keys and plain values: the inverse of `make_recipe`."""
    return _flatten(_to_plain(recipe))


def dump_recipe(recipe: Recipe | FinetuneRecipe) -> str:
    """Return a recipe as YAML, as stored in run folders."""
    return _to_yaml(_to_plain(recipe))


def recipe_hash(recipe: Recipe | FinetuneRecipe) -> str:
    """Return a hash of a recipe's values: 12 hexadecimal digits."""
    return hashlib.sha256(_to_yaml(_hashed_values(recipe)).encode()).hexdigest()[:12]


def hashed_settings(recipe: Recipe | FinetuneRecipe) -> dict[str, Any]:
    """Return `recipe_settings` for a hash: without fields that were added later and have their default."""
    return _flatten(_hashed_values(recipe))


def run_recipe_hash(kind: type[AnyRecipe], model: str) -> str:
    """Return the hash of the recipe of the run that a model folder lies in; empty if there is none."""
    file = Path(model).parent / "recipe.yaml"
    if not Path(model).is_dir() or not file.is_file():  # e.g. a model on the Hub
        return ""
    return recipe_hash(read_recipe(kind, str(file)))


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a clause with the known key closest to ``name``, or with all known ones."""
    known = list(known)
    last = name.rsplit(".", 1)[-1]
    close = (
        [key for key in known if key.endswith(f".{name}")]
        or difflib.get_close_matches(name, known, n=1)
        or [key for key in known if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]])]
    )
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"


def _find_recipe(kind: type, name: str) -> str | Path:
    """Return the text of a packaged recipe, or the path of a file."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    names = recipe_names(kind)
    if name in names:
        return (resources.files(__name__) / FOLDERS[kind] / f"{name}.yaml").read_text(encoding="utf-8")
    other, task = (FinetuneRecipe, "fine-tuning") if kind is Recipe else (Recipe, "pre-training")
    if name in recipe_names(other):
        raise RecipeError(f"{name!r} is a {task} recipe; choose one of {', '.join(names)}")
    raise RecipeError(f"no recipe {name!r}; {suggest(name, names)}, or give a YAML file")


def _to_plain(recipe: Recipe | FinetuneRecipe) -> dict[str, dict[str, Any]]:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))  # type: ignore[no-any-return]  # tuples become lists


def _hashed_values(recipe: Recipe | FinetuneRecipe) -> dict[str, dict[str, Any]]:
    plain, defaults = _to_plain(recipe), _to_plain(type(recipe)())
    for section, field in ADDED:
        if section in plain and plain[section][field] == defaults[section][field]:
            del plain[section][field]
    return {section: fields for section, fields in plain.items() if fields}


def _to_yaml(plain: Mapping[str, Any]) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by ``section.key``."""
    flat: dict[str, Any] = {}
    for section, fields in nested.items():
        flat |= (
            {f"{section}.{key}": value for key, value in fields.items()}
            if isinstance(fields, dict)
            else {section: fields}
        )
    return flat


def _format_type_error(settings: Mapping[str, Any], message: str) -> str:
    """Reduce jsonargparse's multi-line message to the key, the value and the expected types."""
    types = re.findall(r"Expected (?:an? )?(.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    expected = re.sub(r"<class '(\w+)'>", r"\1", " or ".join(types)).replace("NoneType", "null")
    expected = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", expected)
    for key, value in settings.items():
        if f'"recipe.{key}"' in message:
            return f"{key} is {value!r}; expected {expected or 'another type'}"
    return " ".join(message.split())
