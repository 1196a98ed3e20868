"""Results as a data frame; tables in the terminal, Markdown and HTML; pages; number formats."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from crosspair.errors import RunError, escape_controls
from crosspair.evaluation.results import MEDIAN_RANK, SUBJECTS, Result
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.progress import Terminal

TABLE_TITLES = {  # by number of the paper's table, or by protocol if the paper has none
    "2": "Frozen features: kNN and linear probe",
    "3": "Fine-tuned",
    "4": "Fine-tuned on a fraction of the labels",
    "low-shot": "Frozen features: linear probe on a fraction of the labels",
    "5": "Zero-shot",
    "other": "Retrieval and other protocols",
}
COLUMN_FIELDS = ("protocol", "metric", "feature", "split", "classes", "labels")  # of `Column`, in order
_SPLIT_SETTINGS = ("mean of splits", "official split")  # keys of `Result.settings`
_PIPE_WIDTH = 120  # characters, if the output is not a terminal


@dataclass(frozen=True)
class Column:
    """A column of a report: results that are comparable with one another; see `crosspair.evaluation.Result`."""

    protocol: str
    metric: str
    feature: str
    split: str
    classes: int | None  # number of test classes
    labels: float  # fraction of the labels used for fine-tuning

    @classmethod
    def from_result(cls, result: Result) -> Column:
        """Return the column that a result belongs to; its value is not stored."""
        classes, labels = result.settings.get("classes"), result.settings.get("labels", 1.0)
        classes = classes if isinstance(classes, int) else None
        labels = labels if isinstance(labels, int | float) else 1.0
        return cls(result.protocol, result.metric, result.feature, result.split, classes, labels)

    @property
    def title(self) -> str:
        """Protocol and metric, e.g. "kNN, top-1"."""
        return f"{self.protocol}, {self.metric}"

    @property
    def detail(self) -> str:
        """Feature, classes, fraction of labels if below 1, and split, e.g. "visual; 400 classes; test"."""
        classes = f"{self.classes} classes" if self.classes else ""
        labels = f"{100 * self.labels:g} % of labels" if self.labels != 1 else ""
        return "; ".join(filter(None, (self.feature, classes, labels, self.split)))

    @property
    def is_rank(self) -> bool:
        """Whether the values are ranks instead of fractions."""
        return self.metric == MEDIAN_RANK

    @property
    def table(self) -> str:
        """The paper's table, a key of `TABLE_TITLES`."""
        if self.protocol.endswith("views"):
            return "3" if self.labels == 1 else "4"
        starts = {"kNN": "2", "linear": "2", "low-shot": "low-shot", "zero-shot": "5"}
        return next((starts[name] for name in starts if self.protocol.startswith(name)), "other")


def results_frame(results: Sequence[Result], /, **constants: object) -> pd.DataFrame:
    """Return results as a data frame with a row per result, which every table and file is made from.

    A chance result without a feature is repeated for each measured feature.

    Args:
        results: of one results file.
        constants: values of further columns.

    Returns:
        The constants; ``column``, a `Column`, with its fields and ``table``; ``of``, the subject;
        ``over``, the official splits; ``settings``, the others as text; ``note``, with the number
        of test items and single values; ``correct`` and ``tested`` of the details; ``value``,
        ``spread``, ``low``, ``high`` and ``count``.
    """
    measured = dict.fromkeys(Column.from_result(each) for each in results if each.of != "chance")
    rows = []
    for result in results:
        own = Column.from_result(result)
        texts = {
            key: f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in sorted(result.settings.items())
        }
        over = "; ".join(texts.pop(key) for key in _SPLIT_SETTINGS if key in texts)
        notes = [f"{result.count:,} of {result.split}"] * bool(result.count) + [*texts.values()]
        if "draws" in result.details:
            draws = (format_value(value, own.is_rank) for value in result.details["draws"])
            notes.append(f"single values {', '.join(draws)}")
        if "tokens" in result.details:
            notes.append(f"{result.details['tokens']:,} tokens per video")
        if "spread" in result.details:
            notes.append(f"standard deviation {100 * result.details['spread']:.1f} %")
        spread, interval = result.details.get("spread"), result.interval or (None, None)
        videos = (result.details.get("correct"), result.details.get("tested"))
        values = ("; ".join(texts.values()), "; ".join(notes), *videos, result.value, spread, *interval)
        same = [each for each in measured if result.of == "chance" and replace(each, feature="") == own]
        for column in same or [own]:
            fields = (column, *astuple(column), column.table, result.of, over, *values, result.count or None)
            rows.append((*constants.values(), *fields))
    names = ["column", *COLUMN_FIELDS, "table", "of", "over", "settings", "note"]
    names += ["correct", "tested", "value", "spread", "low", "high", "count"]
    return pd.DataFrame(rows, columns=[*constants, *names], dtype=object)


