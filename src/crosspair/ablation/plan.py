"""Plans of ablations: which rows, how often, on what, and what the paper has to compare with.

A plan is a YAML file of the fields of `Plan`. Its rows are all combinations of its axes' values.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, TypeAlias

Row: TypeAlias = dict[str, str]  # axis -> name of a value

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

    row: Row
    source: str
    """As "paper, Table 1c"."""
    value: float | None = None
    """Accuracy, 0 to 1."""
    difference: float | None = None
    """Of the accuracy to that of ``against``, where only this is told."""
    against: Row = field(default_factory=dict)
    note: str = ""
    """What is told in words."""
    metric: str = "top-1"
    protocol: str = "30 views"
    """As in `crosspair.evaluation.Result`."""


@dataclass(frozen=True)
class Plan:
    """One ablation."""

    title: str
    axes: dict[str, dict[str, dict[str, Any]]]
    """Axis -> name of a value -> keys of the recipe, or of the corpus (``corpus.wrong_titles``)."""
    first: Row
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


def rows_of(plan: Plan) -> list[Row]:
    """All combinations of the axes' values, the last axis fastest."""
    names = product(*plan.axes.values())
    return [dict(zip(plan.axes, each, strict=True)) for each in names]


def row_name(row: Row) -> str:
    """For people.

    >>> row_name({"text": "words", "strategy": "joint"})
    'words / joint'
    """
    return " / ".join(row.values())


def plain(plan: Plan) -> dict[str, Any]:
    """A plan as JSON and YAML hold it."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return settings
