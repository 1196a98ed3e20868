"""Clean titles: normalise characters, tokenise, remove what is not English text (Section 4.1)."""

from __future__ import annotations

import importlib
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crosspair.errors import TextError

# The letters of European languages and Vietnamese, as the inside of a character class. The letters
# of click languages are excluded, since titles use them as bars.
LATIN = "A-Za-zÀ-ÖØ-öø-ƿǄ-ʯḀ-ỿⱠ-Ɀ"


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


@dataclass(slots=True)
class Piece:
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


class CleanedTitle(NamedTuple):
    """A clean title, empty if nothing is English, and the pieces of the raw one in order."""

    text: str
    pieces: list[Piece]


def clean_title(title: str) -> CleanedTitle:
    """Clean one title, as for Kinetics-title-clean (Section 4.1).

    Kept are English words including names and loan words, in their own case; numbers, with units,
    amounts and times; and the marks ``, . : ! ?``. "&" becomes "and".

    Args:
        title: any string.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> clean_title("★ How to juggle 3 balls | #LearnToJuggle — ¡muy fácil! 🤹 www.a.com").text
    'How to juggle 3 balls, Learn To Juggle'
    """
    pieces = list(split_title(title))
    words = [piece for piece in pieces if piece.word]
    # Removing a word changes the context of the others; repeat until nothing is removed.
    while foreign := find_foreign_words([word.text for word in words]):
        for n in foreign:
            words[n].reason = Reason.LANGUAGE
        words = [word for word in words if not word.reason]
    if not any(char.isalpha() for word in words for char in word.text):
        for word in words:
            word.reason = Reason.ALONE
    return CleanedTitle(_join(pieces), pieces)


def _join(pieces: Sequence[Piece]) -> str:
    """Join the kept words, with at most one mark between two."""
    text, marks = "", ""
    after_removed = False  # whether a piece was removed since the last word
    for piece in pieces:
        if piece.word and not piece.reason:
            mark = next((mark for mark in "?!.:,&" if mark in marks), "")
            separator = " and " if mark == "&" else f"{mark} "
            text += (separator if text else "") + piece.text
            marks, after_removed = "", False
        elif piece.word or piece.reason not in (None, Reason.SYMBOL):
            marks, after_removed = marks.replace("&", ""), True
        elif not (after_removed and piece.mark in "&!?."):  # a mark of the removed text
            marks += piece.mark
    end = next((mark for mark in "?!." if mark in marks), "")
    return text + (end if text and not text.endswith(end or " ") else "")


