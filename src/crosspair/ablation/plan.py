"""Plans of ablations: which rows, how often, on what, and what the paper has to compare with.

A plan is a YAML file of the fields of `Plan`. Its rows are all combinations of its axes' values.
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
    """The pairs that all cells learn from."""

    manifest: bool = False
    """Whether the pairs are the user's own, given by ``--manifest``, instead of rendered ones."""
    pairs: int = 2000
    """Videos to render."""
    noise: float = 0.2
    """Of rendered titles, see `crosspair.corpora.rendered.render_corpus`."""
    seed: int = 0
    """Of rendered videos and titles; cells of all seeds learn from the same ones."""
    wrong_titles: float = 0.0
    """Share of the train split's titles that are of other videos, besides ``noise``; which ones
    is drawn by the cell's seed."""


@dataclass(frozen=True)
class EvaluationPlan:
    """How the frozen model of a cell is tested."""

    protocols: tuple[ProtocolName, ...] = ("retrieval", "knn", "linear", "zeroshot")
    clips: int = 10
    """A video; 10 in the paper."""
    manifest: str = ""
    """Videos to test on (and for classifiers to learn from); empty: those of the corpus."""


@dataclass(frozen=True)
class FinetuningPlan:
    """How the model of a cell is fine-tuned and tested, beside the same network from scratch."""

    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Of the recipe; its video encoder is the cell's own in any case."""
    manifest: str = ""
    """Videos with labels; empty: those of the corpus."""
    clips: int = 10
    """A tested video; 10 in the paper."""
    crops: Literal[1, 3] = 3
    """Of each clip: 3 in the paper, or the centre."""


@dataclass(frozen=True)
class PublishedRow:
    """What the paper says of a row; a number, a difference to another row, or words."""

    row: AblationRow
    source: str
    """As "paper, Table 1c"."""
    value: float | None = None
    """Accuracy, 0 to 1."""
    difference: float | None = None
    """Of the accuracy to that of ``against``, where only this is told."""
    against: AblationRow = field(default_factory=dict)
    note: str = ""
    """What is told in words."""
    metric: str = "top-1"
    protocol: str = "30 views"
    """As in `crosspair.evaluation.Result`."""


@dataclass(frozen=True)
class AblationPlan:
    """One ablation."""

    title: str
    axes: dict[str, dict[str, dict[str, Any]]]
    """Axis -> name of a value -> keys of the recipe, or of the corpus (``corpus.wrong_titles``)."""
    first: AblationRow
    """The row that others are compared with; random weights are tested beside it."""
    recipe: str
    """Of pre-training: a packaged name or a file."""
    seeds: tuple[int, ...] = (0, 1, 2)
    table: str = ""
    """The paper's table that it answers, as "1a"."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe, for all cells."""
    corpus: CorpusPlan = field(default_factory=CorpusPlan)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    finetuning: FinetuningPlan | None = None
    published: tuple[PublishedRow, ...] = ()
    needs: dict[str, str] = field(default_factory=dict)
    """What the user must name on the command line (``name=value``), and what it is, for people;
    "{name}" stands for it as a value of overrides, axes and manifests. Empty once it is named."""
    minutes: float = 60.0
    """What the whole is meant to take on two quiet cores, or on what ``title`` says."""


def expand_rows(plan: AblationPlan) -> list[AblationRow]:
    """All combinations of the axes' values, the last axis fastest."""
    names = product(*plan.axes.values())
    return [dict(zip(plan.axes, each, strict=True)) for each in names]


def row_name(row: AblationRow) -> str:
    """For people.

    >>> row_name({"text": "words", "strategy": "joint"})
    'words / joint'
    """
    return " / ".join(row.values())


