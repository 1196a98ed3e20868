"""A picture of what titles became: raw, clean, tree, with what went struck out in colour."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from crosspair.corpora.titles import Reason
from crosspair.reporting.figures import FAINT, INK, SERIES

if TYPE_CHECKING:
    from crosspair.reporting.titles import Example

_WIDTH = 1600  # pixels; shown at half of it in a page
_SIZE = 25  # of letters
_LINE = 38
_MARGIN = 36
_COLUMNS = ((0.0, 0.45), (0.48, 0.29), (0.80, 0.20))  # left edge and width, of what is within
_TEXT = "#1f2328"
_COLOURS = {"sign": SERIES[1], "address": SERIES[2], "language": SERIES[0], "part": "#8b949e"}
_NAMES = {
    "sign": "emoji, symbol",
    "address": "address",
    "language": "not English",
    "part": "neither verb nor noun",
}

_Word = tuple[str, str, bool]  # text, kind of reason or "", whether a space stands before it


def title_picture(examples: Sequence[Example], kinds: Mapping[Reason, str]) -> bytes:
    """Draw examples one under the other.

    Args:
        examples: of titles; what the font cannot show is named, as "[emoji]".
        kinds: of reasons; each kind has its colour.

    Returns:
        A PNG on white, 1600 pixels wide.
    """
    font = ImageFont.truetype(findfont("DejaVu Sans"), _SIZE)
    small = ImageFont.truetype(findfont("DejaVu Sans"), 21)
    inner = _WIDTH - 2 * _MARGIN
    rows = []
    for example in examples:
        cells = (_raw(example, kinds), _clean(example), [(example.tree, "", True)])
        rows.append(
            [
                _lines(cell, font, share * inner)
                for cell, (_, share) in zip(cells, _COLUMNS, strict=True)
            ]
        )
    heights = [max(map(len, row)) * _LINE + 26 for row in rows]
    picture = Image.new("RGB", (_WIDTH, 2 * _MARGIN + 92 + sum(heights)), "white")
    draw = ImageDraw.Draw(picture)
    for name, (left, _) in zip(("title", "title_clean", "title_tree"), _COLUMNS, strict=True):
        draw.text((_MARGIN + left * inner, _MARGIN - 8), name, INK, small)
    top = _MARGIN + 34
    for row, height in zip(rows, heights, strict=True):
        draw.line((_MARGIN, top, _WIDTH - _MARGIN, top), FAINT, 2)
        for cell, (left, _) in zip(row, _COLUMNS, strict=True):
            _draw(draw, cell, font, _MARGIN + left * inner, top + 12)
        top += height
    draw.line((_MARGIN, top, _WIDTH - _MARGIN, top), FAINT, 2)
    _legend(draw, small, top + 16)
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
    known = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else "□" for char in text).replace("□", "[?]")


def _raw(example: Example, kinds: Mapping[Reason, str]) -> list[_Word]:
    words: list[_Word] = []
    for piece in example.pieces:
        text = shown(piece.text, piece.reason)
        kind = kinds[piece.reason] if piece.reason else ""
        if words and text.startswith("[") and words[-1][:2] == (text, kind):
            continue  # a phrase in another script is named once
        words.append((text, kind, piece.spaced))
    return words


def _clean(example: Example) -> list[_Word]:
    """The clean title, its marks included, with the words that the tree leaves out."""
    found: list[_Word] = []
    end = 0
    for word, stays in example.words:
        place = example.clean.find(word, end)
        between = example.clean[end:place]
        if between.strip():
            found.append((between.strip(), "", between.startswith(" ")))
        spaced = not between or between.endswith(" ")
        found.append((shown(word, None), "" if stays else "part", spaced and place > 0))
        end = place + len(word)
    if example.clean[end:]:
        found.append((example.clean[end:], "", False))
    return found


def _lines(
    words: Iterable[_Word], font: ImageFont.FreeTypeFont, width: float
) -> list[list[tuple[float, str, str]]]:
    """Break words into lines of places, texts and kinds; what touches stays together."""
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for together in _touching(words):
        length = sum(font.getlength(text) for text, _ in together)
        x += font.getlength(" ") if lines[-1] else 0.0
        if lines[-1] and x + length > width:
            lines.append([])
            x = 0.0
        for text, kind in together:
            lines[-1].append((x, text, kind))
            x += font.getlength(text)
    return lines


def _touching(words: Iterable[_Word]) -> list[list[tuple[str, str]]]:
    groups: list[list[tuple[str, str]]] = []
    for text, kind, spaced in words:
        for number, part in enumerate(text.split()):
            if spaced or number or not groups:
                groups.append([])
            groups[-1].append((part, kind))
    return groups


def _draw(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[Sequence[tuple[float, str, str]]],
    font: ImageFont.FreeTypeFont,
    left: float,
    top: float,
) -> None:
    for number, line in enumerate(lines):
        y = top + number * _LINE
        for x, text, kind in line:
            draw.text((left + x, y), text, _COLOURS.get(kind, _TEXT), font)
            if kind:
                end = left + x + font.getlength(text)
                draw.line((left + x - 1, y + 17, end + 1, y + 17), _COLOURS[kind], 3)


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, top: float) -> None:
    x = float(_MARGIN)
    for kind, name in _NAMES.items():
        draw.text((x, top), name, _COLOURS[kind], font)
        end = x + font.getlength(name)
        draw.line((x - 1, top + 14, end + 1, top + 14), _COLOURS[kind], 2)
        x = end + 36
