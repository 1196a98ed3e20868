"""What titles have in common with class names, as a table and a figure (Table 6, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from crosspair.atomic import write_atomically
from crosspair.corpora.words import VariantOverlap
from crosspair.markdown import markdown_rows, plain
from crosspair.reporting.figures import INK, SERIES, name_rows, png_figure, shortened
from crosspair.reporting.tabular import csv_text, print_rows, shown

_HEAD = ("titles", "pairs", "at least one", "all", "relevant", "words a title")
_ENDS = 10  # classes from the top and from the bottom
_PREFERRED = ("title_clean", "title", "title_tree")  # for the classes; Figure 2 is of the first


def print_words(overlaps: Sequence[VariantOverlap]) -> None:
    """Print the table of all kinds of titles to standard output."""
    print_rows(_HEAD, map(_cells, overlaps))


def write_words(
    folder: Path, overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]
) -> None:
    """Write ``words.md``, ``words.csv`` and ``words.png``, each in one step.

    Args:
        folder: is made where it does not exist.
        overlaps: of each kind of titles.
        accuracy: of classes, 0 to 1; may be empty, or lack some.

    Raises:
        RunError: a file cannot be written.
    """
    write_atomically(folder / "words.md", words_markdown(overlaps, accuracy))
    write_atomically(folder / "words.csv", _csv(overlaps, accuracy))
    write_atomically(folder / "words.png", overlap_figure(overlaps, accuracy))


def words_markdown(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    """Both tables in Markdown: kinds of titles, then classes by overlap."""
    best = _preferred(overlaps)
    classes = [
        [plain(label), f"{of.pairs:,}", *map(shown, (of.at_least_one, of.all, accuracy.get(label)))]
        for label, of in ((label, best.classes[label]) for label in best.ranked())
    ]
    parts = [
        markdown_rows(_HEAD, map(_cells, overlaps)),
        f"Classes by the share of {best.variant} with at least one word of their name:",
        markdown_rows(("class", "pairs", "at least one", "all", "accuracy"), classes),
    ]
    related = rank_correlation(best, accuracy)
    if related is not None:
        parts.append(
            f"Rank correlation of overlap (at least one) and accuracy over classes: {related:+.2f}"
        )
    return "\n\n".join(parts) + "\n"


def rank_correlation(overlap: VariantOverlap, accuracy: Mapping[str, float]) -> float | None:
    """Spearman's correlation of overlap and accuracy over classes, -1 to 1.

    None where fewer than three classes have an accuracy, or all are alike.
    """
    labels = [label for label in overlap.classes if label in accuracy]
    if len(labels) < 3:
        return None
    shares = _ranks([overlap.classes[label].at_least_one for label in labels])
    values = _ranks([accuracy[label] for label in labels])
    if shares.std() == 0 or values.std() == 0:
        return None
    return float(np.corrcoef(shares, values)[0, 1])


def overlap_figure(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> bytes:
    """Draw the classes with the largest and smallest overlap, and their accuracy, as a PNG."""
    overlap = _preferred(overlaps)
    labels = overlap.ranked()
    cut = len(labels) > 2 * _ENDS
    if cut:
        labels = [*labels[:_ENDS], *labels[-_ENDS:]]
    places = [row + (row >= _ENDS and cut) for row in range(len(labels))]
    shares = [100 * overlap.classes[label].at_least_one for label in labels]
    marked = [(100 * accuracy[n], y) for n, y in zip(labels, places, strict=True) if n in accuracy]

    def draw(axes: Axes) -> None:
        axes.barh(places, shares, 0.72, color="#a9c9e0", label="titles that share a word")
        if marked:
            axes.plot(*zip(*marked, strict=True), "o", color=SERIES[1], label="accuracy")
        name_rows(axes, [shortened(label, 34) for label in labels], places)
        axes.set(xlim=(0, 100), xlabel="%")
        if cut:
            axes.axhline(_ENDS, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        title = "Classes by word overlap" + (f", top and bottom {_ENDS}" if cut else "")
        axes.set_title(f"{title} ({overlap.variant})", loc="left", fontsize="medium", pad=24)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small",
            borderaxespad=0.2,
        )  # fmt: skip

    return png_figure(draw, (8, 1.3 + 0.3 * (len(labels) + cut)))


def _cells(overlap: VariantOverlap) -> list[str]:
    total = overlap.total
    shares = map(shown, (total.at_least_one, total.all, total.rel))
    length = f"{total.words / total.titles:.1f}" if total.titles else "–"
    return [overlap.variant, f"{total.pairs:,}", *shares, length]


def _preferred(overlaps: Sequence[VariantOverlap]) -> VariantOverlap:
    return min(overlaps, key=lambda each: _PREFERRED.index(each.variant))


def _csv(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    head = (
        "titles_of", "class", "pairs", "titles", "words", "at_least_one", "all", "relevant",
        "accuracy",
    )  # fmt: skip
    return csv_text(head, (
        [
            overlap.variant, label, of.pairs, of.titles, of.words,
            *(f"{share:.6g}" for share in (of.at_least_one, of.all, of.rel)),
            f"{accuracy[label]:.6g}" if label in accuracy else "",
        ]
        for overlap in overlaps
        for label, of in (
            ("", overlap.total), *((label, overlap.classes[label]) for label in overlap.ranked()),
        )
    ))  # fmt: skip


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: np.ndarray[tuple[int], np.dtype[np.float64]] = (last - (counts + 1) / 2)[inverse]
    return means
