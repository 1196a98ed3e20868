"""Clean titles: normalise characters, tokenise, and remove what is not English text (Section 4.1).

`normalize_characters` maps HTML entities, mojibake, decorative letters, full-width forms, curly
quotes, dashes and invisible characters to Latin letters and ASCII punctuation. `scan` splits a
title into pieces, and marks symbols, emoji, addresses and other scripts for removal. `clean_title`
also removes words of other languages, and numbers if no word is left.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from crosspair.corpora.titles.english import find_foreign_words, import_text_package, split_hashtag

# The letters of European languages and Vietnamese, as the inside of a character class.
LATIN = "A-Za-zÀ-ÖØ-öø-ʯḀ-ỿⱠ-Ɀ"
# Combining marks, and the variation selectors of emoji.
MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
UNREADABLE = "\ufffd"


def normalize_characters(text: str) -> str:
    """Normalise the characters of a text.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> normalize_characters("𝓯𝓪𝓷𝓬𝔂 &amp; “ｗｉｄｅ” cafe\\u0301 donâ€™t ½ ᴛɪɴʏ")
    'fancy & "wide" café don\\'t 1/2 tiny'
    """
    if "&" in text:
        # Twice, as some sites escape twice.
        text = _ENTITY.sub(_unescape, _ENTITY.sub(_unescape, text))
    if text.isascii():
        return _SPACES.sub(" ", text.translate(_TABLE)).strip()
    text = import_text_package("ftfy").fix_encoding(text.translate(_SURROGATES))
    text = _FRACTION.sub(lambda found: f" {found[0]}", text.translate(_BEFORE_NFKC))
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(rf"[{MARKS}]", "", text)
    text = _RANGE.sub("-", text).translate(_TABLE)
    return _SPACES.sub(" ", text).strip()


def is_mojibake(word: str) -> bool:
    """Return whether a word is mojibake that `normalize_characters` could not repair.

    >>> is_mojibake("cafÃ©"), is_mojibake("café")
    (True, False)
    """
    if word.isascii():
        return False
    text = f"{word} a"  # some mojibake includes a space
    return str(import_text_package("ftfy").fix_encoding(text)) != text


class _Table(dict[int, str]):
    """A translation table that computes the entry of a character on first use."""

    def __missing__(self, code: int) -> str:
        self[code] = replacement = _normalize_character(chr(code))
        return replacement


def _normalize_character(char: str) -> str:
    small = _SMALL_CAPITAL.match(unicodedata.name(char, ""))
    if small and len(small[1]) == 1:
        return small[1].lower()
    if " " <= char <= "~" or _LATIN.match(char) or char == UNREADABLE:
        return char
    if char in _PUNCTUATION:
        return _PUNCTUATION[char]
    category = unicodedata.category(char)
    if char in "\u200b\u2063" or category[0] == "Z" or category == "Cc":
        return " "  # a zero-width space allows a line break between words
    if category == "Cf":
        return ""  # joiners, direction marks, soft hyphens, tags
    if category[0] == "C":
        return " "
    if category[0] == "P":
        return _BY_CATEGORY.get(category, " | ")
    return char


def _unescape(found: re.Match[str]) -> str:
    return html.unescape(found[0])


_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LATIN = re.compile(f"[{LATIN}]")
_FRACTION = re.compile(r"[¼-¾⅐-⅞↉]")
_RANGE = re.compile(r"(?<=\d)\s?[–—−]\s?(?=\d)")
_SPACES = re.compile(r" +")
_SMALL_CAPITAL = re.compile(r"(?:LATIN LETTER SMALL CAPITAL|NEGATIVE (?:SQUARED|CIRCLED) "
                            r"LATIN CAPITAL LETTER) (\w+)$")  # fmt: skip
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), UNREADABLE)  # halves of pairs
# Applied before NFKC, which would turn these into letters, or into a space with an accent.
_BEFORE_NFKC: dict[int, str] = {
    **dict.fromkeys(map(ord, "™℠©®℗ℹ¨¯¸˙˚˜˛˝"), " "),
    **dict.fromkeys(map(ord, "‘’‛ʼʻʹ′´ˈ＇`"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″«»"), '"'),
    **dict.fromkeys(map(ord, "ǀǁǃ"), "|"),  # letters of click languages, used as bars in titles
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


class Reason(StrEnum):
    """Why a piece of a title is removed."""

    EMOJI = "emoji"
    SYMBOL = "symbol"
    URL = "URL"
    EMAIL = "e-mail"
    MENTION = "mention"
    SCRIPT = "other script"
    LANGUAGE = "not English"
    UNREADABLE = "unreadable"
    ALONE = "number alone"
    PART = "not a verb or noun"


NOT_WORDS = frozenset({Reason.EMOJI, Reason.SYMBOL})  # removed pieces that are not words


class Piece(NamedTuple):
    """A token of a title.

    Attributes:
        text: normalised, see `normalize_characters`.
        reason: why it is removed; ``None`` if it is kept.
        mark: the punctuation mark that replaces it between words, if any.
        word: whether it is a word or a number.
        spaced: whether white space precedes it.
    """

    text: str
    reason: Reason | None = None
    mark: str = ""
    word: bool = False
    spaced: bool = True


def scan(title: str) -> list[Piece]:
    """Split a raw title into pieces, without removing words of other languages.

    >>> [(p.text, str(p.reason)) for p in scan("Go! 😍 #bigDog www.a.com") if not p.mark]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Go', 'None'), ('😍', 'emoji'), ('#', 'symbol'), ('big', 'None'), ('Dog', 'None'),
     ('www.a.com', 'URL')]
    """
    text = _QUOTED.sub(r"\1'\2", normalize_characters(title))
    text = _WITH.sub(lambda found: "without " if found[1] else "with ", text)
    pieces: list[Piece] = []
    end = 0
    for found in _TOKEN.finditer(text):
        spaced = found.start() > end or not pieces
        end = found.end()
        pieces += _token_pieces(found.lastgroup or "", found[0], spaced)
    return pieces


def _token_pieces(kind: str, text: str, spaced: bool) -> Iterator[Piece]:
    if kind == "word":
        yield Piece(text, word=True, spaced=spaced)
    elif kind == "mark":
        reason = None if text[0] in _PUNCTUATION_MARKS else Reason.SYMBOL
        yield Piece(text, reason, _sentence_mark(text), spaced=spaced)
    elif kind == "hashtag":
        yield Piece("#", Reason.SYMBOL, spaced=spaced)
        for place, part in enumerate(_TAG_PART.findall(text)):
            if not _LATIN_WORD.match(part):
                yield Piece(part, Reason.SCRIPT, spaced=place > 0)
                continue
            for inner, word in enumerate(split_hashtag(part)):
                yield Piece(word, word=True, spaced=place + inner > 0)
    elif kind == "other":
        emoji = any(_is_emoji(char) for char in text)
        yield Piece(text, Reason.EMOJI if emoji else Reason.SYMBOL, spaced=spaced)
    else:
        yield Piece(text, _REASONS[kind], spaced=spaced)


def _sentence_mark(text: str) -> str:
    if text in ".!?:,&":
        return text
    return "," if text[0] in ".;|/\\()[]{}-" else ""


def _is_emoji(char: str) -> bool:
    code = ord(char)
    return unicodedata.category(char) in {"So", "Sk"} and (
        0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or 0x2B00 <= code <= 0x2BFF
        or 0x2300 <= code <= 0x23FF
    )  # fmt: skip


_REASONS = {
    "url": Reason.URL,
    "email": Reason.EMAIL,
    "mention": Reason.MENTION,
    "emoticon": Reason.EMOJI,
    "script": Reason.SCRIPT,
    "broken": Reason.UNREADABLE,
}
_W = f"[{LATIN}0-9]"
_L = f"[{LATIN}]"
_SAFE_ENDS = "com|net|org|edu|gov|info|biz|tv|co\\.uk|gg|io|ly"
_ENDS = f"{_SAFE_ENDS}|be|me|us|in|it|to|so|cc|ws|gl|de|fr|uk|es|jp|ru|ca|au|br|nl|ch|se|eu|app"
# An apostrophe that was lost to a wrong encoding, as in "don\ufffdt".
_QUOTED = re.compile(rf"(?i)({_L}){UNREADABLE}(s|t|m|d|ll|re|ve)(?!{_W})")
_WITH = re.compile(r"(?i)(?<![^\s(])w/(o?)(?!\w)\s*")  # not in an address
_TOKEN = re.compile(
    rf"""
      (?P<url> (?:https?|ftp)\s?:\s?/[!-~]* | (?<!{_W})www\.[!-~]+
        | (?<![@\w])(?:[a-z0-9-]+\.)+(?:{_SAFE_ENDS})(?![\w-])(?:[:/][!-~]*)?(?!@)
        | (?<![@\w])(?:[a-z0-9-]+\.)+(?:{_ENDS})/[!-~]+ )
    | (?P<email> [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    | (?P<mention> @[{LATIN}0-9_][\w.]* )
    | (?P<hashtag> \#(?=\d*_*[^\W\d_])\w+ )
    | (?P<emoticon> (?<!\w)(?:[:;=][-'^o]?[)(\]\[DPp3|/\\*]|<3|\^[_.-]?\^|xD)(?!\w) )
    | (?P<broken> [\w'-]*{UNREADABLE}[\w{UNREADABLE}'-]* )
    | (?P<word> {_L}(?:\.{_L})+(?!{_W})\.?                                  # U.S.
        | {_W}{{1,2}}&{_W}{{1,2}}(?!{_W})                                   # Q&A
        | [$£€]?[0-9]+(?:[.,:/][0-9]+)*(?:%|{_W}*(?:['-]{_W}+)*)                  # 4th, $2.50, 24/7
        | {_W}+(?:['-]{_W}+)* )
    | (?P<mark> \.{{2,}} | [!-/:-@\[-`{{-~] )
    | (?P<script> (?:[^\W\d_{LATIN}]|\d(?<![0-9])|[^\s\w!-~](?<=[\u0591-\u1aff\ua800-\uabff]))+ )
    | (?P<other> [^\s\w!-~]+ )
    | (?P<stray> \S )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_REASONS["stray"] = Reason.SYMBOL
_TAG_PART = re.compile(rf"{_W}+|[^\W_{LATIN}0-9]+")
_LATIN_WORD = re.compile(_W)
_PUNCTUATION_MARKS = frozenset(".,!?:;'\"()&-")


class CleanedTitle(NamedTuple):
    """A clean title, and the pieces of the raw one.

    Attributes:
        text: the clean title; empty if nothing is English.
        pieces: of the raw title in order; removed ones have a reason.
    """

    text: str
    pieces: list[Piece]

    @property
    def removed(self) -> list[Piece]:
        """The removed pieces."""
        return [piece for piece in self.pieces if piece.reason]


def clean_title(title: str) -> CleanedTitle:
    """Clean one title, as for Kinetics-title-clean (Section 4.1).

    Kept are English words including names and loan words, in their own case; numbers, with units,
    amounts and times; and the marks ``, . : ! ?``. "&" becomes "and". Cleaning a clean title
    does not change it.

    Args:
        title: any string.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> clean_title("★ How to juggle 3 balls | #LearnToJuggle — ¡muy fácil! 🤹 www.a.com").text
    'How to juggle 3 balls, Learn To Juggle'
    """
    pieces = _mark_foreign(scan(title))
    text = _join(pieces)
    # Removing words changes the context of the others; repeat until nothing is removed.
    while True:
        remaining = _mark_foreign(scan(text))
        shorter = _join(remaining)
        if shorter == text:
            return CleanedTitle(text, pieces)
        pieces = _merge_reasons(pieces, remaining)
        text = shorter


def _mark_foreign(pieces: list[Piece]) -> list[Piece]:
    """Set the reason of words that are not English, and of numbers if no word is left."""
    for place, piece in enumerate(pieces):
        if piece.word and is_mojibake(piece.text):
            pieces[place] = piece._replace(reason=Reason.UNREADABLE)
    places = [place for place, piece in enumerate(pieces) if piece.word and not piece.reason]
    words = [pieces[place].text for place in places]
    found = find_foreign_words(words, [_starts_sentence(pieces, place) for place in places])
    for place, is_foreign in zip(places, found, strict=True):
        if is_foreign:
            pieces[place] = pieces[place]._replace(reason=Reason.LANGUAGE)
    left = [place for place in places if not pieces[place].reason]
    if not any(char.isalpha() for place in left for char in pieces[place].text):
        for place in left:
            pieces[place] = pieces[place]._replace(reason=Reason.ALONE)
    return pieces


def _starts_sentence(pieces: Sequence[Piece], place: int) -> bool:
    """Return whether a capital here carries no information."""
    return place == 0 or pieces[place - 1].mark in {".", "!", "?"}


def _join(pieces: Sequence[Piece]) -> str:
    """Join the kept words, with at most one mark between two."""
    text, gap = "", ""
    closed = False  # whether a piece was removed since the last word
    for piece in pieces:
        if piece.word and not piece.reason:
            text += (_separator(gap) if text else "") + piece.text
            gap, closed = "", False
        elif piece.word or piece.reason not in (None, Reason.SYMBOL):
            closed = True
            gap = gap.replace("&", "")
        elif not (closed and piece.mark in "&!?."):
            gap += piece.mark
    end = next((mark for mark in "?!." if mark in gap), "")
    return text + (end if text and not text.endswith(end or " ") else "")


def _separator(gap: str) -> str:
    mark = next((mark for mark in "?!.:," if mark in gap), "")
    return f"{mark} " if mark else " and " if "&" in gap else " "


def _merge_reasons(before: list[Piece], after: list[Piece]) -> list[Piece]:
    """Set the reasons in ``after``, found in the joined text, on the pieces of the raw title."""
    kept = [piece.text for piece in after if piece.word and not piece.reason]
    late = {piece.text: piece.reason for piece in after if piece.reason}
    merged = []
    for piece in before:
        if piece.word and not piece.reason:
            if kept and kept[0] == "and" != piece.text:
                kept.pop(0)  # it was "&"
            if kept and kept[0].rstrip(".") == piece.text.rstrip("."):
                kept.pop(0)
            else:
                piece = piece._replace(reason=late.get(piece.text, Reason.UNREADABLE))
        merged.append(piece)
    return merged
