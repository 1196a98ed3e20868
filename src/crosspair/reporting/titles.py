"""What the title stage did, for people: a page, a table of every title, and a picture."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from crosspair.corpora.titles.clean import NOT_WORDS, Piece, Reason, clean_title
from crosspair.corpora.titles.stage import TitleReport, TitleRow, extract_trees
from crosspair.corpora.word_overlap import VariantOverlap
from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.reporting.figures import (
    FAINT,
    INK,
    SERIES,
    drawable,
    name_rows,
    png_figure,
    shortened,
)
from crosspair.reporting.run_report import render_page
from crosspair.reporting.tables import format_csv, format_value, print_rows

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
    page = render_page(
        "titles.html", report=report, reasons=reason_rows(report), examples=examples,
        kinds=KINDS, empty=report.clean_empty[:_LISTED],
        done={"keep": "kept without it", "drop": "dropped", "raw": "kept with the raw title"},
    )  # fmt: skip
    write_atomically(folder / "report.html", page)


def title_examples(report: TitleReport, most: int = _EXAMPLES) -> list[Example]:
    """Titles that show every reason, those with many different ones first."""
    short = [row for row in report.rows if row.prepared.clean and len(row.title) <= _LONGEST]
    unseen = {reason for row in short for reason, _ in row.prepared.reasons}
    chosen: dict[str, TitleRow] = {}
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
    parsed = extract_trees((each.text for _, each in made), lemmas=report.lemmas)
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


def _csv(rows: Sequence[TitleRow]) -> str:
    told = []
    for row in rows:
        clean, tree = row.prepared.clean, row.prepared.tree
        empty = "clean" if not clean else "tree" if not tree else ""
        told.append([row.pair_id, row.title, clean, tree, empty, row.prepared.removed])
    return format_csv(["pair_id", "title", "title_clean", "title_tree", "empty", "removed"], told)


# Kinds of reasons, each with a colour of its own.
KINDS: dict[Reason, str] = {
    Reason.EMOJI: "sign",
    Reason.SYMBOL: "sign",
    Reason.URL: "address",
    Reason.EMAIL: "address",
    Reason.MENTION: "address",
    Reason.SCRIPT: "language",
    Reason.LANGUAGE: "language",
    Reason.UNREADABLE: "language",
    Reason.ALONE: "language",
    Reason.PART: "part",
}
_LEGEND = {  # name and colour of each kind
    "sign": ("emoji, symbol", SERIES[1]),
    "address": ("address", SERIES[2]),
    "language": ("not English", SERIES[0]),
    "part": ("neither verb nor noun", "#8b949e"),
}
_TEXT = "#1f2328"
_WIDTH, _MARGIN, _INDENT = 1600, 36, 120  # pixels; shown at half of it in a page
_SIZE, _SMALL, _LINE, _GAP = 25, 21, 38, 26  # of letters, from line to line, between examples


@dataclass(frozen=True)
class Example:
    """A title with all its pieces, and its clean title with all its words.

    Attributes:
        raw, clean, tree: the title as it was, cleaned, and its verbs and nouns.
        pieces: of the raw title.
        words: of the clean title, and whether they stayed in the tree.
    """

    raw: str
    pieces: Sequence[Piece]
    clean: str
    words: Sequence[tuple[str, bool]]
    tree: str


def title_picture(examples: Sequence[Example]) -> bytes:
    """Draw examples one under the other, raw, clean and tree, a line each.

    Args:
        examples: of titles; what the font cannot show is named, as "[emoji]", and what is too long
            is cut.

    Returns:
        A PNG on white, 1600 pixels wide.
    """
    each = 3 * _LINE + _GAP
    height = 2 * _MARGIN + len(examples) * each + _LINE
    picture = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    font, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (_SIZE, _SMALL))
    legend = [_Word(name, kind, "   ") for kind, (name, _) in _LEGEND.items()]
    _write(draw, _MARGIN, _MARGIN - _GAP / 2, legend, small)
    for number, example in enumerate(examples):
        top = _MARGIN + _LINE + number * each
        draw.line((_MARGIN, top, _WIDTH - _MARGIN, top), FAINT, 2)
        tree = [_Word(example.tree)]
        for place, (name, words) in enumerate(
            (("raw", _raw(example)), ("clean", _clean(example)), ("tree", tree))
        ):
            y = top + _GAP / 2 + place * _LINE
            draw.text((_MARGIN, y + _SIZE - _SMALL), name, INK, small)
            _write(draw, _MARGIN + _INDENT, y, words, font)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def shown_words(text: str, reason: Reason | None) -> str:
    """The text, or what it is, where the font has no letters for it or would shape them wrongly.

    >>> shown("😍", Reason.EMOJI), shown("犬", Reason.SCRIPT), shown("dog", None)
    ('[emoji]', '[CJK]', 'dog')
    """
    if reason is Reason.EMOJI and not text.isascii():
        return "[emoji]"
    if reason is Reason.SCRIPT:
        name = unicodedata.name(text[0], "other script").split()[0]
        if name not in {"CYRILLIC", "GREEK"}:
            return f"[{name if name == 'CJK' else name.capitalize()}]"
    return drawable(text)


class _Word(NamedTuple):
    """A text, the kind of the reason why it went, if it did, and the space before it."""

    text: str
    kind: str = ""
    space: str = ""


def _raw(example: Example) -> list[_Word]:
    words: list[_Word] = []
    for piece in example.pieces:
        kind = KINDS[piece.reason] if piece.reason else ""
        word = _Word(shown_words(piece.text, piece.reason), kind, " " if piece.spaced else "")
        if words and word.text.startswith("[") and words[-1][:2] == word[:2]:
            continue  # a phrase in another script is named once
        words.append(word)
    return words


def _clean(example: Example) -> list[_Word]:
    """The clean title, its marks included, with the words that the tree leaves out."""
    found: list[_Word] = []
    end = 0
    for word, stays in example.words:
        place = example.clean.find(word, end)
        found.append(_Word(example.clean[end:place]))
        found.append(_Word(shown_words(word, None), "" if stays else "part"))
        end = place + len(word)
    return [*found, _Word(example.clean[end:])]


def _write(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    words: Sequence[_Word],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write words on a line as far as they fit, each struck out in its kind's colour if it went."""
    start = x
    for text, kind, space in words:
        x += font.getlength(space) if x > start else 0
        end = x + font.getlength(text)
        if end > _WIDTH - _MARGIN - font.getlength("…"):
            draw.text((x, y), "…", INK, font)
            return
        _, colour = _LEGEND.get(kind, ("", _TEXT))
        draw.text((x, y), text, colour, font)
        if kind:
            middle = y + round(0.68 * font.size)
            draw.line((x - 1, middle, end + 1, middle), colour, 3)
        x = end


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
    write_atomically(folder / "words.csv", _csv_words(overlaps, accuracy))
    write_atomically(folder / "words.png", overlap_figure(overlaps, accuracy))


def words_markdown(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    """Both tables in Markdown: kinds of titles, then classes by overlap."""
    best = _preferred(overlaps)
    classes = [
        [
            escape_markdown(label),
            f"{of.pairs:,}",
            *map(format_value, (of.at_least_one, of.all, accuracy.get(label))),
        ]
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
    shares = map(format_value, (total.at_least_one, total.all, total.rel))
    length = f"{total.words / total.titles:.1f}" if total.titles else "–"
    return [overlap.variant, f"{total.pairs:,}", *shares, length]


def _preferred(overlaps: Sequence[VariantOverlap]) -> VariantOverlap:
    return min(overlaps, key=lambda each: _PREFERRED.index(each.variant))


def _csv_words(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    head = (
        "titles_of", "class", "pairs", "titles", "words", "at_least_one", "all", "relevant",
        "accuracy",
    )  # fmt: skip
    return format_csv(head, (
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
