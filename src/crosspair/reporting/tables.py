"""Results as a data frame; tables in the terminal, Markdown and HTML; pages; number formats."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from crosspair.errors import RunError
from crosspair.evaluation.results import MEDIAN_RANK, Result
from crosspair.markdown import markdown_rows, plain

TABLE_TITLES = {  # by number of the paper's table; "" if the paper has none
    "2": "Frozen features: kNN and linear probe",
    "3": "Fine-tuned",
    "4": "Low-shot: a fraction of the labels",
    "5": "Zero-shot",
    "": "Retrieval and other protocols",
}
COLUMN_FIELDS = ("protocol", "metric", "feature", "split", "classes", "labels")
_SPLIT_SETTINGS = ("mean of splits", "official split")  # keys of `Result.settings`
_PIPE_WIDTH = 120  # characters, if the output is not a terminal


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

    @property
    def title(self) -> str:
        """E.g. "kNN, top-1"."""
        return f"{self.protocol}, {self.metric}"

    @property
    def detail(self) -> str:
        """E.g. "visual; 400 classes; test"."""
        classes = f"{self.classes} classes" if self.classes else ""
        labels = f"{100 * self.labels:g} % of labels" if self.labels != 1 else ""
        return "; ".join(filter(None, (self.feature, classes, labels, self.split)))

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


def results_frame(results: Sequence[Result], /, **constants: object) -> pd.DataFrame:
    """Return results as a data frame with a row per result.

    A chance result without a feature is repeated for each measured feature.

    Args:
        results: of one results file.
        constants: values of further columns.

    Returns:
        The constants; ``column``, a `Column`, and its fields; ``table``, a key of `TABLE_TITLES`;
        ``of``, the subject; ``over``, the official splits; ``value``, ``low``, ``high`` and
        ``count``; ``settings``; and ``note``, the settings as text for readers.
    """
    measured = dict.fromkeys(Column.from_result(each) for each in results if each.of != "chance")
    rows = []
    for result in results:
        own = Column.from_result(result)
        columns = [each for each in measured if replace(each, feature="") == own]
        low, high = result.interval or (None, None)
        settings = sorted(result.settings.items())
        values = {
            "of": result.of,
            "over": "; ".join(
                f"{key} {_format_setting(value)}" for key, value in settings
                if key in _SPLIT_SETTINGS
            ),
            "value": result.value,
            "low": low,
            "high": high,
            "count": result.count or None,
            "settings": ", ".join(f"{key} {value}" for key, value in settings),
            "note": _describe(result),
        }  # fmt: skip
        for column in columns if columns and result.of == "chance" else [own]:
            fields = {"column": column, **asdict(column), "table": column.table}
            rows.append({**constants, **fields, **values})
    names = ["column", *COLUMN_FIELDS, "table", "of", "over", "value", "low", "high", "count"]
    return pd.DataFrame(rows, columns=[*constants, *names, "settings", "note"], dtype=object)


def _describe(result: Result) -> str:
    notes = [f"{result.count:,} of {result.split}"] if result.count else []
    notes += [
        f"{name} {_format_setting(value)}"
        for name, value in sorted(result.settings.items())
        if name not in _SPLIT_SETTINGS
    ]
    if "draws" in result.details:
        values = (format_value(each, result.smaller_is_better) for each in result.details["draws"])
        notes.append(f"single values {', '.join(values)}")
    return "; ".join(notes)


def _format_setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def check_unique(frame: pd.DataFrame, keys: list[str]) -> None:
    """Check that results belong to different cells of a table.

    Raises:
        RunError: two results have the same subject and keys, e.g. results of two seeds.
    """
    for _, same in frame.groupby(["of", *keys], sort=False):
        if len(same) > 1:
            column, (first, second, *_) = same.column.iloc[0], same.value
            raise RunError(
                f"two results of {same.of.iloc[0]} for {column.title} ({column.detail}): "
                f"{first:g} and {second:g}. Write the results of each run to a file of its own."
            )


def sort_columns(columns: Iterable[Column]) -> list[Column]:
    """Remove duplicate columns and group the others by protocol, in order of first occurrence."""
    unique = list(dict.fromkeys(columns))
    protocols = list(dict.fromkeys(column.protocol for column in unique))
    return sorted(unique, key=lambda column: protocols.index(column.protocol))


def compare_with_baselines(results: Sequence[Result]) -> pd.DataFrame:
    """Compare results of the same column and settings with random weights and chance.

    Returns:
        A row per column and settings: ``column`` and its fields, ``settings``, ``count``;
        ``chance``, ``random``, ``trained``, the interval ``low`` and ``high`` of ``trained``, and
        the ratios ``over_chance`` and ``over_random``, inverted for ranks, so that larger is
        better. Values that were not measured are None.

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
    is_chance = frame.of == "chance"
    chance, measured = frame[is_chance], frame[~is_chance]
    check_unique(chance, ["column"])
    check_unique(measured, ["column", "settings"])
    by_chance = dict(zip(chance.column, chance.value, strict=True))
    rows = []
    for (column, settings), group in measured.groupby(["column", "settings"], sort=False):
        values = group.set_index("of").to_dict("index")
        trained = values.get("trained", {})
        row = {"column": column, **asdict(column), "settings": settings}
        row |= {key: trained.get(key) for key in ("low", "high")}
        row["count"] = group["count"].iloc[0]
        row["trained"] = trained.get("value")
        row["random"] = values.get("random weights", {}).get("value")
        row["chance"] = by_chance.get(column)
        for name in ("chance", "random"):
            row[f"over_{name}"] = _ratio(row["trained"], row[name], column.is_rank)
        rows.append(row)
    names = ["settings", "count", "trained", "low", "high", "chance", "random"]
    names = ["column", *COLUMN_FIELDS, *names, "over_chance", "over_random"]
    return pd.DataFrame(rows, columns=names, dtype=object)


