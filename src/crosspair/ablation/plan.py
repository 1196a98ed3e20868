"""Ablation plans: the rows to compare, their seeds, the data and the evaluation.

A plan is a YAML file with the fields of `AblationPlan`. Its rows are all combinations of the values
of its axes. A key of the recipe, or several keys with the same value, can have a grid, of which each
row uses the best value: ``optimizer.lr, curriculum.stage2_lr: {grid: [1.0e-3, 2.0e-3]}``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import jsonargparse

from crosspair.errors import RecipeError
from crosspair.files import read_yaml
from crosspair.recipes import suggest

Settings = TypeVar("Settings")
AblationRow: TypeAlias = dict[str, str]  # axis -> name of a value

ProtocolName: TypeAlias = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot"]


@dataclass(frozen=True)
class CorpusPlan:
    """Training pairs of the cells."""

    manifest: bool = False
    """Whether the pairs come from the user's manifest (``--manifest``) (else: rendered videos)."""
    pairs: int = 2000
    """Number of videos to render."""
    noise: float = 0.2
    """Noise of the rendered titles, see `crosspair.corpora.rendered.render_corpus`."""
    seed: int = 0
    """Seed of the rendered videos and titles, the same for the cells of all seeds."""
    wrong_titles: float = 0.0
    """Fraction of the training titles that come from other videos, in addition to ``noise``. The
    seed of the cell selects the titles."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Evaluation of the frozen model of a cell."""

    protocols: tuple[ProtocolName, ...] = ("retrieval", "knn", "linear", "zeroshot")
    clips: int = 10
    """Clips per video; 10 in the paper."""
    manifest: str = ""
    """Manifest of the videos that are evaluated; empty: the corpus."""


@dataclass(frozen=True)
class FinetuningPlan:
    """Fine-tuning and multi-view evaluation, also of a randomly initialised network."""

    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the fine-tuning recipe. The settings of the video encoder are always the cell's."""
    manifest: str = ""
    """Manifest with labels; empty: the corpus."""
    clips: int = 10
    """Clips per test video; 10 in the paper."""
    crops: Literal[1, 3] = 3
    """Crops per clip: 3 in the paper, or 1 for the centre crop."""


@dataclass(frozen=True)
class TuningPlan:
    """Choice of the values with a grid: all their combinations are trained once, with one seed, and compared on split
    val of the evaluated videos. The first one with the highest accuracy is used for all seeds."""

    metric: Literal["retrieval", "knn", "linear", "zeroshot"] = "knn"
    """Protocol that is compared, by its top-1 accuracy (of the visual feature, if it has one) or text→video R@10."""
    seed: int = 100
    """Seed of these trainings, none of those of the report."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Recipe keys that are set only in these trainings, for example fewer epochs."""
    axes: tuple[str, ...] = ()
    """Axes whose values are tuned separately, with the baseline's values of the other axes; empty: all axes."""


@dataclass(frozen=True)
class Claim:
    """Claim that the plan tests: a difference of rows is positive."""

    claim: str
    source: str
    """Reference, for example "paper, Table 1c"."""
    rows: dict[str, float]
    """Name of a row -> its weight in the difference, for example {ranking: -1, cross-pair: 1}; the sum is 0."""
    difference: float | None = None
    """Published difference of accuracies in this protocol."""
    protocol: str = "kNN"
    """Protocol whose top-1 accuracy (of the visual feature, if it has one) decides."""

    def __post_init__(self) -> None:
        if not self.rows or abs(sum(self.rows.values())) > 1e-9:
            raise RecipeError(f"claims: the weights of rows must have the sum 0, not {self.rows}")


