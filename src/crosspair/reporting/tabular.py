"""Numbers and tables as text: for the terminal, and as csv for other programs."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

_PIPED = 120  # columns of text where no terminal says how wide it is


def shown(value: float | None, is_rank: bool = False) -> str:
    """A value as people read it: a percentage or, where it is a mean, a rank with one decimal.

    >>> shown(0.2564), shown(12.0, True), shown(187.333, True), shown(None)
    ('25.6 %', '12', '187.3', '–')
    """
    if value is None:
        return "–"
    return f"{round(value, 1):g}" if is_rank else f"{100 * value:.1f} %"


def shown_ratio(ratio: float | None) -> str:
    """A ratio with the digits that mean something.

    >>> shown_ratio(6.04), shown_ratio(1234.5), shown_ratio(None)
    ('6.0', '1,234', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def shown_interval(interval: tuple[float, float]) -> str:
    """The ends of an interval of fractions, in %.

    >>> shown_interval((0.705, 0.79))
    '70.5–79.0'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def signed(value: float) -> str:
    """A difference, to one decimal.

    >>> signed(-2.04)
    '−2.0'
    """
    return f"{value:+.1f}".replace("-", "−")


def counted(count: int, noun: str) -> str:
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


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A csv file's content, with "\\n" at the ends of lines."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()