def plain(plan: AblationPlan) -> dict[str, Any]:
    """A plan as JSON and YAML hold it."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return settings


SECTIONS = {"corpus": CorpusPlan, "evaluation": EvaluationPlan, "finetuning": FinetuningPlan}
_PLACE = re.compile(r"\{(\w+)\}")


def plan_names() -> list[str]:
    """The plans that come with the package."""
    files = (resources.files(__package__) / "plans").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_plan(name: str, overrides: Sequence[str] = ()) -> AblationPlan:
    """Read a plan.

    Args:
        name: of a plan that comes with the package, or a file.
        overrides: ``key=value`` each: what the plan needs, ``seeds``, a key of the sections corpus,
            evaluation and finetuning (of a recipe of fine-tuning: ``finetuning.training.epochs``),
            or else a key of the recipe, for all cells.

    Raises:
        RecipeError: no such plan, an unknown key (the nearest one is named), a value that does not
            do, a name that stands twice, or something needed that is not given.
    """
    where = f"plan {name}"
    settings = _mapping(_parsed(_text(name), where), where)
    needs = _mapping(settings.get("needs") or {}, f"{where}, needs")
    given: dict[str, str] = {}
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise RecipeError(f"{override!r} is not of the form key=value, as training.epochs=10")
        if key in needs:
            given[key] = value
        elif key == "seeds":  # as 0,1,2
            settings[key] = _parsed(f"[{value.strip('[]')}]", override)
        else:
            _apply(settings, key, _parsed(value, override), where)
    return _checked(_made(_filled(settings, given, where), where), where)


def nearest(name: str, known: Iterable[str]) -> str:
    """For messages: what was probably meant, or all there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}" if close else f"there are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """Takes keys as they are written, and refuses one that stands twice, of which YAML keeps the
    last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        del deep  # values are whole before they are handed on
        found: dict[Hashable, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"line {line}: a key is a word, not a list or a mapping")
            if key.value in found:
                raise RecipeError(f"line {line}: {key.value!r} stands twice")
            found[key.value] = self.construct_object(value, deep=True)
        return found


def _text(name: str) -> str:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"plan {name} cannot be read: {error}") from error
    if name not in plan_names():
        raise RecipeError(f"no plan {name!r}; {nearest(name, plan_names())}, or give a file")
    file = resources.files(__package__) / "plans" / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecipeError as error:
        raise RecipeError(f"{where}, {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where} is a YAML mapping, not {value!r}")
    return value


def _apply(settings: dict[str, Any], key: str, value: Any, where: str) -> None:
    """An override goes to its section, or to those of the recipe."""

    def mapping(settings: dict[str, Any], name: str) -> dict[str, Any]:
        found = settings.get(name)
        return {} if found is None else dict(_mapping(found, f"{where}, {name}"))

    section, _, rest = key.partition(".")
    if section in SECTIONS and rest:
        of = settings[section] = mapping(settings, section)
        if section == "finetuning" and "." in rest:
            of["overrides"] = {**mapping(of, "overrides"), rest: value}
        else:
            of[rest] = value
    elif key == "finetuning":
        settings[key] = value  # null: none
    else:
        settings["overrides"] = {**mapping(settings, "overrides"), key: value}


def _filled(settings: dict[str, Any], given: Mapping[str, str], where: str) -> dict[str, Any]:
    """The settings with what the user gave in its places."""
    needs: Mapping[str, str] = settings.get("needs") or {}
    missing = [f"{name}=… ({what})" for name, what in needs.items() if not given.get(name)]
    if missing:
        raise RecipeError(f"{where} needs {' and '.join(missing)} on the command line")

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        found = _PLACE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        if found[1] not in given:
            raise RecipeError(f"{where}: {value} stands for nothing; name it under needs")
        return given[found[1]]

    return {**{key: fill(value) for key, value in settings.items()}, "needs": {}}


def _made(settings: dict[str, Any], where: str) -> AblationPlan:
    _check_keys(settings, AblationPlan, where)
    for section, kind in SECTIONS.items():
        if settings.get(section) is not None:
            _check_keys(_mapping(settings[section], f"{where}, {section}"), kind, where, section)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AblationPlan, "plan")
    try:
        plan = parser.instantiate(parser.parse_object({"plan": settings})).plan
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        told = " ".join(line.strip(" -") for line in str(error).splitlines() if line.strip())
        told = re.sub(r'Parser key "plan\.([\w.]+)":', r"\1:", told)
        raise RecipeError(f"{where}: {told[:300]}") from error
    assert isinstance(plan, AblationPlan)
    return plan


def _check_keys(settings: Mapping[str, Any], kind: type, where: str, section: str = "") -> None:
    fields = {each.name: each for each in dataclasses.fields(kind)}
    prefix = f"{section}." if section else ""
    for key in settings:
        if key not in fields:
            raise RecipeError(f"{where}: {prefix}{key} is no key of a plan; {nearest(key, fields)}")
    for name, each in fields.items():
        if each.default is each.default_factory is dataclasses.MISSING and name not in settings:
            raise RecipeError(f"{where}: {prefix}{name} is missing")


def _checked(plan: AblationPlan, where: str) -> AblationPlan:
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise RecipeError(f"{where}: seeds are {list(plan.seeds)}; give one or more, each once")
    if not plan.axes or not all(plan.axes.values()):
        raise RecipeError(f"{where}: axes are {plan.axes}; give one or more, each with values")
    if "training.seed" in plan.overrides:
        raise RecipeError(f"{where}: training.seed is a cell's own; give seeds=… in its place")
    setters = {**dict.fromkeys(plan.overrides, "for all cells"), "training.seed": "by seeds"}
    for axis, values in plan.axes.items():
        for key in dict.fromkeys(key for keys in values.values() for key in keys):
            other = setters.setdefault(key, f"by axis {axis!r}")
            if other != f"by axis {axis!r}":
                raise RecipeError(
                    f"{where}: {key} is set {other} and by axis {axis!r}; leave one out"
                )
    rows = expand_rows(plan)
    for row, what in ((plan.first, "first"), *((p.row, "published") for p in plan.published)):
        if row not in rows:
            raise RecipeError(f"{where}: {what} names no row: {row}; a row is {rows[0]} and so on")
    if not plan.evaluation.protocols and plan.finetuning is None:
        raise RecipeError(f"{where}: nothing is tested: name evaluation.protocols, or finetuning")
    counts = {"evaluation.clips": plan.evaluation.clips, "minutes": plan.minutes}
    if plan.finetuning:
        counts["finetuning.clips"] = plan.finetuning.clips
    for name, count in counts.items():
        if count <= 0:
            raise RecipeError(f"{where}: {name} is {count}; it must be above 0")
    return plan
