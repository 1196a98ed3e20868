"""Tables and plain text in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A table in Markdown, without a newline at its end; cells are Markdown.

    Args:
        head, rows: names of the columns, and as many cells in each row.
        names: how many columns hold names; the others hold numbers and stand on the right.
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