@dataclass(frozen=True)
class AblationPlan:
    """Plan of one ablation."""

    title: str
    axes: dict[str, dict[str, dict[str, Any]]]
    """Axis -> name of a value -> keys of the recipe or of the corpus (``corpus.wrong_titles``), with a value or
    with ``{grid: [VALUE, ...]}``, see `TuningPlan`."""
    baseline: AblationRow
    """Row that the others are compared with (``first`` in plan files). Random weights are evaluated
    for this row."""
    recipe: str
    """Pre-training recipe: name of a packaged recipe, or a file."""
    seeds: tuple[int, ...] = (0, 1, 2)
    table: str = ""
    """Corresponding table of the paper, for example "1a"."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Recipe keys that are set in all cells, with a value or a grid."""
    tuning: TuningPlan = field(default_factory=TuningPlan)
    corpus: CorpusPlan = field(default_factory=CorpusPlan)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    finetuning: FinetuningPlan | None = None
    claims: tuple[Claim, ...] = ()
    minutes: float = 60.0
    """Expected duration of all cells on two idle cores, or on the machine named in ``title``."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RecipeError(f"seeds must be one or more different integers, not {list(self.seeds)}")
        if not self.axes or not all(self.axes.values()):
            raise RecipeError(f"axes must be one or more, each with values, not {self.axes}")
        if not self.evaluation.protocols and self.finetuning is None:
            raise RecipeError("set evaluation.protocols or finetuning to evaluate the cells")
        for section in ("evaluation", "finetuning"):
            clips = getattr(getattr(self, section), "clips", 1)
            if clips < 1:
                raise RecipeError(f"{section}.clips must be positive, not {clips}")
        if "training.seed" in self.overrides:
            raise RecipeError("training.seed is set for each cell by seeds=0,1,2")
        for overrides in (self.overrides, self.tuning.overrides):
            keys = _split_keys(overrides)
            if repeated := [key for key in keys if keys.count(key) > 1]:
                raise RecipeError(f"{repeated[0]} is set twice, by overrides {list(overrides)}")
        keys = _split_keys(self.overrides)
        setters = {"training.seed": "seeds", **dict.fromkeys(keys, "overrides")}
        for axis, values in self.axes.items():
            for key in (key for each in values.values() for key in _split_keys(each)):
                if setters.setdefault(key, f"axis {axis!r}") != f"axis {axis!r}":
                    raise RecipeError(f"{key} is set by {setters[key]} and by axis {axis!r}")
        rows = expand_rows(self)
        if self.baseline not in rows:
            raise RecipeError(f"first must be a row such as {rows[0]}, not {self.baseline}")
        names = [row_name(row) for row in rows]
        for name in (name for claim in self.claims for name in claim.rows if name not in names):
            raise RecipeError(f"claims: no row {name!r}; {suggest(name, names)}")
        self._check_tuning()

    def _check_tuning(self) -> None:
        tuning = self.tuning
        if unknown := set(tuning.axes) - self.axes.keys():
            raise RecipeError(f"tuning.axes: there is no axis {min(unknown)!r}")
        if tuning.seed in self.seeds:
            raise RecipeError(f"tuning.seed must differ from seeds, not {tuning.seed}")
        if grids := [key for key, value in tuning.overrides.items() if isinstance(value, dict)]:
            raise RecipeError(f"tuning.overrides: {grids[0]} must be a value, not {tuning.overrides[grids[0]]}")
        settings = [("", self.overrides), *((axis, keys) for axis in self.axes for keys in self.axes[axis].values())]
        for axis, key, value in ((axis, *item) for axis, keys in settings for item in keys.items()):
            if isinstance(value, dict):
                if axis and tuning.axes and axis not in tuning.axes:
                    raise RecipeError(f"{key} has a grid, but its axis {axis!r} is not in tuning.axes")
                if fixed := set(_split_keys([key])) & set(_split_keys(tuning.overrides)):
                    raise RecipeError(f"{min(fixed)} has a grid, but is set by tuning.overrides")
                if value.keys() != {"grid"} or not isinstance(value["grid"], list) or not value["grid"]:
                    raise RecipeError(f"{key} must be a value or {{grid: [VALUE, ...]}}, not {value}")


SECTIONS = {"corpus": CorpusPlan, "evaluation": EvaluationPlan, "finetuning": FinetuningPlan, "tuning": TuningPlan}


def plan_names() -> list[str]:
    """List the packaged plans."""
    files = (resources.files(__package__) / "plans").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_plan(name: str, overrides: Sequence[str] = ()) -> AblationPlan:
    """Read a plan and apply overrides.

    A plan file has the fields of `AblationPlan`, with ``first`` for the baseline. Its key ``needs``
    describes variables that the command line sets: "{name}" is replaced with the value of ``name``.

    Args:
        name: packaged plan, or a file.
        overrides: ``key=value`` strings. The key is a variable of the plan, ``seeds``, a key of the
            sections corpus, evaluation, finetuning or tuning, a recipe key of the last two
            (``finetuning.training.epochs``), or a recipe key for all cells, also several with the
            same value (``optimizer.lr,curriculum.stage2_lr``). It replaces the value or the grid of
            ``overrides`` and of all axes; ``tuning.overrides`` have priority in cells for tuning.

    Raises:
        RecipeError: The plan does not exist, a key is unknown or duplicated, a value is invalid, or
            a variable is not set.
    """
    where = f"plan {name}"
    settings = read_yaml(_find_plan(name), where)
    if not isinstance(settings, dict):
        raise RecipeError(f"{where} must be a YAML mapping, not {settings!r}")
    sections: dict[str, dict[str, Any]] = {}
    for section_name in ("needs", "first", "overrides", *SECTIONS):
        section = settings.pop(section_name, None)
        if not isinstance(section, dict | None):
            raise RecipeError(f"{where}: {section_name} must be a mapping, not {section!r}")
        sections[section_name] = section or {}
    variables, values = sections.pop("needs"), dict[str, str]()
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RecipeError(f"{override!r} must have the form key=value, as training.epochs=10")
        if key in variables:
            values[key] = value
        elif key == "seeds":  # 0,1,2
            settings[key] = read_yaml(f"[{value.strip('[]')}]", override)
        elif override == "finetuning=null":
            sections[key] = {}
        else:
            prefix, _, rest = key.partition(".")
            section = sections[prefix if prefix in SECTIONS and rest else "overrides"]
            if prefix in {"finetuning", "tuning"} and "." in rest:
                section = section.setdefault("overrides", {})
            name = rest if prefix in SECTIONS and rest else key
            _remove_keys(section, name)
            section[name] = read_yaml(value, override)
            for axis_settings in _axis_settings(settings):
                _remove_keys(axis_settings, key)
    missing = [f"{key}=… ({what})" for key, what in variables.items() if not values.get(key)]
    if missing:
        raise RecipeError(f"{where} requires {' and '.join(missing)} on the command line")
    sections["baseline"] = sections.pop("first")
    settings |= {name: section for name, section in sections.items() if section or name == "baseline"}
    settings = _substitute(settings, values, where)
    for name, kind in SECTIONS.items():  # checked first, for the full key in messages
        if name in settings:
            build_settings(kind, settings[name], where, f"{name}.")
    return build_settings(AblationPlan, settings, where)


def _axis_settings(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the keys of all values of the axes of a plan file, without those of an invalid type."""
    axes = settings.get("axes")
    for values in axes.values() if isinstance(axes, dict) else ():
        yield from (keys for keys in values.values() if isinstance(keys, dict)) if isinstance(values, dict) else ()