def check_unique(frame: pd.DataFrame, keys: list[str]) -> None:
    """Check that no two results have the same subject and ``keys``, e.g. results of two seeds.

    Raises:
        RunError: two results have.
    """
    repeated = frame[frame.duplicated(["of", *keys], keep=False)]
    if len(repeated):
        _, same = next(iter(repeated.groupby(["of", *keys], sort=False)))
        column = same.column.iloc[0]
        raise RunError(
            f"two results of {same.of.iloc[0]} for {column.title} ({column.detail}): "
            f"{' and '.join(map('{:g}'.format, same.value[:2]))}. Write the results of each run to a file of its own."
        )


def sort_columns(columns: Iterable[Column]) -> list[Column]:
    """Remove duplicate columns and group the others by protocol, in order of first occurrence."""
    unique = list(dict.fromkeys(columns))
    protocols = list(dict.fromkeys(column.protocol for column in unique))
    return sorted(unique, key=lambda column: protocols.index(column.protocol))


def compare_with_baselines(results: Sequence[Result]) -> pd.DataFrame:
    """Compare results of the same column and settings with random weights and chance.

    Returns:
        `results_frame` of the measured values with a row per column and settings; ``chance``,
        ``random`` and ``trained``, the latter with its interval ``low`` and ``high``; ``others``,
        the values of other models by name (see `other_models`); and the
        ratios ``over_chance`` and ``over_random``, inverted for ranks, so that larger is better.
        Values that were not measured are None.

    Raises:
        RunError: two results belong to the same cell.

    >>> (row,) = compare_with_baselines([
    ...     Result("kNN", "top-1", 0.6, "trained", feature="visual"),
    ...     Result("kNN", "top-1", 0.1, "chance"),
    ... ]).itertuples()
    >>> row.feature, round(row.over_chance, 3), row.over_random
    ('visual', 6.0, None)
    """
    frame = results_frame(results)
    chance, measured = frame[frame.of == "chance"], frame[frame.of != "chance"]
    keys = ["column", "over", "settings"]
    check_unique(chance, ["column"])
    check_unique(measured, keys)
    by_column = dict(zip(chance.column, chance.value, strict=True))
    rows = []
    for (column, *_), group in measured.groupby(keys, sort=False):
        found = group.set_index("of").to_dict("index")
        trained, random = found.get("trained", {}), found.get("random weights", {})
        row = {**next(iter(found.values())), "low": trained.get("low"), "high": trained.get("high")}
        row["spread"] = trained.get("spread")
        row["others"] = {name: values["value"] for name, values in found.items() if name not in SUBJECTS}
        row |= {"trained": trained.get("value"), "random": random.get("value"), "chance": by_column.get(column)}
        for key in ("chance", "random"):
            pair = (row[key], row["trained"]) if column.is_rank else (row["trained"], row[key])
            row[f"over_{key}"] = pair[0] / pair[1] if None not in pair and pair[1] else None
        rows.append(row)
    names = ["trained", "random", "chance", "others", "over_chance", "over_random"]
    return pd.DataFrame(rows, columns=[*frame.columns.drop(["of", "value"]), *names], dtype=object)


def other_models(results: Sequence[Result]) -> list[str]:
    """Return the names of models that the trained one is compared with, besides random weights and chance."""
    return [name for name in dict.fromkeys(each.of for each in results) if name not in SUBJECTS]


def print_table(results: Sequence[Result]) -> None:
    """Print the table of `compare_with_baselines` to standard output."""
    print_rows(*_comparison_table(results), names=3)


def markdown_table(results: Sequence[Result]) -> str:
    """Format the table of `compare_with_baselines` in Markdown."""
    return markdown_rows(*_comparison_table(results), names=3)


