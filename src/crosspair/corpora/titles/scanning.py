"""A title in pieces: what may stay, what marks a pause, and what goes for which reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from crosspair.corpora.titles.characters import LATIN, UNREADABLE, plain
from crosspair.corpora.titles.hashtags import split_hashtag


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
        text: in the plain form, see `crosspair.corpora.titles.characters.plain`.
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
    text = _QUOTED.sub(r"\1'\2", plain(title))
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
