"""Markdown tables and escaping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """Format a Markdown table, without a final newline.

    Args:
        head: column names.
        rows: cells, already in Markdown; one for each column.
        names: number of leading text columns; the other columns are right-aligned numbers.
    """
    rule = ["---"] * names + ["--:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def escape_markdown(text: str) -> str:
    r"""Escape Markdown's special characters, and collapse whitespace.

    >>> escape_markdown("a|b")
    'a\\|b'
    """
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