def _comparison_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table."""
    others, rows = other_models(results), []
    for row in compare_with_baselines(results).itertuples():
        chance, random, *values, trained, interval, over_chance, over_random = format_comparison(row, others)
        trained += f" ({interval})" if interval else ""
        names = [row.protocol, row.metric, row.feature]
        rows.append([*names, chance, random, *values, trained, over_chance, over_random])
    head = ["protocol", "metric", "feature", "chance", "random weights", *others, "trained"]
    return [*head, "over chance", "over random"], rows


def format_comparison(row: Any, others: Sequence[str] = ()) -> list[str]:
    """Format chance, random weights, other models, trained, its interval and the ratios of a row."""
    values = (row.chance, row.random, *(row.others.get(name) for name in others), row.trained)
    interval = "" if row.low is None else format_interval((row.low, row.high))
    texts = [format_value(value, row.column.is_rank) for value in values]
    texts[-1] += "" if row.spread is None else f" ± {100 * row.spread:.1f}"
    return [*texts, interval, format_ratio(row.over_chance), format_ratio(row.over_random)]


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> None:
    """Print a table to standard output; columns after the first ``names`` are right-aligned."""
    table = Table(*head)
    for column in table.columns[names:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(escape_controls(cell)) for cell in row))
    console = Terminal() if sys.stdout.isatty() else Terminal(width=max(_PIPE_WIDTH, 15 * len(head)))
    console.print(table)


@dataclass(frozen=True)
class TableCell:
    """A cell of a table in HTML and Markdown; all texts are plain.

    ``style`` has the CSS classes, of the whole row if the cell is its first. In Markdown, "published"
    is in italics and the detail of "significant" in bold.
    """

    text: str
    detail: str = ""  # second line in small print
    link: str = ""  # target of the text
    note: int = 0  # number of the note, shown as superscript; 0 for none
    style: str = ""

    def markdown(self) -> str:
        """Format the cell in Markdown."""
        text = escape_markdown(self.text)
        text = f"[{text}]({self.link})" if self.link else text
        text = f"*{text}*" if text and "published" in self.style.split() else text
        text += f" <sup>{self.note}</sup>" if self.note else ""
        mark = "**" if self.style == "significant" else ""
        return text + (f"<br>{mark}{escape_markdown(self.detail)}{mark}" if self.detail else "")


@dataclass(frozen=True)
class ReportTable:
    """A section of a report with a table; ``name`` is the id of its heading in HTML."""

    name: str
    title: str
    head: Sequence[TableCell]
    rows: Sequence[Sequence[TableCell]]
    notes: Sequence[str] = ()
    remark: str = ""

    def markdown(self) -> str:
        """Format the section in Markdown."""
        head, *rows = ([cell.markdown() for cell in row] for row in (self.head, *self.rows))
        notes = (f"{number}. {escape_markdown(note)}" for number, note in enumerate(self.notes, start=1))
        blocks = [f"## {self.title}", markdown_rows(head, rows), "\n".join(notes), self.remark]
        return "\n\n".join(filter(None, blocks))


def format_csv(frame: pd.DataFrame) -> str:
    r"""Format a data frame as CSV with "\n" line ends and without its index."""
    if "labels" in frame:
        frame = frame.assign(labels=frame.labels.map("{:g}".format, na_action="ignore"))
    return str(frame.to_csv(index=False, lineterminator="\n"))


def render_page(template: str, **values: Any) -> str:
    """Render a template of the folder ``templates``; HTML special characters are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crosspair.reporting"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["svg"] = Markup
    environment.filters["webp"] = lambda content: f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return environment.get_template(f"{template}.j2").render(values)


def format_value(value: float | None, is_rank: bool = False) -> str:
    """Format a fraction as a percentage, or a rank with at most one decimal.

    >>> format_value(0.2564), format_value(12.0, True), format_value(187.333, True)
    ('25.6 %', '12', '187.3')
    """
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if is_rank else f"{100 * value:.1f} %"


def format_ratio(ratio: float | None) -> str:
    """Format a ratio with one decimal, or as an integer from 100; "–" for None."""
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def format_interval(interval: tuple[float, float]) -> str:
    """Format an interval of fractions in percent, e.g. "70.5–79.0"."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def format_signed(value: float) -> str:
    """Format a difference with its sign and one decimal, e.g. "−2.0"."""
    return f"{value:+.1f}".replace("-", "−")


def pluralize(count: int, noun: str) -> str:
    """Format a count with its noun, e.g. "1 seed" or "3 seeds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
