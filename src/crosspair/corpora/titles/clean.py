"""One plain form for all the ways in which the characters of a title can be written.

Entities, mojibake, fancy letters, full-width forms, curly quotes, dashes, accents that stand alone
and characters that nobody sees come down to Latin letters, ASCII marks, and what the scanner
removes by its kind: symbols, emoji and letters of other scripts.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from crosspair.corpora.titles.english import check_wordfreq, find_foreign_words, split_hashtag

# The letters of European languages and Vietnamese, as the inside of a character class.
LATIN = "A-Za-zÀ-ÖØ-öø-ʯḀ-ỿⱠ-Ɀ"
# Marks of any script that stand on the letter before them, and the signs that shape an emoji.
MARKS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
UNREADABLE = "\ufffd"


def normalize_characters(text: str) -> str:
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
    text = check_wordfreq("ftfy").fix_encoding(text.translate(_BROKEN))
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
    return str(check_wordfreq("ftfy").fix_encoding(amid)) != amid


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


NOT_WORDS = frozenset({Reason.EMOJI, Reason.SYMBOL})  # of all that is removed


class Piece(NamedTuple):
    """A part of a title.

    Attributes:
        text: in the plain form, see `crosspair.corpora.titles.clean.normalize_characters`.
        reason: why it goes; ``None`` for words, numbers and marks.
        mark: for what stands between words, the sentence's mark that it amounts to, if any.
        word: whether it is a word or a number, that is, stays in a clean title without a reason.
        spaced: whether white space stands before it.
    """

    text: str
    reason: Reason | None = None
    mark: str = ""
    word: bool = False
    spaced: bool = True


def scan(title: str) -> list[Piece]:
    """Take a raw title apart. Words of other languages are still among the words.

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
        pieces += _pieces(found.lastgroup or "", found[0], spaced)
    return pieces


def _pieces(kind: str, text: str, spaced: bool) -> Iterator[Piece]:
    if kind == "word":
        yield Piece(text, word=True, spaced=spaced)
    elif kind == "mark":
        reason = None if text[0] in _SENTENCE else Reason.SYMBOL
        yield Piece(text, reason, _mark(text), spaced=spaced)
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


def _mark(text: str) -> str:
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
# An apostrophe that was lost to a wrong encoding, as in "don\ufffdt", can still be told.
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
_SENTENCE = frozenset(".,!?:;'\"()&-")


class CleanedTitle(NamedTuple):
    """What became of a title.

    Attributes:
        text: the clean title; empty where nothing of it is English.
        pieces: all of the raw title in its order, each with the reason why it went, if it did.
    """

    text: str
    pieces: list[Piece]

    @property
    def removed(self) -> list[Piece]:
        """The pieces that went."""
        return [piece for piece in self.pieces if piece.reason]


def clean_title(title: str) -> CleanedTitle:
    """Clean one title, as for Kinetics-title-clean (Section 4.1).

    What stays: English words, also names and the loan words that English uses, in their own case;
    numbers, with units, amounts and times; and the marks ``, . : ! ?``. "&" becomes "and".
    Cleaning what is clean already changes nothing.

    Args:
        title: any string.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> clean_title("★ How to juggle 3 balls | #LearnToJuggle — ¡muy fácil! 🤹 www.a.com").text
    'How to juggle 3 balls, Learn To Juggle'
    """
    pieces = _judged(scan(title))
    text = _joined(pieces)
    # Without the words that went, others may look different; each time there are fewer.
    while True:
        again = _judged(scan(text))
        then = _joined(again)
        if then == text:
            return CleanedTitle(text, pieces)
        pieces = _merged(pieces, again)
        text = then


def _judged(pieces: list[Piece]) -> list[Piece]:
    """Give a reason to the words that are not English, and to numbers that no word explains."""
    for place, piece in enumerate(pieces):
        if piece.word and is_mojibake(piece.text):
            pieces[place] = piece._replace(reason=Reason.UNREADABLE)
    places = [place for place, piece in enumerate(pieces) if piece.word and not piece.reason]
    words = [pieces[place].text for place in places]
    found = find_foreign_words(words, [_begins(pieces, place) for place in places])
    for place, is_foreign in zip(places, found, strict=True):
        if is_foreign:
            pieces[place] = pieces[place]._replace(reason=Reason.LANGUAGE)
    left = [place for place in places if not pieces[place].reason]
    if not any(char.isalpha() for place in left for char in pieces[place].text):
        for place in left:
            pieces[place] = pieces[place]._replace(reason=Reason.ALONE)
    return pieces


def _begins(pieces: Sequence[Piece], place: int) -> bool:
    """Whether a sentence begins here, so that a capital says nothing."""
    return place == 0 or pieces[place - 1].mark in {".", "!", "?"}


def _joined(pieces: Sequence[Piece]) -> str:
    """Put the words that stay together, with one mark at most between two."""
    text, gap = "", ""
    closed = False  # whether a removed piece stands since the last word
    for piece in pieces:
        if piece.word and not piece.reason:
            text += (_between(gap) if text else "") + piece.text
            gap, closed = "", False
        elif piece.word or piece.reason not in (None, Reason.SYMBOL):
            closed = True
            gap = gap.replace("&", "")
        elif not (closed and piece.mark in "&!?."):
            gap += piece.mark
    end = next((mark for mark in "?!." if mark in gap), "")
    return text + (end if text and not text.endswith(end or " ") else "")


def _between(gap: str) -> str:
    mark = next((mark for mark in "?!.:," if mark in gap), "")
    return f"{mark} " if mark else " and " if "&" in gap else " "


def _merged(before: list[Piece], after: list[Piece]) -> list[Piece]:
    """Give the pieces of the raw title the reasons that were found later."""
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
