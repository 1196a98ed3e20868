"""Ablation plans: the rows to compare, their seeds, the data and the evaluation.

A plan is a YAML file with the fields of `AblationPlan`. Its rows are all combinations of the values
of its axes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jsonargparse
import yaml

from crosspair.errors import RecipeError

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
class PublishedRow:
    """Result of a row in the paper: an accuracy, a difference to another row, or a remark."""

    row: AblationRow
    source: str
    """Reference, for example "paper, Table 1c"."""
    value: float | None = None
    """Accuracy, 0 to 1."""
    difference: float | None = None
    """Difference to the accuracy of ``against``, if only the difference is published."""
    against: AblationRow = field(default_factory=dict)
    note: str = ""
    """Remark of the paper in words."""
    metric: str = "top-1"
    protocol: str = "30 views"
    """Protocol name as in `crosspair.evaluation.Result`."""


@dataclass(frozen=True)
class AblationPlan:
    """Plan of one ablation. The attributes in `YAML_KEYS` have other names in plan files."""

    title: str
    axes: dict[str, dict[str, dict[str, Any]]]
    """Axis -> name of a value -> keys of the recipe or of the corpus (``corpus.wrong_titles``)."""
    baseline: AblationRow
    """Row that the others are compared with. Random weights are evaluated for this row."""
    recipe: str
    """Pre-training recipe: name of a packaged recipe, or a file."""
    seeds: tuple[int, ...] = (0, 1, 2)
    table: str = ""
    """Corresponding table of the paper, for example "1a"."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Recipe keys that are set in all cells."""
    corpus: CorpusPlan = field(default_factory=CorpusPlan)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    finetuning: FinetuningPlan | None = None
    published: tuple[PublishedRow, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    """Variables that the user sets on the command line (``name=value``), with a description.
    "{name}" in overrides, axes and manifests is replaced with the value; then this is empty."""
    minutes: float = 60.0
    """Expected duration of all cells on two idle cores, or on the machine named in ``title``."""


YAML_KEYS = {"baseline": "first", "variables": "needs"}  # attribute -> key in plan files
SECTIONS = {"corpus": CorpusPlan, "evaluation": EvaluationPlan, "finetuning": FinetuningPlan}


def plan_names() -> list[str]:
    """List the packaged plans."""
    files = (resources.files(__package__) / "plans").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_plan(name: str, overrides: Sequence[str] = ()) -> AblationPlan:
    """Read a plan and apply overrides.

    Args:
        name: packaged plan, or a file.
        overrides: ``key=value`` strings. The key is a variable of the plan, ``seeds``, a key of the
            sections corpus, evaluation or finetuning, a key of the fine-tuning recipe
            (``finetuning.training.epochs``), or a recipe key for all cells.

    Raises:
        RecipeError: The plan does not exist, a key is unknown or duplicated, a value is invalid, or
            a variable is not set.
    """
    where = f"plan {name}"
    settings = _as_mapping(_parse_yaml(_read_text(name), where), where)
    variables = _as_mapping(settings.get("needs") or {}, f"{where}, needs")
    values: dict[str, str] = {}
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RecipeError(
                f"{override!r} is not of the form key=value, for example training.epochs=10"
            )
        if key in variables:
            values[key] = value
        elif key == "seeds":  # 0,1,2
            settings[key] = _parse_yaml(f"[{value.strip('[]')}]", override)
        else:
            _override(settings, key, _parse_yaml(value, override), where)
    plan = _build_plan(_substitute(settings, variables, values, where), where)
    _check_plan(plan, where)
    return plan


def plan_settings(plan: AblationPlan) -> dict[str, Any]:
    """Convert a plan to plain values with the keys of a plan file."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return {YAML_KEYS.get(name, name): value for name, value in settings.items()}


def expand_rows(plan: AblationPlan) -> list[AblationRow]:
    """List all combinations of the values of the axes; the last axis varies fastest."""
    return [dict(zip(plan.axes, names, strict=True)) for names in product(*plan.axes.values())]


def row_name(row: AblationRow) -> str:
    """Format a row for messages and reports.

    >>> row_name({"text": "words", "strategy": "joint"})
    'words / joint'
    """
    return " / ".join(row.values())


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the closest known name, or with all known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"It must be one of {', '.join(known)}."


def _read_text(name: str) -> str:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"plan {name}: the file is not readable: {error}") from error
    if name not in plan_names():
        raise RecipeError(f"unknown plan {name!r}. {suggest(name, plan_names())}")
    file = resources.files(__package__) / "plans" / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Keep keys as strings, and reject duplicate keys, which PyYAML accepts silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        del deep  # values are always constructed completely
        mapping: dict[Hashable, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"line {line}: a key must be a string, not a list or a mapping")
            if key.value in mapping:
                raise RecipeError(f"line {line}: key {key.value!r} is duplicated")
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecipeError as error:
        raise RecipeError(f"{where}, {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-30
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _as_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where} must be a YAML mapping, not {value!r}")
    return value


def _override(settings: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a key of a section, of the fine-tuning recipe, or of the pre-training recipe."""

    def copy_mapping(settings: dict[str, Any], name: str) -> dict[str, Any]:
        value = settings.get(name)
        return {} if value is None else dict(_as_mapping(value, f"{where}, {name}"))

    section, _, rest = key.partition(".")
    if section in SECTIONS and rest:
        keys = settings[section] = copy_mapping(settings, section)
        if section == "finetuning" and "." in rest:
            keys["overrides"] = {**copy_mapping(keys, "overrides"), rest: value}
        else:
            keys[rest] = value
    elif key == "finetuning":
        settings[key] = value  # null disables fine-tuning
    else:
        settings["overrides"] = {**copy_mapping(settings, "overrides"), key: value}


def _substitute(
    settings: dict[str, Any], variables: Mapping[str, str], values: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Replace "{name}" with the value of the variable."""
    missing = [f"{name}=… ({what})" for name, what in variables.items() if not values.get(name)]
    if missing:
        raise RecipeError(f"{where} requires {' and '.join(missing)} on the command line")

    def substitute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: substitute(item) for key, item in value.items()}
        match = re.fullmatch(r"\{(\w+)\}", value) if isinstance(value, str) else None
        if match is None:
            return value
        if match[1] not in values:
            raise RecipeError(f"{where}: variable {value} is not defined. Add it to needs.")
        return values[match[1]]

    return {**substitute(settings), "needs": {}}


def _build_plan(settings: dict[str, Any], where: str) -> AblationPlan:
    _check_keys(settings, AblationPlan, where)
    for section, kind in SECTIONS.items():
        if settings.get(section) is not None:
            keys = _as_mapping(settings[section], f"{where}, {section}")
            _check_keys(keys, kind, where, f"{section}.")
    attributes = {key: name for name, key in YAML_KEYS.items()}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AblationPlan, "plan")
    try:
        values = {attributes.get(key, key): value for key, value in settings.items()}
        plan = parser.instantiate(parser.parse_object({"plan": values})).plan
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        message = " ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())
        message = re.sub(
            r'Parser key "plan\.(\w+)([\w.]*)":',
            lambda match: f"{YAML_KEYS.get(match[1], match[1])}{match[2]}:",
            message,
        )
        raise RecipeError(f"{where}: {message[:300]}") from error
    assert isinstance(plan, AblationPlan)
    return plan


def _check_keys(settings: Mapping[str, Any], kind: type, where: str, prefix: str = "") -> None:
    fields = {YAML_KEYS.get(item.name, item.name): item for item in dataclasses.fields(kind)}
    for key in settings:
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {prefix}{key}. {suggest(key, fields)}")
    for key, item in fields.items():
        if item.default is item.default_factory is dataclasses.MISSING and key not in settings:
            raise RecipeError(f"{where}: key {prefix}{key} is missing")


def _check_plan(plan: AblationPlan, where: str) -> None:
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise RecipeError(
            f"{where}: seeds must be one or more different integers, not {list(plan.seeds)}"
        )
    if not plan.axes or not all(plan.axes.values()):
        raise RecipeError(f"{where}: axes must be one or more, each with values, not {plan.axes}")
    if "training.seed" in plan.overrides:
        raise RecipeError(f"{where}: training.seed is set per cell. Use seeds=… instead.")
    setters = {**dict.fromkeys(plan.overrides, "overrides"), "training.seed": "seeds"}
    for axis, values in plan.axes.items():
        for key in dict.fromkeys(key for keys in values.values() for key in keys):
            other = setters.setdefault(key, f"axis {axis!r}")
            if other != f"axis {axis!r}":
                raise RecipeError(f"{where}: {key} is set by {other} and by axis {axis!r}")
    rows = expand_rows(plan)
    for row, key in ((plan.baseline, "first"), *((p.row, "published") for p in plan.published)):
        if row not in rows:
            raise RecipeError(f"{where}: {key} must be a row such as {rows[0]}, not {row}")
    if not plan.evaluation.protocols and plan.finetuning is None:
        raise RecipeError(f"{where}: set evaluation.protocols or finetuning to evaluate the cells")
    counts = {"evaluation.clips": plan.evaluation.clips, "minutes": plan.minutes}
    if plan.finetuning:
        counts["finetuning.clips"] = plan.finetuning.clips
    for name, count in counts.items():
        if count <= 0:
            raise RecipeError(f"{where}: {name} must be positive, not {count}")
