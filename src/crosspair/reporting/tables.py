"""Result tables: comparison with chance and random weights, columns, and number formats."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from crosspair.errors import RunError
from crosspair.evaluation.results import MEDIAN_RANK, Result, Subject
from crosspair.markdown import markdown_rows

TABLE_TITLES = {  # by number of the paper's table; "" if the paper has none
    "2": "Frozen features: kNN and linear probe",
    "3": "Fine-tuned",
    "4": "Low-shot: a fraction of the labels",
    "5": "Zero-shot",
    "": "Retrieval and other protocols",
}
COLUMN_FIELDS = ("protocol", "metric", "feature", "split", "classes", "labels")
SPLIT_SETTINGS = ("mean of splits", "official split")  # keys of `Result.settings`
_PIPE_WIDTH = 120  # characters, if the output is not a terminal


@dataclass(frozen=True)
class ComparisonRow:
    """A measurement of a trained model with the values of chance and random weights.

    Attributes:
        protocol, metric, feature, split, count, smaller_is_better: as in
            `crosspair.evaluation.Result`.
        settings: of the protocol, e.g. "clips 10, k 25".
        chance, random, trained: the values; None if not measured.
        interval: 95 % confidence interval of ``trained``.
    """

    protocol: str
    metric: str
    feature: str
    split: str
    settings: str
    count: int
    smaller_is_better: bool
    chance: float | None = None
    random: float | None = None
    trained: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def over_chance(self) -> float | None:
        """Ratio of the trained value to chance; inverted for ranks, so that larger is better."""
        return self._ratio_to(self.chance)

    @property
    def over_random(self) -> float | None:
        """Ratio of the trained value to random weights, as `over_chance`."""
        return self._ratio_to(self.random)

    def _ratio_to(self, reference: float | None) -> float | None:
        if self.trained is None or reference is None:
            return None
        better, worse = self.trained, reference
        if self.smaller_is_better:
            better, worse = worse, better
        return better / worse if worse else None


def compare_with_baselines(results: Sequence[Result]) -> list[ComparisonRow]:
    """Group results of the same protocol, metric, split, feature and settings into rows.

    A chance result without a feature applies to every feature.

    Raises:
        RunError: two results belong to the same cell, e.g. results of two seeds.

    >>> rows = compare_with_baselines([
    ...     Result("kNN", "top-1", 0.6, "trained", feature="visual"),
    ...     Result("kNN", "top-1", 0.1, "chance"),
    ... ])
    >>> rows[0].feature, round(rows[0].over_chance, 3), rows[0].over_random
    ('visual', 6.0, None)
    """
    measured: dict[tuple[tuple[str, ...], str], list[Result]] = {}
    for result in results:
        if result.of != "chance":
            settings = ", ".join(f"{key} {value}" for key, value in sorted(result.settings.items()))
            measured.setdefault((_protocol_key(result), settings), []).append(result)
    rows = []
    for ((protocol, metric, split, feature), settings), group in measured.items():
        keys = {(protocol, metric, split, name) for name in ("", feature)}
        chance = _single([each for each in results if _protocol_key(each) in keys], "chance")
        random, trained = _single(group, "random weights"), _single(group, "trained")
        rows.append(ComparisonRow(
            protocol, metric, feature, split, settings, group[0].count, group[0].smaller_is_better,
            chance.value if chance else None,
            random.value if random else None,
            trained.value if trained else None,
            trained.interval if trained else None,
        ))  # fmt: skip
    return rows


def print_table(results: Sequence[Result]) -> None:
    """Print the table of `compare_with_baselines` to standard output."""
    print_rows(_COMPARISON_HEAD, _comparison_cells(results), names=3)


def markdown_table(results: Sequence[Result]) -> str:
    """Format the table of `compare_with_baselines` in Markdown."""
    return markdown_rows(_COMPARISON_HEAD, _comparison_cells(results), names=3)


_COMPARISON_HEAD = (
    "protocol", "metric", "feature",
    "chance", "random weights", "trained", "over chance", "over random",
)  # fmt: skip


def _comparison_cells(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            row.protocol, row.metric, row.feature,
            format_value(row.chance, row.smaller_is_better),
            format_value(row.random, row.smaller_is_better),
            format_value(row.trained, row.smaller_is_better)
            + (f" ({format_interval(row.interval)})" if row.interval else ""),
            format_ratio(row.over_chance), format_ratio(row.over_random),
        ]
        for row in compare_with_baselines(results)
    ]  # fmt: skip


def _protocol_key(result: Result) -> tuple[str, str, str, str]:
    return result.protocol, result.metric, result.split, result.feature


def _single(results: Sequence[Result], subject: Subject) -> Result | None:
    found = [result for result in results if result.of == subject]
    if len(found) > 1:
        raise duplicate_error(found[0], found[0].value, found[1].value)
    return found[0] if found else None


def duplicate_error(result: Result, first: float, second: float) -> RunError:
    """Return the error for two values that belong to the same cell of a table."""
    column = Column.from_result(result)
    return RunError(
        f"two results of {result.of} for {column.title} ({column.detail}): {first:g} and "
        f"{second:g}. Write the results of each run to a file of its own."
    )


@dataclass(frozen=True)
class Column:
    """A column of a report.

    Attributes:
        protocol, metric, feature, split: as in `crosspair.evaluation.Result`.
        classes: number of test classes, since accuracies over different numbers of classes are
            not comparable.
        labels: fraction of the labels used for fine-tuning.
    """

    protocol: str
    metric: str
    feature: str
    split: str
    classes: int | None
    labels: float

    @classmethod
    def from_result(cls, result: Result) -> Column:
        """Return the column of a result."""
        classes, labels = result.settings.get("classes"), result.settings.get("labels", 1.0)
        return cls(
            result.protocol, result.metric, result.feature, result.split,
            classes if isinstance(classes, int) else None,
            labels if isinstance(labels, int | float) else 1.0,
        )  # fmt: skip

    def contains(self, result: Result) -> bool:
        """Whether a result belongs here; chance without a feature belongs to every feature."""
        column = Column.from_result(result)
        return column == self or (result.of == "chance" and column == replace(self, feature=""))

    @property
    def title(self) -> str:
        """E.g. "kNN, top-1"."""
        return f"{self.protocol}, {self.metric}"

    @property
    def detail(self) -> str:
        """E.g. "visual; 400 classes; test"."""
        parts = [
            self.feature,
            f"{self.classes} classes" if self.classes else "",
            f"{100 * self.labels:g} % of labels" if self.labels != 1 else "",
            self.split,
        ]
        return "; ".join(part for part in parts if part)

    @property
    def fields(self) -> list[object]:
        """Values of `COLUMN_FIELDS` for a CSV file."""
        return [
            self.protocol, self.metric, self.feature, self.split, self.classes or "",
            f"{self.labels:g}",
        ]  # fmt: skip

    @property
    def is_rank(self) -> bool:
        """Whether the values are ranks instead of fractions."""
        return self.metric == MEDIAN_RANK

    @property
    def table(self) -> str:
        """Number of the paper's table, a key of `TABLE_TITLES`."""
        if self.protocol in {"kNN", "linear"}:
            return "2"
        if self.protocol.startswith("low-shot"):
            return "4"
        if self.protocol.endswith("views"):
            return "3" if self.labels == 1 else "4"
        return "5" if self.protocol.startswith("zero-shot") else ""

    def format(self, value: float) -> str:
        """Format a value of this column."""
        return format_value(value, self.is_rank)