def _remove_keys(settings: dict[str, Any], removed: str) -> None:
    """Remove a key or several ("a, b") from a mapping and from its lists of keys: "b, c" becomes "c"."""
    for key, value in [*settings.items()]:
        del settings[key]
        if kept := [each for each in _split_keys([str(key)]) if each not in _split_keys([removed])]:
            settings[", ".join(kept)] = value


def plan_settings(plan: AblationPlan) -> dict[str, Any]:
    """Convert a plan to plain values with the keys of a plan file."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return {"first" if key == "baseline" else key: value for key, value in settings.items()}


def expand_rows(plan: AblationPlan) -> list[AblationRow]:
    """List all combinations of the values of the axes; the last axis varies fastest."""
    return [dict(zip(plan.axes, names, strict=True)) for names in product(*plan.axes.values())]


def row_name(row: AblationRow) -> str:
    """Format a row for messages and reports.

    >>> row_name({"text": "words", "strategy": "joint"})
    'words / joint'
    """
    return " / ".join(row.values())


def expand_grid(plan: AblationPlan, row: AblationRow) -> list[dict[str, Any]]:
    """List all combinations of the values of a row's grids by key; one empty combination without a grid."""
    settings = _merge_settings(plan, row)
    grids = {key: value["grid"] for key, value in settings.items() if isinstance(value, dict)}
    return [dict(zip(grids, values, strict=True)) for values in product(*grids.values())]


def row_settings(plan: AblationPlan, row: AblationRow, grid: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the overrides of the plan and the keys of a row, with the values of ``grid`` for those with a grid."""
    return split_settings(_merge_settings(plan, row) | dict(grid))


def split_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give each of several keys with the same value ("a, b") the value."""
    return {key: value for keys, value in settings.items() for key in _split_keys([keys])}


def _merge_settings(plan: AblationPlan, row: AblationRow) -> dict[str, Any]:
    return plan.overrides | {key: value for axis in row for key, value in plan.axes[axis][row[axis]].items()}


def _split_keys(keys: Iterable[str]) -> list[str]:
    """Split "a, b", keys with the same value."""
    return [key.strip() for each in keys for key in each.split(",")]


def tuning_row(plan: AblationPlan, row: AblationRow) -> AblationRow:
    """Return the row whose tuning determines the values of a row's grids."""
    return {axis: row[axis] if axis in (plan.tuning.axes or row) else plan.baseline[axis] for axis in row}


def build_settings(kind: type[Settings], settings: Mapping[str, Any], where: str, prefix: str = "") -> Settings:
    """Build a dataclass from plain values.

    Args:
        kind: class of the settings.
        settings: values of its fields.
        where: name of the plan, and of its row, for messages.
        prefix: name of the section with a dot, for messages.

    Raises:
        RecipeError: a key is unknown or missing, or a value is invalid.
    """
    fields = {item.name: item.default for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {prefix}{key}; {suggest(key, fields)}")
        if value is None and fields[key] is not None:
            raise RecipeError(f"{where}: {prefix}{key} has no value")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "plan")
    try:
        plan: Settings = parser.instantiate(parser.parse_object({"plan": settings})).plan
    except RecipeError as error:
        raise RecipeError(f"{where}: {prefix}{error}") from error
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        message = " ".join(str(error).replace("plan.", prefix).split())
        raise RecipeError(f"{where}: {message[:300]}") from error
    return plan


def _find_plan(name: str) -> str | Path:
    """Return the text of a packaged plan, or the path of a file."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    if name not in plan_names():
        raise RecipeError(f"no plan {name!r}; {suggest(name, plan_names())}, or give a YAML file")
    return (resources.files(__package__) / "plans" / f"{name}.yaml").read_text(encoding="utf-8")


def _substitute(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """Replace each value that is exactly "{name}", also in nested mappings, with that variable's value."""
    if isinstance(value, dict):
        return {key: _substitute(item, variables, where) for key, item in value.items()}
    match = re.fullmatch(r"\{(\w+)\}", value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in variables:
        raise RecipeError(f"{where}: variable {value} is not defined. Add it to needs.")
    return variables[match[1]]
