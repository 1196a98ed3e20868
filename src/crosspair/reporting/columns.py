"""Columns of tables: what numbers beneath one another have in common, and whose table they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from crosspair.evaluation.results import MEDIAN_RANK, Result
from crosspair.reporting.tabular import shown

TITLES = {
    "2": "Frozen features: kNN and linear probe",
    "3": "Fine-tuned",
    "4": "Low-shot: a share of the labels",
    "5": "Zero-shot",
    "": "Retrieval, and what the paper has no table of",
}
FIELDS = ("protocol", "metric", "feature", "split", "classes", "labels")

SPLITS = ("mean of splits", "official split")  # settings that rows tell


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        protocol, metric, feature, split: as in `crosspair.evaluation.Result`.
        classes: of the test, since accuracies over more and fewer classes do not compare.
        labels: share of the labels that a fine-tuned network saw.
    """

    protocol: str
    metric: str
    feature: str
    split: str
    classes: int | None
    labels: float

    @property
    def title(self) -> str:
        """As "kNN, top-1"."""
        return f"{self.protocol}, {self.metric}"

    @property
    def detail(self) -> str:
        """As "visual; 400 classes; test"."""
        told = [
            self.feature,
            f"{self.classes} classes" if self.classes else "",
            f"{100 * self.labels:g} % of labels" if self.labels != 1 else "",
            self.split,
        ]
        return "; ".join(each for each in told if each)

    @property
    def fields(self) -> list[object]:
        """The values of `FIELDS` for a csv file."""
        own = [self.protocol, self.metric, self.feature, self.split]
        return [*own, self.classes or "", f"{self.labels:g}"]

    @property
    def is_rank(self) -> bool:
        """Whether the numbers are ranks rather than fractions."""
        return self.metric == MEDIAN_RANK

    @property
    def table(self) -> str:
        """Which of the paper's tables it belongs to: "2" to "5", or "" for none; see `TITLES`."""
        if self.protocol in {"kNN", "linear"}:
            return "2"
        if self.protocol.startswith("low-shot"):
            return "4"
        if self.protocol.endswith("views"):
            return "3" if self.labels == 1 else "4"
        return "5" if self.protocol.startswith("zero-shot") else ""

    def shown(self, value: float) -> str:
        """One of its numbers as people read it."""
        return shown(value, self.is_rank)


def column_of(result: Result) -> Column:
    """The column that a result stands in."""
    classes, labels = result.settings.get("classes"), result.settings.get("labels", 1.0)
    return Column(
        result.protocol, result.metric, result.feature, result.split,
        classes if isinstance(classes, int) else None,
        labels if isinstance(labels, int | float) else 1.0,
    )  # fmt: skip


def over_splits(result: Result) -> str:
    """Which official splits a result is of, as "mean of splits 1, 2, 3", or nothing."""
    told = [f"{name} {listed(result.settings[name])}" for name in SPLITS if name in result.settings]
    return "; ".join(told)


def stands_in(result: Result, column: Column) -> bool:
    """Whether a result is of the column; chance with no feature is that of every feature."""
    own = column_of(result)
    return own == column or (result.of == "chance" and own == replace(column, feature=""))


def ordered(columns: Iterable[Column]) -> list[Column]:
    """Each once, those of one protocol together."""
    once = list(dict.fromkeys(columns))
    protocols = list(dict.fromkeys(column.protocol for column in once))
    return sorted(once, key=lambda column: protocols.index(column.protocol))


def listed(value: Any) -> str:
    """A setting's value, as "1, 2" where there are several."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
