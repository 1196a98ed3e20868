"""What the title stage did, for people: a page, a table of every title, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspair.atomic import write_atomically
from crosspair.corpora.titles import Reason, TitleReport, clean_title
from crosspair.corpora.titles.scanning import NOT_WORDS
from crosspair.corpora.titles.stage import Row
from crosspair.corpora.titles.trees import trees
from crosspair.reporting.page import render
from crosspair.reporting.tabular import csv_text
from crosspair.reporting.title_picture import KINDS, Example, title_picture

_EXAMPLES = 16
_PICTURED = 6
_LONGEST = 90  # letters of an example
_LISTED = 50  # empty titles on the page


@dataclass(frozen=True)
class ReasonRow:
    """How much went for a reason, and its share of the words it was taken from, 0 to 1.

    The share is ``None`` for what is no word.
    """

    reason: Reason
    count: int
    share: float | None


def write_title_report(folder: Path, report: TitleReport) -> None:
    """Write ``report.html``, ``titles.csv`` and ``titles.png``, each in one step.

    Raises:
        RunError: a file cannot be written.
    """
    examples = title_examples(report)
    write_atomically(folder / "titles.csv", _csv(report.rows))
    write_atomically(folder / "titles.png", title_picture(examples[:_PICTURED]))
    page = render(
        "titles.html", report=report, reasons=reason_rows(report), examples=examples,
        kinds=KINDS, empty=report.clean_empty[:_LISTED],
        done={"keep": "kept without it", "drop": "dropped", "raw": "kept with the raw title"},
    )  # fmt: skip
    write_atomically(folder / "report.html", page)


def title_examples(report: TitleReport, most: int = _EXAMPLES) -> list[Example]:
    """Titles that show every reason, those with many different ones first."""
    short = [row for row in report.rows if row.prepared.clean and len(row.title) <= _LONGEST]
    unseen = {reason for row in short for reason, _ in row.prepared.reasons}
    chosen: dict[str, Row] = {}
    varied = sorted(short, key=lambda row: (-len(row.prepared.reasons), row.pair_id))
    for row in varied:
        reasons = {reason for reason, _ in row.prepared.reasons}
        if reasons & unseen:
            chosen[row.title] = row
            unseen -= reasons
    step = max(1, len(varied) // most)
    for row in [*varied[: most // 2], *varied[::step]]:
        chosen.setdefault(row.title, row)
    cleaned = [(row, clean_title(row.title)) for row in list(chosen.values())[:most]]
    # A clean title that was given cannot be shown as made of the raw one.
    made = [(row, each) for row, each in cleaned if each.text == row.prepared.clean]
    parsed = trees((each.text for _, each in made), lemmas=report.lemmas)
    return [
        Example(row.title, each.pieces, each.text, tree.words, tree.text)
        for (row, each), tree in zip(made, parsed, strict=True)
    ]


def reason_rows(report: TitleReport) -> list[ReasonRow]:
    """Reasons with their counts and shares, the most frequent first within each stage."""
    rows = []
    for reason, count in report.reasons.most_common():
        whole = report.clean_words if reason is Reason.PART else report.raw_words
        share = None if reason in NOT_WORDS or not whole else count / whole
        rows.append(ReasonRow(reason, count, share))
    return sorted(rows, key=lambda row: row.reason is Reason.PART)


def _csv(rows: Sequence[Row]) -> str:
    told = []
    for row in rows:
        clean, tree = row.prepared.clean, row.prepared.tree
        empty = "clean" if not clean else "tree" if not tree else ""
        told.append([row.pair_id, row.title, clean, tree, empty, row.prepared.removed])
    return csv_text(["pair_id", "title", "title_clean", "title_tree", "empty", "removed"], told)