def sort_columns(columns: Iterable[Column]) -> list[Column]:
    """Remove duplicate columns and group the others by protocol, in order of first occurrence."""
    unique = list(dict.fromkeys(columns))
    protocols = list(dict.fromkeys(column.protocol for column in unique))
    return sorted(unique, key=lambda column: protocols.index(column.protocol))


def format_splits(result: Result) -> str:
    """Name the official splits of a result, e.g. "mean of splits 1, 2, 3"; empty without splits."""
    settings = result.settings
    return "; ".join(
        f"{key} {format_setting(settings[key])}" for key in SPLIT_SETTINGS if key in settings
    )


def format_setting(value: Any) -> str:
    """Format a setting; the items of a list are separated by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def format_value(value: float | None, is_rank: bool = False) -> str:
    """Format a fraction as a percentage, or a rank with at most one decimal.

    >>> format_value(0.2564), format_value(12.0, True), format_value(187.333, True)
    ('25.6 %', '12', '187.3')
    """
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if is_rank else f"{100 * value:.1f} %"


def format_ratio(ratio: float | None) -> str:
    """Format a ratio with one decimal, or as an integer from 100.

    >>> format_ratio(6.04), format_ratio(1234.5), format_ratio(None)
    ('6.0', '1,234', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def format_interval(interval: tuple[float, float]) -> str:
    """Format an interval of fractions in percent.

    >>> format_interval((0.705, 0.79))
    '70.5–79.0'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def format_signed(value: float) -> str:
    """Format a difference with its sign and one decimal.

    >>> format_signed(-2.04)
    '−2.0'
    """
    return f"{value:+.1f}".replace("-", "−")


def pluralize(count: int, noun: str) -> str:
    """Format a count with its noun.

    >>> pluralize(1, "seed"), pluralize(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> None:
    """Print a table to standard output.

    Args:
        head: column names.
        rows: cells, one per column.
        names: number of leading text columns; the others are numbers and right-aligned.
    """
    table = Table(*head)
    for column in table.columns[names:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    console.print(table)


def format_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Format rows as CSV with "\n" line ends."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return file.getvalue()
