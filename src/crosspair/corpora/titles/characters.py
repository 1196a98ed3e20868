"""One plain form for all the ways in which the characters of a title can be written.

Entities, mojibake, fancy letters, full-width forms, curly quotes, dashes, accents that stand alone
and characters that nobody sees come down to Latin letters, ASCII marks, and what the scanner
removes by its kind: symbols, emoji and letters of other scripts.
"""

from __future__ import annotations

import html
import re
import unicodedata

from crosspair.corpora.titles.languages import needed

# The letters of European languages and Vietnamese, as the inside of a character class.
LATIN = "A-Za-zÀ-ÖØ-öø-ʯḀ-ỿⱠ-Ɀ"
# Marks of any script that stand on the letter before them, and the signs that shape an emoji.
MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
UNREADABLE = "\ufffd"


def plain(text: str) -> str:
    """Write a text in its plain form.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> plain("𝓯𝓪𝓷𝓬𝔂 &amp; “ｗｉｄｅ” cafe\\u0301 donâ€™t ½ ᴛɪɴʏ")
    'fancy & "wide" café don\\'t 1/2 tiny'
    """
    if "&" in text:
        # Twice, as some sites escape what is escaped already.
        text = _ENTITY.sub(_unescaped, _ENTITY.sub(_unescaped, text))
    if text.isascii():
        return _SPACES.sub(" ", text.translate(_TABLE)).strip()
    text = needed("ftfy").fix_encoding(text.translate(_BROKEN))
    text = _FRACTION.sub(lambda found: f" {found[0]}", text.translate(_BEFORE))
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(rf"[{MARKS}]", "", text)
    text = _RANGE.sub("-", text).translate(_TABLE)
    return _SPACES.sub(" ", text).strip()


def is_mojibake(word: str) -> bool:
    """Whether a word of a plain text is the wreck of a wrong encoding, which could not be mended.

    >>> is_mojibake("cafÃ©"), is_mojibake("café")
    (True, False)
    """
    if word.isascii():
        return False
    amid = f"{word} a"  # a space is part of some wrecks
    return str(needed("ftfy").fix_encoding(amid)) != amid


class _Table(dict[int, str]):
    """A translation table that works out a character when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _plain_character(chr(code))
        return found


def _plain_character(char: str) -> str:
    small = _SMALL_CAPITAL.match(unicodedata.name(char, ""))
    if small and len(small[1]) == 1:
        return small[1].lower()
    if " " <= char <= "~" or _LATIN.match(char) or char == UNREADABLE:
        return char
    if char in _PUNCTUATION:
        return _PUNCTUATION[char]
    category = unicodedata.category(char)
    if char in "\u200b\u2063" or category[0] == "Z" or category == "Cc":
        return " "  # a zero-width space is where a word may end
    if category == "Cf":
        return ""  # joiners, marks of direction, soft hyphens, tags
    if category[0] == "C":
        return " "
    if category[0] == "P":
        return _BY_CATEGORY.get(category, " | ")
    return char


def _unescaped(found: re.Match[str]) -> str:
    return html.unescape(found[0])


_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LATIN = re.compile(f"[{LATIN}]")
_FRACTION = re.compile(r"[¼-¾⅐-⅞↉]")
_RANGE = re.compile(r"(?<=\d)\s?[–—−]\s?(?=\d)")
_SPACES = re.compile(r" +")
_SMALL_CAPITAL = re.compile(r"(?:LATIN LETTER SMALL CAPITAL|NEGATIVE (?:SQUARED|CIRCLED) "
                            r"LATIN CAPITAL LETTER) (\w+)$")  # fmt: skip
_BROKEN = dict.fromkeys(range(0xD800, 0xE000), UNREADABLE)  # halves of pairs
# What NFKC would turn into letters, or into a space with an accent.
_BEFORE: dict[int, str] = {
    **dict.fromkeys(map(ord, "™℠©®℗ℹ¨¯¸˙˚˜˛˝"), " "),
    **dict.fromkeys(map(ord, "‘’‛ʼʻʹ′´ˈ＇`"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″«»"), '"'),
    **dict.fromkeys(map(ord, "ǀǁǃ"), "|"),  # letters of click languages, but never in titles
    ord("‚"): ",",
}
_PUNCTUATION = {
    "。": ". ",
    "．": ". ",
    "、": ", ",
    "¿": " ",
    "¡": " ",
    "‐": "-",
    "‑": "-",
    "⁄": "/",
}
_BY_CATEGORY = {"Pd": " - ", "Ps": " (", "Pe": ") ", "Pi": '"', "Pf": '"', "Pc": "_"}
_TABLE = _Table()
