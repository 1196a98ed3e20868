"""Reports of title cleaning (page, CSV, picture) and of word overlap with class names."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from scipy import stats

from crosspair.corpora.titles import NOT_WORDS, Piece, Reason, TitleReport, TitleRow, clean_title, extract_trees
from crosspair.corpora.word_overlap import VariantOverlap
from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.reporting.figures import FAINT, INK, SERIES, label_rows, png_figure, replace_missing_glyphs, truncate
from crosspair.reporting.tables import ReportTable, TableCell, format_csv, format_value, print_rows, render_page

_LEGEND = {  # label and colour in the picture, and reasons, by CSS class
    "sign": ("emoji, symbol", SERIES[1], (Reason.EMOJI, Reason.SYMBOL)),
    "address": ("address", SERIES[2], (Reason.URL, Reason.EMAIL, Reason.MENTION)),
    "language": (
        "not English", SERIES[0],
        (Reason.SCRIPT, Reason.LANGUAGE, Reason.UNREADABLE, Reason.ALONE),
    ),
    "part": ("neither verb nor noun", "#8b949e", (Reason.PART,)),
}  # fmt: skip
REASON_CLASSES = {reason: name for name, (_, _, reasons) in _LEGEND.items() for reason in reasons}
_TEXT = "#1f2328"
_WIDTH, _MARGIN, _INDENT = 1600, 36, 120  # pixels; the page shows the picture at half the size
_SIZE, _SMALL, _LINE, _GAP = 25, 21, 38, 26  # pixels: font sizes, line height, space of examples
_EXAMPLES, _PICTURE_EXAMPLES = 16, 6
_LONGEST = 90  # characters of an example
_EMPTY_TITLES = 50  # maximum number on the page
_OVERLAP_HEAD = (
    "titles", "pairs", "at least one word", "all words", "relevant words", "words per title",
)  # fmt: skip
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
    """Write ``report.html``, ``titles.csv`` and ``titles.png``.

    Raises:
        RunError: a file cannot be written.
    """
    examples = title_examples(report)
    write_atomically(folder / "titles.csv", _titles_csv(report.rows))
    write_atomically(folder / "titles.png", title_picture(examples[:_PICTURE_EXAMPLES]))
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
        empty=ReportTable(
            "empty", "Empty clean titles", [TableCell("pair"), TableCell("raw title")], empty_rows
        ),
        examples=examples, kinds=REASON_CLASSES,
        actions={"keep": "kept without it", "drop": "dropped", "raw": "kept with the raw title"},
    )  # fmt: skip
    write_atomically(folder / "report.html", page)


def reason_frame(report: TitleReport) -> pd.DataFrame:
    """Count the removed pieces by reason, the most frequent first within each stage.

    Returns:
        The columns ``reason``, ``count`` and ``fraction`` of the words of the previous stage, 0 to
        1, which is None for pieces that are not words.
    """
    rows = []
    for reason, count in report.reasons.most_common():
        words = report.clean_words if reason is Reason.PART else report.raw_words
        fraction = None if reason in NOT_WORDS or not words else count / words
        rows.append({"reason": reason, "count": count, "fraction": fraction})
    rows.sort(key=lambda row: row["reason"] is Reason.PART)
    return pd.DataFrame(rows, columns=["reason", "count", "fraction"], dtype=object)


def title_examples(report: TitleReport, count: int = _EXAMPLES) -> list[TitleExample]:
    """Select up to ``count`` titles of at most 90 characters, first those that cover all reasons for removal."""
    short = [row for row in report.rows if row.prepared.clean and len(row.title) <= _LONGEST]
    missing = {reason for row in short for reason, _ in row.prepared.reasons}
    chosen: dict[str, TitleRow] = {}
    varied = sorted(short, key=lambda row: (-len(row.prepared.reasons), row.pair_id))
    for row in varied:
        reasons = {reason for reason, _ in row.prepared.reasons}
        if reasons & missing:
            chosen[row.title] = row
            missing -= reasons
    step = max(1, len(varied) // count)
    for row in [*varied[: count // 2], *varied[::step]]:
        chosen.setdefault(row.title, row)
    cleaned = [(row, clean_title(row.title)) for row in list(chosen.values())[:count]]
    # A clean title from the manifest does not necessarily result from the raw one.
    cleaned = [(row, each) for row, each in cleaned if each.text == row.prepared.clean]
    trees = extract_trees((each.text for _, each in cleaned), lemmas=report.lemmas)
    return [
        TitleExample(row.title, each.pieces, each.text, tree.words, tree.text)
        for (row, each), tree in zip(cleaned, trees, strict=True)
    ]


def _titles_csv(rows: Sequence[TitleRow]) -> str:
    lines = []
    for row in rows:
        clean, tree = row.prepared.clean, row.prepared.tree
        empty = "clean" if not clean else "tree" if not tree else ""
        lines.append([row.pair_id, row.title, clean, tree, empty, row.prepared.removed])
    head = ["pair_id", "title", "title_clean", "title_tree", "empty", "removed"]
    return format_csv(pd.DataFrame(lines, columns=head, dtype=object))


def title_picture(examples: Sequence[TitleExample]) -> bytes:
    """Draw the raw, clean and tree title of each example, with removed words struck through.

    Characters that the font lacks are replaced by a description, e.g. "[emoji]", and long titles
    are truncated.

    Returns:
        A PNG on white, 1600 pixels wide.
    """
    block = 3 * _LINE + _GAP
    height = 2 * _MARGIN + len(examples) * block + _LINE
    picture = Image.new("RGB", (_WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    font, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (_SIZE, _SMALL))
    legend = [_Word(name, kind, "   ") for kind, (name, *_) in _LEGEND.items()]
    _draw_words(draw, _MARGIN, _MARGIN - _GAP / 2, legend, small)
    for number, example in enumerate(examples):
        top = _MARGIN + _LINE + number * block
        draw.line((_MARGIN, top, _WIDTH - _MARGIN, top), FAINT, 2)
        y = top + _GAP / 2
        stages = {
            "raw": _raw_words(example), "clean": _clean_words(example),
            "tree": [_Word(example.tree)],
        }  # fmt: skip
        for name, words in stages.items():
            draw.text((_MARGIN, y + _SIZE - _SMALL), name, INK, small)
            _draw_words(draw, _MARGIN + _INDENT, y, words, font)
            y += _LINE
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def describe_undrawable(text: str, reason: Reason | None) -> str:
    """Replace text that the font cannot draw or would shape incorrectly, e.g. by "[CJK]"."""
    if reason is Reason.EMOJI and not text.isascii():
        return "[emoji]"
    if reason is Reason.SCRIPT:
        name = unicodedata.name(text[0], "other script").split()[0]
        if name not in {"CYRILLIC", "GREEK"}:
            return f"[{name if name == 'CJK' else name.capitalize()}]"
    return replace_missing_glyphs(text)


class _Word(NamedTuple):
    """Text, class of the reason for its removal if removed, and preceding space."""

    text: str
    kind: str = ""
    space: str = ""


def _raw_words(example: TitleExample) -> list[_Word]:
    """Return the pieces of a raw title with the CSS class of the reason for removal, empty if kept."""
    words: list[_Word] = []
    for piece in example.pieces:
        kind = REASON_CLASSES[piece.reason] if piece.reason else ""
        text = describe_undrawable(piece.text, piece.reason)
        if words and text.startswith("[") and words[-1][:2] == (text, kind):
            continue  # describe a phrase in another script once
        words.append(_Word(text, kind, " " if piece.spaced else ""))
    return words


def _clean_words(example: TitleExample) -> list[_Word]:
    """Return the clean title with its punctuation; words that are not in the tree are marked."""
    words: list[_Word] = []
    rest = example.clean
    for word, kept in example.words:
        before, _, rest = rest.partition(word)
        words.append(_Word(before))
        words.append(_Word(describe_undrawable(word, None), "" if kept else "part"))
    return [*words, _Word(rest)]


def _draw_words(draw: ImageDraw.ImageDraw, x: float, y: float, words: Sequence[_Word], font: FreeTypeFont) -> None:
    """Draw words on a line, cut off with … at the margin; strike removed ones through in their class's colour."""
    start = x
    for text, kind, space in words:
        x += font.getlength(space) if x > start else 0
        end = x + font.getlength(text)
        if end > _WIDTH - _MARGIN - font.getlength("…"):
            draw.text((x, y), "…", INK, font)
            return
        colour = _LEGEND[kind][1] if kind else _TEXT
        draw.text((x, y), text, colour, font)
        if kind:
            middle = y + round(0.68 * font.size)
            draw.line((x - 1, middle, end + 1, middle), colour, 3)
        x = end


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
    frame = pd.concat([_class_frame(overlap, accuracy) for overlap in overlaps])
    for name in ("at_least_one", "all", "relevant", "accuracy"):
        frame[name] = frame[name].map("{:.6g}".format, na_action="ignore")
    write_atomically(folder / "words.md", words_markdown(overlaps, accuracy))
    write_atomically(folder / "words.csv", format_csv(frame))
    write_atomically(folder / "words.png", overlap_figure(overlaps, accuracy))