_W = f"[{LATIN}0-9]"
_LOST_APOSTROPHE = re.compile(rf"(?i)([{LATIN}])\ufffd(s|t|m|d|ll|re|ve)(?!{_W})")
_WITH = re.compile(r"(?i)(?<![^\s(])w/(o?)(?!\w)\s*")  # not in an address
_HASHTAG = re.compile(r"#(?=\d*_*[^\W\d_])(\w+)")
# Splits "big_DOGRun2day" into "big", "DOG", "Run", "2", "day", but not "4k" or "1st".
_TAG_PARTS = re.compile(r"_+|(?<=[a-z])(?=[A-Z\d])|(?<=[A-Z])(?=[A-Z][a-z]|\d)|(?<=\d)(?=[A-Za-z]{3})")
_TOKEN = re.compile(
    rf"""
      (?P<URL> (?:https?|ftp)\s?:\s?/[!-~]* | (?<!{_W})www\.[!-~]+
        | (?<![@\w])(?:[a-z0-9-]+\.)+(?: [a-z]{{2,4}}/[!-~]+
          | (?:com|net|org|edu|gov|info|tv|co\.uk|be|ly)(?![\w-])(?:[:/][!-~]*)?(?!@) ) )
    | (?P<EMAIL> [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    | (?P<MENTION> @[{LATIN}0-9_][\w.]* )
    | (?P<EMOJI> (?<!\w)(?:[:;=][-'^o]?[)(\]\[DPp3|/\\*]|<3|\^[_.-]?\^|xD)(?!\w) )  # emoticons
    | (?P<UNREADABLE> [\w'-]*\ufffd[\w\ufffd'-]* )
    | (?P<word> [{LATIN}](?:\.[{LATIN}])+(?!{_W})\.?                       # U.S.
        | {_W}{{1,2}}&{_W}{{1,2}}(?!{_W})                                  # Q&A
        | [$£€]?[0-9]+(?:[.,:/][0-9]+)*(?:%|{_W}*(?:['-]{_W}+)*)           # 4th, $2.50, 24/7
        | {_W}+(?:['-]{_W}+)* )
    | (?P<mark> \.{{2,}} | [!-/:-@\[-`{{-~] )
    | (?P<SCRIPT> (?:[^\W0-9_{LATIN}]|[\u0591-\u1aff\ua800-\uabff])+ )
    | (?P<symbol> [^\s\w!-~]+ | _ )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def split_title(title: str) -> Iterator[Piece]:
    """Split a raw title into pieces, without removing words of other languages.

    >>> [(p.text, str(p.reason)) for p in split_title("Go! 😍 #bigDog www.a.com") if not p.mark]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Go', 'None'), ('😍', 'emoji'), ('#', 'symbol'), ('big', 'None'), ('Dog', 'None'),
     ('www.a.com', 'URL')]
    """
    text = normalize_characters(title)
    text = _LOST_APOSTROPHE.sub(r"\1'\2", text)
    text = _WITH.sub(lambda found: "without " if found[1] else "with ", text)
    text = _HASHTAG.sub(lambda found: "#" + " ".join(split_hashtag(found[1])), text)
    end = -1
    for found in _TOKEN.finditer(text):
        kind, token, spaced = found.lastgroup or "", found[0], found.start() != end
        end = found.end()
        reason, mark = None, ""
        if kind == "mark":
            reason = None if token[0] in ".,!?:;'\"()&-" else Reason.SYMBOL
            mark = token if token in ".!?:,&" else "," if token[0] in ".;|/\\()[]{}-" else ""
        elif kind == "symbol":
            is_emoji = import_text_package("emoji").emoji_count(token)
            reason = Reason.EMOJI if is_emoji else Reason.SYMBOL
        elif kind != "word":
            reason = Reason[kind]
        yield Piece(token, reason, mark, kind == "word", spaced)


def normalize_characters(text: str) -> str:
    """Repair mojibake, and map decorative letters, quotes, dashes and entities to plain characters.

    >>> normalize_characters("𝓯𝓪𝓷𝓬𝔂 &amp; “ｗｉｄｅ” cafe\\u0301 donâ€™t ½ ᴛɪɴʏ")
    'fancy & "wide" café don\\'t 1/2 tiny'
    """
    text = import_text_package("ftfy").fix_text(text, unescape_html=True)
    if not text.isascii():
        text = _FRACTION.sub(r" \g<0>", text).translate(_CHARACTERS)
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("⁄", "/")
    return " ".join(text.split())


_FRACTION = re.compile("[¼-¾⅐-⅞]")
_CHARACTERS = str.maketrans(
    "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ′´‐‑–−—―•·、。【】《》™℠©®℗¿¡", "abcdefghijklmnoprstuvwyz''----||||,.[][]       "
)
# Combining marks, joiners, direction marks, soft hyphens, and variation selectors of emoji.
_INVISIBLE = re.compile("[\u00ad\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060\u20d0-\u20ff\ufe00-\ufe0f]")

# Languages of wordfreq in Latin letters; other scripts are recognised by their characters.
LANGUAGES = (
    "en", "fr", "es", "pt", "de", "it", "nl", "pl", "tr", "id", "sv", "nb", "da", "fi", "cs", "sk",
    "hu", "ro", "vi", "fil", "ca", "sh", "sl", "lt", "lv", "is",
)  # fmt: skip

# On the Zipf scale, log10 of the frequency per billion words: 3 is once in a million words.
_FLOOR = 2.5  # assumed for words that are not in the list of a language
_THRESHOLD = 3.0  # of the evidence for another language
_DECAY = 0.7  # weight of a neighbouring word in this evidence; 0.7² of the next one, and so on
_MAX_LOSS = 0.5  # by which an English word reduces the evidence
_SHORT = 3  # letters; such short words of other languages are rarely English too
_SHORT_MARGIN = 1.0  # by which a short word must be more frequent in English to be kept


def find_foreign_words(words: Sequence[str]) -> list[int]:
    """Return the indices of the words of a title that are not English.

    A word is not English if it is more frequent in another language, and it and the words around
    it are evidence for that language. So "die" is kept in "Die Hard" and removed from "Die Sendung
    mit der Maus".

    Args:
        words: in order, in original case.

    >>> find_foreign_words(["baby", "crawling", "mon", "bébé", "est", "trop", "mignon"])
    [2, 3, 4, 5, 6]
    """
    if not words:
        return []
    scores = np.stack([_language_scores(word.lower()) for word in words])
    gains = scores - scores[:, :1]  # over English (words, languages)
    if not all(word.isupper() for word in words if len(word) > _SHORT):
        is_name = [n > 0 and word[0].isupper() for n, word in enumerate(words)]
        gains[is_name] /= 2  # names are used in all languages
    places = np.arange(len(words))
    evidence = _DECAY ** abs(np.subtract.outer(places, places)) @ np.maximum(gains, -_MAX_LOSS)
    own_gains = gains[places, evidence.argmax(axis=1)]
    margins = [-_SHORT_MARGIN if len(word) <= _SHORT else 0.0 for word in words]
    is_foreign = (evidence.max(axis=1) > _THRESHOLD) & (own_gains >= margins)
    return [n for n, word in enumerate(words) if is_foreign[n] and word[0].isalpha()]


@lru_cache(maxsize=50_000)
def _language_scores(word: str) -> npt.NDArray[np.float64]:
    """Return the Zipf frequency of a lower-case word in each of `LANGUAGES`, at least 2.5."""
    return np.maximum([zipf(word, language) for language in LANGUAGES], _FLOOR)


def zipf(word: str, language: str = "en") -> float:
    """Return the Zipf frequency of a lower-case word, 3 to 8, or 0 if it is rarer."""
    frequencies = import_text_package("wordfreq").get_frequency_dict(language, "small")
    return math.log10(frequencies[word]) + 9 if word in frequencies else 0.0


@lru_cache(maxsize=50_000)
def split_hashtag(tag: str) -> list[str]:
    """Split a hashtag (without #) into words, keeping its case.

    >>> split_hashtag("MovieClips"), split_hashtag("photooftheday"), split_hashtag("top10goals")
    (['Movie', 'Clips'], ['photo', 'of', 'the', 'day'], ['top', '10', 'goals'])
    >>> split_hashtag("YouTube"), split_hashtag("4k"), split_hashtag("tbt")
    (['YouTube'], ['4k'], ['tbt'])
    """
    if zipf(tag.lower()):
        return [tag]
    words = []
    for part in filter(None, _TAG_PARTS.split(tag)):
        split = [part]
        if len(part) > 5 and part.isascii() and _language_scores(part.lower()).max() == _FLOOR:
            split = import_text_package("wordninja").split(part)
        # Short words must be frequent, so that names are not split into "am" or "an".
        is_english = all(zipf(word.lower()) >= 7.5 - len(word) for word in split)
        words += split if is_english else [part]
    return words


def import_text_package(package: str) -> Any:
    """Import a package of the extra ``text``, or raise a `TextError` if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TextError('cleaning titles needs the extra: pip install "crosspair[text]"') from error