def _ratio(value: float | None, reference: float | None, inverted: bool) -> float | None:
    if value is None or reference is None:
        return None
    better, worse = (reference, value) if inverted else (value, reference)
    return better / worse if worse else None


_COMPARISON_HEAD = (
    "protocol", "metric", "feature",
    "chance", "random weights", "trained", "over chance", "over random",
)  # fmt: skip


def print_table(results: Sequence[Result]) -> None:
    """Print the table of `compare_with_baselines` to standard output."""
    print_rows(_COMPARISON_HEAD, _comparison_rows(results), names=3)


def markdown_table(results: Sequence[Result]) -> str:
    """Format the table of `compare_with_baselines` in Markdown."""
    return markdown_rows(_COMPARISON_HEAD, _comparison_rows(results), names=3)


def _comparison_rows(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for row in compare_with_baselines(results).itertuples():
        chance, random, trained = (
            format_value(value, row.column.is_rank)
            for value in (row.chance, row.random, row.trained)
        )
        if row.low is not None:
            trained += f" ({format_interval((row.low, row.high))})"
        ratios = format_ratio(row.over_chance), format_ratio(row.over_random)
        rows.append([row.protocol, row.metric, row.feature, chance, random, trained, *ratios])
    return rows


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


@dataclass(frozen=True)
class Cell:
    """A cell of a table in HTML and Markdown.

    Attributes:
        text: plain text.
        detail: second line in small print.
        link: target of the text.
        note: number of the note, shown as superscript; 0 for none.
        style: CSS classes, of the whole row if the cell is its first. "published" is in italics,
            and the detail of "significant" in bold.
    """

    text: str
    detail: str = ""
    link: str = ""
    note: int = 0
    style: str = ""

    def markdown(self) -> str:
        """Format the cell in Markdown."""
        text = plain(self.text)
        text = f"[{text}]({self.link})" if self.link else text
        text = f"*{text}*" if text and "published" in self.style.split() else text
        text += f" <sup>{self.note}</sup>" if self.note else ""
        mark = "**" if self.style == "significant" else ""
        return text + (f"<br>{mark}{plain(self.detail)}{mark}" if self.detail else "")


@dataclass(frozen=True)
class ReportTable:
    """A section of a report with a table; ``name`` is the id of its heading in HTML."""

    name: str
    title: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    remark: str = ""

    def markdown(self) -> str:
        """Format the section in Markdown."""
        head, *rows = ([cell.markdown() for cell in row] for row in (self.head, *self.rows))
        notes = (f"{number}. {plain(note)}" for number, note in enumerate(self.notes, start=1))
        blocks = [f"## {self.title}", markdown_rows(head, rows), "\n".join(notes), self.remark]
        return "\n\n".join(filter(None, blocks))


def format_csv(frame: pd.DataFrame) -> str:
    r"""Format a data frame as CSV with "\n" line ends and without its index."""
    if "labels" in frame:
        frame = frame.assign(labels=frame.labels.map("{:g}".format, na_action="ignore"))
    return str(frame.to_csv(index=False, lineterminator="\n"))


def render_page(template: str, **values: Any) -> str:
    """Render a template of the folder ``templates``.

    Args:
        template: file name without ".j2", e.g. "run.html".
        values: variables of the template; HTML special characters are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crosspair.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        svg=Markup,
        webp=lambda content: f"data:image/webp;base64,{base64.b64encode(content).decode()}",
    )
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
