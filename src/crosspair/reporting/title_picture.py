"""A picture of what titles became: raw, clean, tree, with what went struck out in colour."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from crosspair.corpora.titles import Piece, Reason
from crosspair.reporting.figures import FAINT, INK, SERIES, drawable

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


def shown(text: str, reason: Reason | None) -> str:
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
        word = _Word(shown(piece.text, piece.reason), kind, " " if piece.spaced else "")
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
        found.append(_Word(shown(word, None), "" if stays else "part"))
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
