"""Reports of title cleaning (page, CSV) and of word overlap with class names (Markdown, CSV, figure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from crosspair.corpora.titles import NOT_WORDS, Piece, Reason, TitleReport, TitleRow, clean_title, extract_trees
from crosspair.corpora.word_overlap import VariantOverlap
from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.reporting.figures import INK, SERIES, label_rows, png_figure, truncate
from crosspair.reporting.tables import ReportTable, TableCell, format_csv, format_value, print_rows, render_page

REASON_CLASSES = {  # CSS classes
    **dict.fromkeys((Reason.EMOJI, Reason.SYMBOL), "sign"),
    **dict.fromkeys((Reason.URL, Reason.EMAIL, Reason.MENTION), "address"),
    **dict.fromkeys((Reason.SCRIPT, Reason.LANGUAGE, Reason.UNREADABLE, Reason.ALONE), "language"),
    Reason.PART: "part",
}
_EXAMPLES, _LONGEST = 16, 90  # examples, and characters of an example
_EMPTY_TITLES = 50  # maximum number on the page
_OVERLAP_HEAD = ("titles", "pairs", "at least one word", "all words", "relevant words", "words per title")
_ENDS = 10  # classes from the top and from the bottom
_PREFERRED = ("title_clean", "title", "title_tree")  # title columns by preference; Figure 2: first


@dataclass(frozen=True)
class TitleExample:
    """A title at all stages of cleaning."""

    raw: str
    pieces: Sequence[Piece]  # of the raw title, with the reasons for removal
    clean: str
    words: Sequence[tuple[str, bool]]  # of the clean title, and whether each is kept in the tree
    tree: str  # verbs and nouns


def write_title_report(folder: Path, report: TitleReport) -> None:
    """Write ``report.html`` and ``titles.csv``, which has all titles.

    Raises:
        RunError: a file cannot be written.
    """
    titles = pd.DataFrame(
        [(row.pair_id, row.title, row.prepared.clean, row.prepared.tree, row.prepared.removed) for row in report.rows],
        columns=["pair_id", "title", "title_clean", "title_tree", "removed"], dtype=object,
    )  # fmt: skip
    empty = titles.title_tree.map({"": "tree"}).where(titles.title_clean != "", "clean").fillna("")
    titles.insert(4, "empty", empty)
    write_atomically(folder / "titles.csv", format_csv(titles))
    reasons = reason_frame(report)
    reason_rows = [
        [TableCell(f"■ {row.reason}", style=REASON_CLASSES[row.reason]), TableCell(f"{row.count:,}"),
         TableCell(format_value(row.fraction))]
        for row in reasons.itertuples()
    ] or [[TableCell("nothing removed"), TableCell("0"), TableCell("–")]]  # fmt: skip
    empty_rows = [
        [TableCell(row.pair_id), TableCell(row.title or "(none)")] for row in report.clean_empty[:_EMPTY_TITLES]
    ]
    head = [TableCell("reason"), TableCell("removed"), TableCell("fraction of words")]
    page = render_page(
        "titles.html", report=report, words=reasons[reasons.fraction.notna()].to_dict("records"),
        reasons=ReportTable("reasons", "Removed words by reason", head, reason_rows),
        empty=ReportTable("empty", "Empty clean titles", [TableCell("pair"), TableCell("raw title")], empty_rows),
        examples=title_examples(report), kinds=REASON_CLASSES,
        actions={"keep": "kept without it", "drop": "dropped", "raw": "kept with the raw title"},
    )  # fmt: skip
    write_atomically(folder / "report.html", page)


def reason_frame(report: TitleReport) -> pd.DataFrame:
    """Count the removed pieces by reason, the most frequent first, parts of speech last.

    Returns:
        The columns ``reason``, ``count`` and ``fraction`` of the words of the previous stage, 0 to
        1, which is None for pieces that are not words.
    """
    rows = []
    for reason, count in report.reasons.most_common():
        words = report.clean_words if reason is Reason.PART else report.raw_words
        rows.append((reason, count, None if reason in NOT_WORDS or not words else count / words))
    rows.sort(key=lambda row: row[0] is Reason.PART)
    return pd.DataFrame(rows, columns=["reason", "count", "fraction"], dtype=object)


def title_examples(report: TitleReport, count: int = _EXAMPLES) -> list[TitleExample]:
    """Select up to ``count`` titles of at most 90 characters, first those that cover all reasons for removal."""
    short = [row for row in report.rows if row.prepared.clean and len(row.title) <= _LONGEST]
    varied = sorted(short, key=lambda row: (-len(row.prepared.reasons), row.pair_id))
    missing = {reason for row in short for reason, _ in row.prepared.reasons}
    chosen: dict[str, TitleRow] = {}
    for row in varied:
        reasons = {reason for reason, _ in row.prepared.reasons}
        if reasons & missing:
            chosen[row.title] = row
            missing -= reasons
    for row in [*varied[: count // 2], *varied[:: max(1, len(varied) // count)]]:
        chosen.setdefault(row.title, row)
    cleaned = [(row, clean_title(row.title)) for row in list(chosen.values())[:count]]
    # A clean title from the manifest does not necessarily result from the raw one.
    cleaned = [(row, each) for row, each in cleaned if each.text == row.prepared.clean]
    trees = extract_trees((each.text for _, each in cleaned), lemmas=report.lemmas)
    return [
        TitleExample(row.title, each.pieces, each.text, tree.words, tree.text)
        for (row, each), tree in zip(cleaned, trees, strict=True)
    ]


def print_word_overlap(overlaps: Sequence[VariantOverlap]) -> None:
    """Print a row per title column: fractions of titles with class-name words, and of relevant words (Table 6)."""
    print_rows(_OVERLAP_HEAD, map(_overlap_cells, overlaps))


def write_words(folder: Path, overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> None:
    """Write ``words.md``, ``words.csv`` and ``words.png``.

    Args:
        folder: output folder, created if needed.
        overlaps: of each title column.
        accuracy: of classes, 0 to 1; may be empty or incomplete.

    Raises:
        RunError: a file cannot be written.
    """
    frame = pd.concat([class_frame(overlap, accuracy) for overlap in overlaps])
    for name in ("at_least_one", "all", "relevant", "accuracy"):
        frame[name] = frame[name].map("{:.6g}".format, na_action="ignore")
    write_atomically(folder / "words.md", words_markdown(overlaps, accuracy))
    write_atomically(folder / "words.csv", format_csv(frame))
    write_atomically(folder / "words.png", overlap_figure(overlaps, accuracy))


def class_frame(overlap: VariantOverlap, accuracy: Mapping[str, float]) -> pd.DataFrame:
    """Return a row for all pairs (class "") and a row per class, sorted by overlap."""
    classes = {"": overlap.total, **{name: overlap.classes[name] for name in overlap.ranked()}}
    rows = [
        (overlap.variant, name, each.pairs, each.titles, each.words, each.at_least_one, each.all, each.rel)
        for name, each in classes.items()
    ]
    head = ["titles_of", "class", "pairs", "titles", "words", "at_least_one", "all", "relevant"]
    frame = pd.DataFrame(rows, columns=head)
    return frame.assign(accuracy=frame["class"].map(dict(accuracy)).astype(float))


def words_markdown(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    """Format the tables of title columns and of classes, sorted by overlap, in Markdown."""
    preferred = _preferred_variant(overlaps)
    frame = class_frame(preferred, accuracy)[1:]
    rows = [
        [escape_markdown(name), f"{pairs:,}", *(format_value(None if pd.isna(value) else value) for value in values)]
        for name, pairs, *values in frame[["class", "pairs", "at_least_one", "all", "accuracy"]].itertuples(index=False)
    ]
    correlation = rank_correlation(preferred, accuracy)
    parts = [
        markdown_rows(_OVERLAP_HEAD, map(_overlap_cells, overlaps)),
        f"Fraction of {preferred.variant} that contain words of the class name:",
        markdown_rows(("class", "pairs", "at least one word", "all words", "accuracy"), rows),
    ]
    if correlation is not None:
        parts.append(f"Rank correlation of overlap (at least one word) and accuracy over classes: {correlation:+.2f}")
    return "\n\n".join(parts) + "\n"


def rank_correlation(overlap: VariantOverlap, accuracy: Mapping[str, float]) -> float | None:
    """Compute Spearman's correlation of overlap and accuracy over classes, -1 to 1.

    Returns:
        None if fewer than three classes have an accuracy, or if all values are equal.
    """
    frame = class_frame(overlap, accuracy)[["at_least_one", "accuracy"]].dropna()
    if len(frame) < 3 or frame.nunique().min() == 1:
        return None
    return float(stats.spearmanr(frame.at_least_one, frame.accuracy).statistic)


def overlap_figure(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> bytes:
    """Draw the classes with the largest and smallest overlap, and their accuracy, as a PNG."""
    overlap = _preferred_variant(overlaps)
    frame = class_frame(overlap, accuracy)[1:]
    cut = len(frame) > 2 * _ENDS
    if cut:
        frame = pd.concat([frame[:_ENDS], frame[-_ENDS:]])
    rows = [row + (row >= _ENDS and cut) for row in range(len(frame))]

    def draw(axes: Axes) -> None:
        axes.barh(rows, 100 * frame.at_least_one, 0.72, color="#a9c9e0", label="titles with a class word")
        if frame.accuracy.notna().any():
            axes.plot(100 * frame.accuracy, rows, "o", color=SERIES[1], label="accuracy")
        label_rows(axes, [truncate(label, 34) for label in frame["class"]], rows)
        axes.set(xlim=(0, 100), xlabel="%")
        if cut:
            axes.axhline(_ENDS, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        title = "Classes by word overlap" + (f", top and bottom {_ENDS}" if cut else "")
        axes.set_title(f"{title} ({overlap.variant})", loc="left", fontsize="medium", pad=24)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small", borderaxespad=0.2
        )

    return png_figure(draw, (8, 1.3 + 0.3 * (len(frame) + cut)))


def _overlap_cells(overlap: VariantOverlap) -> list[str]:
    total = overlap.total
    values = map(format_value, (total.at_least_one, total.all, total.rel))
    length = f"{total.words / total.titles:.1f}" if total.titles else "–"
    return [overlap.variant, f"{total.pairs:,}", *values, length]


def _preferred_variant(overlaps: Sequence[VariantOverlap]) -> VariantOverlap:
    return min(overlaps, key=lambda each: _PREFERRED.index(each.variant))
