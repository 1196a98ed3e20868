"""Tables as text: on the terminal and in Markdown for people, as csv for other programs."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_rows(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int, piped: int
) -> None:
    """Print a table to standard output.

    Args:
        head: names of the columns.
        rows: as long as ``head`` each.
        names: how many columns hold names; the others hold numbers and stand on the right.
        piped: columns of text where no terminal says how wide it is.
    """
    table = Table(*head)
    for column in table.columns[names:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=piped)
    console.print(table)


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A table in Markdown, without a newline at its end.

    Args:
        head, rows, names: see `print_rows`; cells are Markdown, see `plain`.
    """
    rule = ["---"] * names + ["--:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def plain(text: str) -> str:
    r"""Text that Markdown takes for nothing else.

    >>> plain("a|b")
    'a\\|b'
    """
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A csv file's content, with "\\n" at the ends of lines."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
