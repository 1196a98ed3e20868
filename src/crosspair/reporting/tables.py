"""The table of a report: what training gained over random weights and over guessing."""

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


@dataclass(frozen=True)
class ComparisonRow:
    """One measurement, and what it is to be compared with; ``None`` where it was not made.

    Attributes:
        protocol, metric, feature, split, count, smaller_is_better: as in
            `crosspair.evaluation.Result`.
        settings: as "k 25, clips 10".
        chance, random, trained: the values.
        interval: of 95 %, of ``trained``.
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
        """How many times better than chance; for ranks the inverse ratio, so that 2 is good."""
        return self._times(self.chance)

    @property
    def over_random(self) -> float | None:
        """How many times better than the same network with random weights."""
        return self._times(self.random)

    def _times(self, reference: float | None) -> float | None:
        if self.trained is None or reference is None:
            return None
        better, worse = self.trained, reference
        if self.smaller_is_better:
            better, worse = worse, better
        return better / worse if worse else None


def comparison(results: Sequence[Result]) -> list[ComparisonRow]:
    """Bring results of the same protocol, metric and feature side by side.

    Chance is the same for every feature: a result of chance with no feature serves all.

    Raises:
        RunError: a number stands twice, as when results of two seeds were put together.

    >>> rows = comparison([
    ...     Result("kNN", "top-1", 0.6, "trained", feature="visual"),
    ...     Result("kNN", "top-1", 0.1, "chance"),
    ... ])
    >>> rows[0].feature, round(rows[0].over_chance, 3), rows[0].over_random
    ('visual', 6.0, None)
    """
    measured: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.of != "chance":
            measured.setdefault((*_protocol(result), _settings(result)), []).append(result)
    rows = []
    for (protocol, metric, split, feature, settings), same in measured.items():
        guesses = [
            result
            for result in results
            if result.of == "chance"
            and _protocol(result) in {(protocol, metric, split, own) for own in ("", feature)}
        ]
        chance = _only(guesses, "chance")
        random, trained = (_only(same, of) for of in ("random weights", "trained"))
        rows.append(ComparisonRow(
            protocol, metric, feature, split, settings, same[0].count, same[0].smaller_is_better,
            chance.value if chance else None,
            random.value if random else None,
            trained.value if trained else None,
            trained.interval if trained else None,
        ))  # fmt: skip
    return rows


def print_table(results: Sequence[Result]) -> None:
    """Print results side by side to standard output."""
    print_rows(_HEAD, _cells(results), names=3)


def markdown_table(results: Sequence[Result]) -> str:
    """Results side by side, as a table in Markdown."""
    return markdown_rows(_HEAD, _cells(results), names=3)


_HEAD = (
    "protocol", "metric", "feature",
    "chance", "random weights", "trained", "over chance", "over random",
)  # fmt: skip


def _cells(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            row.protocol, row.metric, row.feature,
            format_value(row.chance, row.smaller_is_better),
            format_value(row.random, row.smaller_is_better),
            format_value(row.trained, row.smaller_is_better)
            + (f" ({format_interval(row.interval)})" if row.interval else ""),
            format_ratio(row.over_chance), format_ratio(row.over_random),
        ]
        for row in comparison(results)
    ]  # fmt: skip


def _protocol(result: Result) -> tuple[str, str, str, str]:
    return result.protocol, result.metric, result.split, result.feature


def _settings(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(result.settings.items()))


def _only(results: Sequence[Result], of: Subject) -> Result | None:
    found = [result for result in results if result.of == of]
    if len(found) > 1:
        one = found[0]
        raise RunError(
            f"two results of {of} for {one.protocol}, {one.metric}, {one.feature or 'no'} feature, "
            f"split {one.split}: {found[0].value:g} and {found[1].value:g}; a table holds one"
        )
    return found[0] if found else None


_PIPED = 120  # columns of text where no terminal says how wide it is


def format_value(value: float | None, is_rank: bool = False) -> str:
    """A value as people read it: a percentage or, where it is a mean, a rank with one decimal.

    >>> shown(0.2564), shown(12.0, True), shown(187.333, True), shown(None)
    ('25.6 %', '12', '187.3', '–')
    """
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if is_rank else f"{100 * value:.1f} %"


def format_ratio(ratio: float | None) -> str:
    """A ratio with the digits that mean something.

    >>> shown_ratio(6.04), shown_ratio(1234.5), shown_ratio(None)
    ('6.0', '1,234', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def format_interval(interval: tuple[float, float]) -> str:
    """The ends of an interval of fractions, in %.

    >>> shown_interval((0.705, 0.79))
    '70.5–79.0'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def format_signed(value: float) -> str:
    """A difference, to one decimal.

    >>> signed(-2.04)
    '−2.0'
    """
    return f"{value:+.1f}".replace("-", "−")


def pluralize(count: int, noun: str) -> str:
    """So many of something.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> None:
    """Print a table to standard output.

    Args:
        head, rows: names of the columns, and as many cells in each row.
        names: how many columns hold names; the others hold numbers and stand on the right.
    """
    table = Table(*head)
    for column in table.columns[names:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED)
    console.print(table)


def format_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A csv file's content, with "\\n" at the ends of lines."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()


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
        return format_value(value, self.is_rank)


def column_of(result: Result) -> Column:
    """The column that a result stands in."""
    classes, labels = result.settings.get("classes"), result.settings.get("labels", 1.0)
    return Column(
        result.protocol, result.metric, result.feature, result.split,
        classes if isinstance(classes, int) else None,
        labels if isinstance(labels, int | float) else 1.0,
    )  # fmt: skip


def split_columns(result: Result) -> str:
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