def words_markdown(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> str:
    """Format the tables of title columns and of classes, sorted by overlap, in Markdown."""
    preferred = _preferred_variant(overlaps)
    rows = []
    for label in preferred.ranked():
        overlap = preferred.classes[label]
        values = map(format_value, (overlap.at_least_one, overlap.all, accuracy.get(label)))
        rows.append([escape_markdown(label), f"{overlap.pairs:,}", *values])
    correlation = rank_correlation(preferred, accuracy)
    sentence = "Rank correlation of overlap (at least one word) and accuracy over classes: "
    parts = [
        markdown_rows(_OVERLAP_HEAD, map(_overlap_cells, overlaps)),
        f"Fraction of {preferred.variant} that contain words of the class name:",
        markdown_rows(("class", "pairs", "at least one word", "all words", "accuracy"), rows),
        "" if correlation is None else f"{sentence}{correlation:+.2f}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def rank_correlation(overlap: VariantOverlap, accuracy: Mapping[str, float]) -> float | None:
    """Compute Spearman's correlation of overlap and accuracy over classes, -1 to 1.

    Returns:
        None if fewer than three classes have an accuracy, or if all values are equal.
    """
    frame = _class_frame(overlap, accuracy)[["at_least_one", "accuracy"]].dropna()
    if len(frame) < 3 or frame.nunique().min() == 1:
        return None
    return float(stats.spearmanr(frame.at_least_one, frame.accuracy).statistic)


def overlap_figure(overlaps: Sequence[VariantOverlap], accuracy: Mapping[str, float]) -> bytes:
    """Draw the classes with the largest and smallest overlap, and their accuracy, as a PNG."""
    overlap = _preferred_variant(overlaps)
    frame = _class_frame(overlap, accuracy)[1:]
    cut = len(frame) > 2 * _ENDS
    if cut:
        frame = pd.concat([frame[:_ENDS], frame[-_ENDS:]])
    rows = [row + (row >= _ENDS and cut) for row in range(len(frame))]

    def draw(axes: Axes) -> None:
        label = "titles with a class word"
        axes.barh(rows, 100 * frame.at_least_one, 0.72, color="#a9c9e0", label=label)
        if frame.accuracy.notna().any():
            axes.plot(100 * frame.accuracy, rows, "o", color=SERIES[1], label="accuracy")
        label_rows(axes, [truncate(label, 34) for label in frame["class"]], rows)
        axes.set(xlim=(0, 100), xlabel="%")
        if cut:
            axes.axhline(_ENDS, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        title = "Classes by word overlap" + (f", top and bottom {_ENDS}" if cut else "")
        axes.set_title(f"{title} ({overlap.variant})", loc="left", fontsize="medium", pad=24)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small",
            borderaxespad=0.2,
        )  # fmt: skip

    return png_figure(draw, (8, 1.3 + 0.3 * (len(frame) + cut)))


def _class_frame(overlap: VariantOverlap, accuracy: Mapping[str, float]) -> pd.DataFrame:
    """Return a row for all pairs (class "") and a row per class, sorted by overlap."""
    classes = [("", overlap.total), *((name, overlap.classes[name]) for name in overlap.ranked())]
    rows = [
        (
            overlap.variant, name, each.pairs, each.titles, each.words, each.at_least_one,
            each.all, each.rel, accuracy.get(name),
        )
        for name, each in classes
    ]  # fmt: skip
    head = ["titles_of", "class", "pairs", "titles", "words", "at_least_one", "all", "relevant"]
    return pd.DataFrame(rows, columns=[*head, "accuracy"]).astype({"accuracy": float})


def _overlap_cells(overlap: VariantOverlap) -> list[str]:
    total = overlap.total
    values = map(format_value, (total.at_least_one, total.all, total.rel))
    length = f"{total.words / total.titles:.1f}" if total.titles else "–"
    return [overlap.variant, f"{total.pairs:,}", *values, length]


def _preferred_variant(overlaps: Sequence[VariantOverlap]) -> VariantOverlap:
    """Return the overlap of clean titles if there is one, else of raw titles, else of tree titles."""
    return min(overlaps, key=lambda each: _PREFERRED.index(each.variant))
